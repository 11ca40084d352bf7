"""How long the vocabulary pass takes, against the bare matrix product, dense logits and, where installed, peers.

    python scripts/bench/vocabulary_pass.py [--shape 1024,512,32768 ...] [--rounds 5] [--device cpu|gpu]
        [--torch-python PYTHON] [--json FILE]

Three tables a shape: the forward with all statistics, the backward alone, and the whole step (forward, a gate from the
statistics of the same batch, both gradients) with a share f of the tokens kept. Every round runs every row once; a
ratio is the median over rounds of one row's seconds over another's in the same round. On a CPU seconds are user
seconds of the process on one core, so that other programs and waiting do not count; on a GPU they are wall seconds.
Hidden states and unembedding are random: softmax is nearly flat, no id is special.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

KEPT = (1.0, 0.75, 0.5, 0.25, 0.0)
CPU_SHAPES = ((1024, 512, 32768), (512, 512, 151936))
GPU_SHAPES = ((8192, 1024, 151936), (8192, 4096, 151936))
PACKAGES = ("jax", "jaxlib", "optax", "tokamax")

Row = Callable[[], float | None]


class Shape(NamedTuple):
    """Tokens, width of the hidden states, vocabulary."""

    tokens: int
    embed: int
    vocab: int


def main() -> None:
    """Times all tables and prints them as markdown."""
    args = _arguments()
    if args.device == "cpu":
        # One core: the waiting of idle worker threads would count as user time. Before jax is imported.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ["JAX_PLATFORMS"] = "cpu"
    from scripts.bench import vocabulary_rows as rows

    clock = user_seconds if args.device == "cpu" else time.perf_counter
    results, print_ = [], functools.partial(print, flush=True)
    print_(f"{machine(args.device)}; {versions()}; {time.strftime('%Y-%m-%d')}; {args.rounds} rounds")
    for shape in args.shape or (CPU_SHAPES if args.device == "cpu" else GPU_SHAPES):
        problem = rows.make_problem(Shape(*shape), args.device, args.torch_python)
        for title, base, table in rows.tables(problem, KEPT):
            measured = alternate(table, args.rounds, clock)
            results.append({"shape": shape, "table": title, "base": base, "seconds": measured})
            print_("\n".join(markdown(title, Shape(*shape), base, measured)))
    if args.json:
        about = {"command": sys.argv, "machine": machine(args.device), "versions": versions(), "rounds": args.rounds}
        args.json.write_text(json.dumps({**about, "date": time.strftime("%Y-%m-%d"), "results": results}, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", type=_shape, metavar="N,D,V", help="tokens, width, vocabulary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--torch-python", metavar="PYTHON", help="of an environment with torch, for its rows")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(map(int, text.split(",")))
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not tokens,width,vocabulary")
    return sizes


def user_seconds() -> float:
    """CPU seconds that this process spent outside the kernel."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def alternate(table: dict[str, Row], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each row in each round; one more round before them compiles and warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for counted in (False, *[True] * rounds):
        for name, row in table.items():
            before = clock()
            own = row()
            if counted:
                seconds[name].append(clock() - before if own is None else own)
    return seconds


def markdown(title: str, shape: Shape, base: str, seconds: dict[str, list[float]]) -> Iterator[str]:
    """A table with the median seconds of each row and its ratio to the base row."""
    yield f"\n### {title}: N={shape.tokens} d={shape.embed} V={shape.vocab}\n"
    yield f"| row | seconds | ratio to {base} |\n|---|---|---|"
    for name, times in seconds.items():
        ratio = statistics.median(a / max(b, 1e-9) for a, b in zip(times, seconds[base], strict=True))
        yield f"| {name} | {statistics.median(times):.3f} | {ratio:.2f} |"


def machine(device: str) -> str:
    """The processor in words."""
    if device == "gpu":
        import jax

        return jax.devices()[0].device_kind
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"one core of {named[0] if named else platform.processor()}"


def versions() -> str:
    """Installed versions of what is measured."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
