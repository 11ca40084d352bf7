"""Recorded traces of ten open models and people on GSM8K: one small student on all of them, and one with a gate.

    MIXDISTILL_DATA=... python -m experiments.gsm8k_teachers [--out gsm8k_teachers]

Prepares the traces with a tokenizer of their own, trains two students of five million parameters for a few hundred
train steps on problems of fold a, every teacher with an equal share, and measures the log-likelihood of everybody's
solutions of the same unseen problems of fold b:

    pooled   cross entropy on all traces
    gated    traces whose mean surprisal is far above that of the human solutions are refused (near_anchor), and what is
             refused of a teacher is drawn from the others (acceptance)

A second call goes on where the first was stopped. About 20 CPU minutes.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.development_data import development_data
from mixdistill.data.corpus import open_corpus
from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.gates import near_anchor
from mixdistill.generation.contexts import full
from mixdistill.generation.scoring import Runner
from mixdistill.losses import cross_entropy
from mixdistill.memory import running
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage
from mixdistill.routers import acceptance
from mixdistill.signals.signal import use
from mixdistill.students.config import DecoderConfig
from mixdistill.students.families import small
from mixdistill.traces.prepare import Settings, prepare
from mixdistill.traces.shards import Shards
from mixdistill.training.hooks import METRICS_FILE, read_metrics
from mixdistill.training.loop import run
from mixdistill.training.workdir import open_trained

# Class `open` of teachers.json, and short enough: most of their traces fit into a row.
TEACHERS = {
    "gsm8k_teachers": (
        "Mistral-Nemo-Instruct-2407",
        "Mixtral-8x7B-Instruct-v0.1",
        "Phi-3.5-mini-instruct",
        "Qwen2-7B-Instruct",
        "Yi-1.5-34B-Chat",
        "rho-math-1b-v0.1",
        "rho-math-7b-v0.1",
    ),
    "gsm8k_longcot": ("phi-3-medium", "qwen2.5-32b-instruct", "r1-distill-qwen-32b"),
    "gsm8k_human": ("train", "test"),
}
ANCHOR = "human"
ARMS = ("pooled", "gated")
TRAINED, HELD_OUT = "a", "b"  # folds
STUDENT = dataclasses.replace(small(4096), layers=4)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is; tests make it small."""

    student: DecoderConfig = STUDENT
    rows: int = 4
    length: int = 512
    train_steps: int = 240
    checkpoint_every: int = 60
    held_out: int = 40  # problems
    workers: int = 2  # processes that prepare


class Measured(NamedTuple):
    """One trained student."""

    nll: dict[str, np.ndarray]  # {teacher: nats a completion token, of each held-out trace}
    kept: dict[str, float]  # {teacher: share of its targets that the gate kept}
    share: dict[str, float]  # {teacher: of the targets seen}
    tokens: int  # targets seen
    tokens_per_second: float  # without the first train steps, which compile


def source(shards: Shards, size: Size) -> Mixture:
    """Equal shares of all teachers."""
    weights = dict.fromkeys(shards.teachers, 1.0)
    return Mixture(shards=str(shards.path), rows=size.rows, length=size.length, weights=weights, folds=(TRAINED,))


def recipe(shards: Shards, arm: str, size: Size, seed: int) -> Recipe:
    """Plain or gated cross entropy."""
    objectives = {
        "pooled": Objective({"imitate": Term(cross_entropy)}),
        "gated": Objective(
            {"imitate": Term(cross_entropy, gates=(use(near_anchor, anchor=ANCHOR, margin=0.3),))},
            memory={"baseline": running("teacher/content_nll"), "refill": acceptance()},
        ),
    }
    return Recipe(
        name=f"gsm8k_teachers_{arm}",
        student=size.student,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=0.1),
        stages=(Stage("imitate", size.train_steps, source(shards, size), objectives[arm]),),
        seed=seed,
        checkpoint_every=size.checkpoint_every,
    )


def prepare_traces(out: Path, size: Size) -> Shards:
    """All traces of all teachers, both folds, as shards; the tokenizer is trained on them."""
    data = development_data()
    files = [data / folder / f"{name}.jsonl.gz" for folder, names in TEACHERS.items() for name in names]
    vocab_size = size.student.vocab_size
    return prepare(files, out, vocab_size=vocab_size, settings=Settings(grade=False), workers=size.workers)


def held_out(shards: Shards, size: Size) -> np.ndarray:
    """int [problems, teachers]: the traces of the first problems of fold b that every teacher has solved in a row."""
    index = shards.index
    usable = (index["fold"] == shards.folds.index(HELD_OUT)) & (index["num_tokens"] <= size.length + 1)
    trace = np.full((len(shards.problems), len(shards.teachers)), -1)
    ids = np.flatnonzero(usable)[::-1]  # of several samples the first
    trace[index["problem"][ids], index["teacher_id"][ids]] = ids
    common = trace[(trace >= 0).all(axis=1)]
    if not len(common):
        raise UserError(f"no problem of fold {HELD_OUT} was solved by all of {', '.join(shards.teachers)}")
    return common[: size.held_out]


def measure(workdir: Path, shards: Shards, size: Size) -> Measured:
    """What a finished run knows and what it has seen."""
    trained, ids = open_trained(workdir), held_out(shards, size)
    score = Runner(trained.student, trained.params, size.rows * size.length, jax.devices()[:1])
    offsets, fields = score(full(), [shards[int(i)] for i in ids.T.ravel()])
    sums = np.add.reduceat(-fields["label_logprob"].astype(np.float64), offsets[:-1])
    nll = (sums / np.diff(offsets)).reshape(ids.shape[::-1])
    lines = read_metrics(workdir / METRICS_FILE)
    seen = {name: sum(line["weights"]["teacher/tokens"][name] for line in lines) for name in shards.teachers}
    kept = {
        name: sum(
            (line["metrics"]["teacher/kept"][name] or 0.0) * line["weights"]["teacher/kept"][name] for line in lines
        )
        for name in shards.teachers
    }
    first, last = lines[0], lines[-1]
    return Measured(
        dict(zip(shards.teachers, nll, strict=True)),
        {name: kept[name] / seen[name] for name in seen},
        {name: seen[name] / sum(seen.values()) for name in seen},
        trained.tokens,
        (last["tokens"] - first["tokens"]) / max(last["seconds"] - first["seconds"], 1e-9),
    )


def table(shards: Shards, size: Size, found: dict[str, Measured]) -> Table:
    """One line a teacher: the human solutions and the mean of all below."""
    counts = open_corpus(source(shards, size)).counts
    pooled, gated = (found[arm] for arm in ARMS)
    shown = Table(box=box.MARKDOWN)
    titles = ("teacher", "traces", "too long", "NLL pooled", "NLL gated", "difference", "kept", "share pooled")
    for number, title in enumerate((*titles, "share gated")):
        shown.add_column(title, justify="right" if number else "left")
    names = sorted(counts, key=lambda name: (name == ANCHOR, name))
    for name in names:
        shown.add_row(
            name,
            str(counts[name]["eligible"]),
            str(counts[name]["dropped"]),
            *_nlls(pooled.nll[name], gated.nll[name]),
            f"{gated.kept[name]:.2f}",
            f"{pooled.share[name]:.3f}",
            f"{gated.share[name]:.3f}",
        )
    everyone = [np.mean([arm.nll[name] for name in names], axis=0) for arm in (pooled, gated)]
    kept = sum(gated.kept[name] * gated.share[name] for name in names)
    totals = [str(sum(row[key] for row in counts.values())) for key in ("eligible", "dropped")]
    shown.add_row("all, equally", *totals, *_nlls(*everyone), f"{kept:.2f}", "1", "1")
    return shown


def _nlls(pooled: np.ndarray, gated: np.ndarray) -> tuple[str, str, str]:
    """Means over problems, and the mean difference on the same problems with its standard error."""
    difference = gated - pooled
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else np.nan
    return f"{pooled.mean():.3f}", f"{gated.mean():.3f}", f"{difference.mean():+.3f} ± {error:.3f}"


def main(arguments: Sequence[str] | None = None, size: Size = Size()) -> int:
    """The command; 130 after Ctrl-C or SIGTERM, and the same call goes on."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gsm8k_teachers", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gsm8k_teachers"), help="shards and runs (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    folder = given.out / "shards"
    shards = Shards.open(folder) if folder.exists() else prepare_traces(folder, size)
    found = {}
    for arm in ARMS:
        workdir = given.out / arm
        plan = recipe(shards, arm, size, given.seed)
        if run(plan, workdir, devices=jax.devices()[:1]).stopped_by:
            print(f"stopped in {arm}; the same command goes on from there")
            return 130
        found[arm] = measure(workdir, shards, size)
    Console(width=200).print(table(shards, size, found))
    print(
        f"NLL in nats a completion token, mean over solutions of {len(held_out(shards, size))} problems of fold "
        f"{HELD_OUT}; difference: gated - pooled, ± one standard error over problems. Kept: share of a teacher's "
        "targets that the gate let through."
    )
    for arm, measured in found.items():
        print(
            f"{arm}: {size.student.num_params:,} parameters, {size.train_steps} train steps, {measured.tokens:,} "
            f"targets seen, {measured.tokens_per_second:,.0f} targets/s"
        )
    print(f"{sum(os.times()[:4]):.0f} CPU seconds in this call")
    return 0


if __name__ == "__main__":
    sys.exit(main())
