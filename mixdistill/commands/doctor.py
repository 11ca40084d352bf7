"""`mixdistill doctor`: is the installation whole, are these shards sound, can this run be resumed? One line a check."""

import argparse
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mixdistill.errors import UserError

REQUIRED = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array_record",
    "tensorflow-datasets",
    "tokenizers",
)
OPTIONAL = {"math-verify": "verify: LaTeX answers", "matplotlib": "report: plots"}
LOW_DISK_BYTES = 2 * 2**30  # a tiny run with its checkpoints and compiled programs stays under this

Line = tuple[str, bool | None, str]  # what was checked, passed (None: for information), what was found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="shards or run folders to check in full")


def run(args: argparse.Namespace) -> int:
    """Prints one line a check; 0 when all passed, 1 otherwise."""
    passed = True
    for name, ok, found in _checks(args.paths):
        passed &= ok is not False
        print(f"{ {True: 'ok  ', False: 'FAIL', None: 'info'}[ok] }  {name}: {found}", flush=True)
    return 0 if passed else 1


def _checks(paths: list[Path]) -> Iterator[Line]:
    yield "python", sys.version_info >= (3, 12), sys.version.split()[0]
    yield from (_package(name) for name in REQUIRED)
    yield from (_extra(name, purpose) for name, purpose in OPTIONAL.items())
    yield _guarded("devices", _devices)
    yield _guarded("compile", _compile)
    yield _disk(Path(tempfile.gettempdir()))
    for path in paths:
        yield _guarded(str(path), lambda path=path: _folder(path))


def _guarded(name: str, check: Callable[[], str]) -> Line:
    """A check that raises has failed; doctor goes on to the next."""
    try:
        return name, True, check()
    except Exception as error:  # noqa: BLE001 - the whole point is to report whatever is broken
        return name, False, f"{type(error).__name__}: {error}"


def _package(name: str) -> Line:
    try:
        return name, True, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, False, "not installed; run `pip install mixdistill` again"


def _extra(name: str, purpose: str) -> Line:
    try:
        return name, None, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, None, f"not installed (extra for {purpose})"


def _devices() -> str:
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    process = f"process {jax.process_index() + 1} of {jax.process_count()}"
    return f"{len(kinds)} x {kinds[0]} on {jax.default_backend()}, {process}"


def _compile() -> str:
    import jax
    import jax.numpy as jnp

    total = jax.jit(lambda x: (x @ x).sum())(jnp.ones((64, 64)))
    if float(total) != 64.0**3:
        raise ArithmeticError(f"64 x 64 product summed to {float(total)}, not {64.0**3}")
    return "a jitted product is right"


def _disk(folder: Path) -> Line:
    free = shutil.disk_usage(folder).free
    return f"disk {folder}", free > LOW_DISK_BYTES, f"{free / 2**30:.0f} GiB free"


def _folder(path: Path) -> str:
    if (path / "manifest.json").is_file():
        return _shards(path)
    if (path / "recipe.txt").is_file():
        return _workdir(path)
    raise UserError(f"neither shards (manifest.json) nor a run (recipe.txt) in {path}")


def _shards(path: Path) -> str:
    from mixdistill.traces.shards import Shards

    shards = Shards.open(path, verify="full")
    for index in range(len(shards)):
        shards[index]
    return f"{len(shards)} traces of {len(shards.teachers)} teachers, every checksum and record is good"


def _workdir(path: Path) -> str:
    if not os.access(path, os.W_OK):
        raise UserError("not writable, so the run cannot go on here")
    steps = sorted(int(p.name) for p in (path / "checkpoints").glob("*") if p.name.isdigit())
    if not steps:
        return "no checkpoint yet; training would start from train_step 0"
    return f"checkpoints of train_steps {', '.join(map(str, steps))}; training would resume after {steps[-1]}"
