"""What the host loop costs: CPU milliseconds a train step of `run` against the bare compiled step, in turns.

    python scripts/bench/loop.py [--train-steps 200] [--rounds 3] [--rows 16] [--length 64] [--json FILE]

A student of 102 thousand parameters on the chain world, on one device. "bare" repeats the compiled train step on one
batch; "data" reads batches and does nothing with them; "run" is everything: reading, the train step, metrics every 20
train steps, hooks. CPU seconds are those of the process, so other programs and waiting do not count; compilation is
left out.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

from mixdistill.data.mixture import Mixture
from mixdistill.data.placement import place
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.students.families import chain
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.job import Job, build
from mixdistill.training.loop import run
from mixdistill.training.position import Position

WARM_UP = 5  # train steps


def recipe(shards: Path, train_steps: int, rows: int, length: int) -> Recipe:
    """Pooled cross entropy."""
    source = Mixture(shards=str(shards), rows=rows, length=length)
    stage = Stage("imitate", train_steps, source, Objective({"imitate": Term(cross_entropy)}))
    student = chain(CHAIN.tokenizer().vocab_size)
    return Recipe(name="loop", student=student, stages=(stage,), log_every=20, checkpoint_every=1_000_000)


def measure_bare(job: Job, count: int) -> float:
    """CPU seconds of `count` train steps."""
    pipeline, state, step = job.pipeline(Position()), job.initial_state(), job.train_step(0)
    batch = place(next(pipeline), job.mesh, job.recipe.rules)
    pipeline.close()
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    began = time.process_time()
    for _ in range(count):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return time.process_time() - began


def measure_data(job: Job, count: int) -> float:
    """CPU seconds of reading `count` batches."""
    pipeline = job.pipeline(Position())
    next(pipeline)
    began = time.process_time()
    for _ in range(count):
        next(pipeline)
    spent = time.process_time() - began
    pipeline.close()
    return spent


def measure_run(job: Job, count: int) -> float:
    """CPU seconds of `count` train steps of `run`."""
    marks: dict[int, float] = {}

    def mark(event) -> None:
        if event.kind == "train_step" and event.train_step in (WARM_UP, job.recipe.budget.size):
            jax.block_until_ready(event.state)
            marks[event.train_step] = time.process_time()

    with tempfile.TemporaryDirectory() as workdir:
        run(job.recipe, workdir, hooks=[mark], devices=jax.devices()[:1], quiet=True)
    return (marks[job.recipe.budget.size] - marks[WARM_UP]) * count / (job.recipe.budget.size - WARM_UP)


MEASURES: dict[str, Callable[[Job, int], float]] = {"bare": measure_bare, "data": measure_data, "run": measure_run}


def main() -> None:
    """Prints the median of each, and run / bare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train-steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_world(CHAIN, Path(folder) / "shards", dict.fromkeys("FBHM", 2000))
        plan = recipe(Path(folder) / "shards", given.train_steps, given.rows, given.length)
        job = build(plan, jax.devices()[:1])
        spent: dict[str, list[float]] = {name: [] for name in MEASURES}
        for _ in range(given.rounds):
            for name, measure in MEASURES.items():
                spent[name].append(1000 * measure(job, given.train_steps) / given.train_steps)
    found = {name: statistics.median(values) for name, values in spent.items()}
    for name, value in found.items():
        print(f"{name:5} {value:7.2f} CPU ms a train step")
    print(f"run / bare {found['run'] / found['bare']:.2f}")
    if given.json:
        given.json.write_text(json.dumps({"milliseconds": found, "rounds": spent}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
