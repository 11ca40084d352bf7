"""What checkpoints cost a run: the time that the loop stands still for them, as a share of the run.

    python scripts/bench/checkpoints.py [--train-steps 1000] [--every 500] [--rows 16] [--length 64]

A student of 102 thousand parameters on the chain world, on one device, with the default interval of 500 train steps.
"held" is time in which the loop does nothing else: checksums, copying arrays from the device, and waiting for the save
before. "all" adds what is written behind its back, as CPU seconds of the process against a run without checkpoints.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax

from mixdistill.data.mixture import Mixture
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.students.families import chain
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training import loop


def recipe(shards: Path, args: argparse.Namespace, every: int) -> Recipe:
    """Pooled cross entropy."""
    source = Mixture(shards=str(shards), rows=args.rows, length=args.length)
    stage = Stage("imitate", args.train_steps + 1, source, Objective({"imitate": Term(cross_entropy)}))
    student = chain(CHAIN.tokenizer().vocab_size)
    return Recipe(name="checkpoints", student=student, stages=(stage,), log_every=50, checkpoint_every=every)


def measure(made: Recipe) -> dict[str, float]:
    """Seconds of the run without compiling and without its end: in all, held by checkpoints (wall and CPU), and CPU."""
    spent, marks, save = [], {}, loop._save

    def timed(*args, **knobs):
        began = time.perf_counter(), time.thread_time()
        done = save(*args, **knobs)
        spent.append((time.perf_counter() - began[0], time.thread_time() - began[1]))
        return done

    def mark(event) -> None:
        if event.kind == "train_step" and event.train_step in (1, made.budget.size - 1):
            jax.block_until_ready(event.state)
            marks[event.train_step] = time.perf_counter(), time.process_time()
            if event.train_step > 1:
                loop._save = save  # the last one ends the run and holds nothing up

    loop._save = timed
    with tempfile.TemporaryDirectory() as workdir:
        loop.run(made, workdir, hooks=[mark], devices=jax.devices()[:1], quiet=True)
    loop._save = save
    first, last = marks[1], marks[made.budget.size - 1]
    wall, cpu = (sum(one[k] for one in spent) for k in (0, 1))
    return {
        "seconds": last[0] - first[0],
        "cpu": last[1] - first[1],
        "held": wall,
        "held_cpu": cpu,
        "saves": len(spent),
    }


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_world(CHAIN, Path(folder) / "shards", {"F": 400, "B": 400, "H": 400})
        without = measure(recipe(Path(folder) / "shards", args, 10**9))
        found = measure(recipe(Path(folder) / "shards", args, args.every))
    steps = args.train_steps
    print(f"{found['saves']:.0f} checkpoints in {steps} train steps of {1000 * found['seconds'] / steps:.1f} ms")
    print(f"held: {100 * found['held'] / found['seconds']:.2f}% of the time, ", end="")
    print(f"{1000 * found['held_cpu'] / max(found['saves'], 1):.0f} CPU ms of the loop a checkpoint")
    before, after = without["cpu"], found["cpu"]
    print(f"all: {100 * (after / before - 1):+.2f}% CPU seconds ({before:.2f} -> {after:.2f})")


if __name__ == "__main__":
    main()
