"""Fuzzing: everything that reads bytes or text from outside is fed with broken ones; only its own refusals may come.

    python scripts/fuzz.py [--cases 100000] [--seconds 600] [--seed 0] [TARGET ...]

Cases are mutations of valid examples (`tests/property/mutation.py`). One that reaches a line of the package for the
first time becomes an example itself, so what is reached grows. A case that raises anything else than a refusal, or
takes more than a second of CPU, is made small and printed; it goes to tests/property/test_fuzz.py. Prints a table.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.property.fuzz_targets import TARGETS
from tests.property.mutation import mutate

PACKAGE = str(Path(__file__).resolve().parents[1] / "mixdistill")
MOST_EXAMPLES = 2000
SLOW_SECONDS = 1.0
SHM = Path("/dev/shm")  # small files by the million: not on a disk


class Found(NamedTuple):
    """Of one target. `failures`: what was raised, and the smallest case for it."""

    cases: int
    examples: int
    cpu_seconds: float
    slowest: float
    failures: dict[str, bytes]


def fuzz(name: str, cases: int, seconds: float, seed: int) -> Found:
    """Runs `cases` mutations, or as many as there is time for."""
    target, rng, corpus = TARGETS[name], random.Random(f"{seed} {name}"), list(TARGETS[name].corpus)
    began, deadline, slowest, failures = time.process_time(), time.monotonic() + seconds, 0.0, {}
    with _lines() as news, tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as folder:

        def failure(case: bytes) -> str:
            try:
                target.run(case, Path(folder))
            except Exception as error:  # noqa: BLE001 - this is what is looked for
                place = traceback.extract_tb(error.__traceback__)[-1]
                return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
            return ""

        count = 0
        while count < cases and time.monotonic() < deadline:
            count += 1
            case = mutate(rng, corpus, target.pieces)
            start = time.thread_time()
            what = failure(case)
            took = time.thread_time() - start
            slowest = max(slowest, took)
            what = what or ("slow" if took > SLOW_SECONDS else "")
            if what and what not in failures:
                failures[what] = case if what == "slow" else smaller(case, lambda one, same=what: failure(one) == same)
            if news() and len(corpus) < MOST_EXAMPLES:
                corpus.append(case)
    return Found(count, len(corpus), time.process_time() - began, slowest, failures)


@contextlib.contextmanager
def _lines() -> Iterator[Callable[[], bool]]:
    """Whether lines of the package ran for the first time since the last question. A line tells once, and then costs
    nothing."""
    watch, new = sys.monitoring, False

    def line(code, number: int):
        nonlocal new
        new |= code.co_filename.startswith(PACKAGE)
        return watch.DISABLE

    def news() -> bool:
        nonlocal new
        found, new = new, False
        return found

    watch.use_tool_id(watch.COVERAGE_ID, "fuzz")
    watch.register_callback(watch.COVERAGE_ID, watch.events.LINE, line)
    watch.set_events(watch.COVERAGE_ID, watch.events.LINE)
    try:
        yield news
    finally:
        watch.set_events(watch.COVERAGE_ID, 0)
        watch.free_tool_id(watch.COVERAGE_ID)
        watch.restart_events()


def smaller(case: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """The case with everything left out that it fails without."""
    size = len(case) // 2
    while size:
        place = 0
        while place < len(case):
            shorter = case[:place] + case[place + size :]
            if fails(shorter):
                case = shorter
            else:
                place += size
        size //= 2
    return case


def main() -> int:
    """1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--cases", type=int, default=100_000, help="of each target (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each target at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failed = False
    print("| target | cases | examples at the end | CPU seconds | slowest case, ms | failures |")
    print("|---|---|---|---|---|---|")
    for name in args.targets or TARGETS:
        found = fuzz(name, args.cases, args.seconds, args.seed)
        failed |= bool(found.failures)
        numbers = f"{found.cases:,} | {found.examples} | {found.cpu_seconds:.0f} | {1000 * found.slowest:.0f}"
        print(f"| {name} | {numbers} | {', '.join(found.failures) or 'none'} |", flush=True)
        for what, case in found.failures.items():
            print(f"  {name}: {what}: {case[:500]!r}", file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
