"""Traces a second on one core: drawing, solving and grading alone, and with encoding and writing shards.

    python scripts/bench/worlds.py [--count 8000] [--worlds chain walk ...]

Seconds are of CPU time of this process, so that other work on the machine does not count.
"""

import argparse
import collections
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.countdown import COUNTDOWN
from mixdistill.traces.worlds.maze import maze
from mixdistill.traces.worlds.reach import REACH
from mixdistill.traces.worlds.walk import WALK
from mixdistill.traces.worlds.world import World
from mixdistill.traces.worlds.write import traces, write_world

WORLDS = {world.name: world for world in (CHAIN, WALK, maze(), COUNTDOWN, REACH)}


def cpu_seconds(work: Callable[[], object]) -> float:
    """What `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(world: World, count: int, folder: Path) -> str:
    """A row of the table. Every teacher writes equally many."""
    each = {teacher: count // len(world.teachers) for teacher in world.teachers}
    total = sum(each.values())
    alone = total / cpu_seconds(lambda: collections.deque(traces(world, each), maxlen=0))
    written = total / cpu_seconds(lambda: write_world(world, folder / world.name, each))
    return f"{world.name:<10} {total:>8} {alone:>14.0f} {written:>14.0f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Traces a second on one core.")
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    args = parser.parse_args()
    print(f"{'world':<10} {'traces':>8} {'generated/s':>14} {'written/s':>14}")
    with tempfile.TemporaryDirectory() as folder:
        measure(CHAIN, 100, Path(folder) / "warm-up")  # imports and the tokenizer
        for name in args.worlds:
            print(measure(WORLDS[name], args.count, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
