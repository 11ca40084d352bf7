"""Fuzzing: everything that reads bytes or text from outside is fed with broken ones; only its own refusals may come.

    python scripts/fuzz.py [--cases 100000] [--seconds 600] [--seed 0] [TARGET ...]

Cases are drawn by hypothesis: pieces of the target's grammar, valid examples with bytes changed, cut, doubled or put
in, and plain noise. A case that raises anything else than a refusal is shrunk and printed; what it was goes to
tests/property/test_fuzz.py. Prints a table of the cases that were run.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.property.fuzz_targets import TARGETS


class OutOfTime(BaseException):
    """Not a failure: it passes through hypothesis as an interruption does."""


def fuzz(name: str, cases: int, seconds: float, number: int) -> tuple[int, str]:
    """(cases run, what failed: "" for nothing)."""
    target, strategy = TARGETS[name]
    count, deadline = 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:

        @seed(number)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def run(case) -> None:
            nonlocal count
            count += 1
            if time.monotonic() > deadline:
                raise OutOfTime
            target(case, Path(folder))

        try:
            run()
        except OutOfTime:
            pass
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            return count, f"{type(error).__name__}: {error} {getattr(error, '__notes__', '')}"
    return count, ""


def main() -> int:
    """1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--cases", type=int, default=100_000, help="of each target (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each target at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows, failed = {}, False
    print("| target | cases | failures |\n|---|---|---|")
    for name in args.targets or TARGETS:
        count, problem = fuzz(name, args.cases, args.seconds, args.seed)
        rows[name], failed = count, failed or bool(problem)
        print(f"| {name} | {count:,} | {problem or 'none'} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
