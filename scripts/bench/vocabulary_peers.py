"""Rows of other libraries for `vocabulary_pass.py`: loss and both gradients of every token, where they are installed.

None of them gives confidence or rank, and none skips a token that a gate closes; "+ statistics" adds them by hand.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

Row = Callable[[], float | None]  # its seconds, where it measures them itself


def rows(problem, torch_python: str | None) -> dict[str, Row]:
    """All that can run here, by name."""
    found = dict(tokamax_rows(problem)) if find_spec("tokamax") else {}
    return found | (torch_rows(problem, torch_python) if torch_python else {})


def tokamax_rows(problem) -> Iterator[tuple[str, Row]]:
    """Its dense and its chunked cross entropy, without statistics."""
    from tokamax import linear_softmax_cross_entropy_loss as cross_entropy

    for name in ("xla", "chunked_xla"):

        def loss(hidden, unembed, name=name):
            return cross_entropy(hidden, problem.ids[:, 0], unembed, implementation=name).astype("float32")

        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        yield f"tokamax {name}, no statistics", lambda s=step: _wait(s(problem.hidden, problem.unembed))


def torch_rows(problem, python: str) -> dict[str, Row]:
    """Rows of a process that has torch; each gives its own seconds."""
    device = "gpu" if problem.platform == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"hidden": problem.hidden, "unembed": problem.unembed, "target": problem.ids[:, 0]}
        path = Path(folder) / "problem.npz"
        np.savez(
            path,
            **{name: np.asarray(array, np.int32 if name == "target" else np.float32) for name, array in arrays.items()},
        )
        command = [python, str(Path(__file__).with_name("vocabulary_torch.py")), str(path), device]
        side = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        names = json.loads(_line(side))
    return {name: lambda name=name: _ask(side, name) for name in names}


def _ask(side: subprocess.Popen, name: str) -> float:
    assert side.stdin
    print(name, file=side.stdin, flush=True)
    return float(_line(side))


def _line(side: subprocess.Popen) -> str:
    assert side.stdout
    line = side.stdout.readline()
    if not line:
        raise RuntimeError(f"the torch side ended with {side.wait()}")
    return line


def _wait(result: Any) -> None:
    jax.block_until_ready(result)
