"""Imitate, then refine, in the chain world: is it better than either alone, and than pooling, at equal student FLOPs?

    python -m experiments.refine scarce|ample [--seeds 0 1 2] [--out experiments/results/refine] [--runs runs/refine]

Teacher F (and each of B, M, H and S, for the pooled arm) has written 1000 traces ("scarce") or 2000 ("ample"); of 4000
further problems the answer alone is known. Every arm is one recipe in one workdir.

    imitate                 cross entropy on F's traces
    pooled                  cross entropy on the traces of all five teachers
    reinforce               RLVR from the start: Dr. GRPO on answered problems, exact verifier, no trace is seen
    imitate-reinforce       imitation of F for part of the run, then RLVR
    imitate-srl-reinforce   imitation, then step-wise similarity to F's steps (SRL), then RLVR

Of each seed imitate-reinforce runs first; the arms of one stage then get as many FLOPs as it spent
(`experiments/flops.py`), and imitate-srl-reinforce has been sized to cost about as much. Accuracies are of greedy
answers to test problems that no arm has seen, of 3 to 5 operands (and of 6: out of distribution). Results go to OUT,
shards, checkpoints and the result of each student to RUNS: what is there already is not trained again.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import flops
from mixdistill.evaluation.intervals import accuracy, difference
from mixdistill.studies.crew import Crew, Job, Report
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.world import Split
from mixdistill.traces.worlds.write import write_world

SEEDS = (0, 1, 2)
TEACHERS = ("F", "B", "M", "H", "S")
ANSWERED = "D"  # writes the answer alone: its prompts are the answered problems
PROBLEMS_SEED = 901  # test problems are the same for all students
FIRST = "imitate-reinforce"  # sets the FLOPs of its seed
REFINED = (FIRST, "imitate-srl-reinforce")
BASELINES = ("imitate", "pooled", "reinforce")
ARMS = (*REFINED, *BASELINES)
MAX_PROMPT, MAX_NEW, MAX_STEP = 8, 20, 3  # tokens; no step of F is longer
SRL_COST = 4  # tokens of RLVR that cost as much as one of SRL, whose prompts are long and completions short


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is; tests make it small."""

    traces: int = 2000  # of each teacher
    problems: int = 4000  # answered
    imitation: int = 250_000  # completion tokens of the first stage of the refined arms
    srl: int = 10_000
    reinforcement: int = 200_000  # of the RLVR stage of imitate-reinforce
    rows: int = 16  # of an imitation batch
    prompts: int = 16  # of a batch of rollouts
    samples: int = 8
    test: int = 500
    longer: int = 200
    workers: int = 1


SIZES = {"scarce": Size(traces=1000, imitation=300_000, reinforcement=250_000), "ample": Size()}


class Result(NamedTuple):
    """One trained student."""

    arm: str
    seed: int
    correct: np.ndarray  # bool [test problems]
    numbers: dict[str, float]  # what else is said of it
    flops: float
    tokens: int  # targets
    rollouts: dict[str, list[float]]  # of the last stage: first and last


def recipe(arm: str, shards: Path, seed: int, size: Size, tokens: int | None = None):
    """The arm as a recipe; `tokens` is the budget of an arm of one stage."""
    from mixdistill.data.mixture import Mixture
    from mixdistill.generation.judges import ended, similar_step, world_answer, world_reasoning
    from mixdistill.generation.objectives import dr_grpo
    from mixdistill.generation.rollouts import Rollouts
    from mixdistill.losses import cross_entropy
    from mixdistill.objective import Objective, Term
    from mixdistill.optimizers import OptimizerConfig
    from mixdistill.recipe import Recipe, Stage
    from mixdistill.students.families import chain

    rollouts = Rollouts(
        shards=str(shards),
        judges={"answer": world_answer("chain"), "reasoning": world_reasoning("chain"), "ended": ended},
        weights={"answer": 1.0},
        verifier="answer",
        prompts=size.prompts,
        samples=size.samples,
        max_prompt=MAX_PROMPT,
        max_new=MAX_NEW,
        normalise="none",
        per="max_new",
        teachers=(ANSWERED,),
    )
    steps = dataclasses.replace(
        rollouts,
        judges={"step": similar_step},
        weights={"step": 1.0},
        verifier=None,
        instances="steps",
        teachers=("F",),
        max_prompt=2 * MAX_PROMPT,
        max_new=MAX_STEP,
    )

    def imitation(teachers: tuple[str, ...], tokens: int) -> Stage:
        source = Mixture(shards=str(shards), rows=size.rows, length=64, teachers=teachers)
        return Stage("imitate", None, source, Objective({"imitate": Term(cross_entropy)}), num_tokens=tokens)

    def reinforcement(tokens: int) -> Stage:
        return Stage("reinforce", None, rollouts, dr_grpo(), num_tokens=tokens)

    stages = {
        "imitate": lambda: [imitation(("F",), tokens or size.imitation)],
        "pooled": lambda: [imitation(TEACHERS, tokens or size.imitation)],
        "reinforce": lambda: [reinforcement(tokens or size.reinforcement)],
        "imitate-reinforce": lambda: [imitation(("F",), size.imitation), reinforcement(size.reinforcement)],
        "imitate-srl-reinforce": lambda: [
            imitation(("F",), size.imitation),
            Stage("srl", None, steps, dr_grpo(), num_tokens=size.srl),
            reinforcement(size.reinforcement - SRL_COST * size.srl),
        ],
    }[arm]()
    return Recipe(
        name=arm,
        student=chain(CHAIN.tokenizer().vocab_size),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup=0.05, final=0.05, b2=0.98, weight_decay=0.01, clip=1.0),
        stages=tuple(stages),
        seed=seed,
        log_every=20,
        checkpoint_every=1_000_000,  # only the last
    )


def write(folder: Path, seed: int, size: Size, report: Report) -> None:
    """The traces of one seed, and the answered problems."""
    counts = {**dict.fromkeys(TEACHERS, size.traces), ANSWERED: size.problems}
    write_world(CHAIN, folder / f"shards-{seed}", counts, seed=seed, overwrite=True)


def train(folder: Path, arm: str, seed: int, size: Size, budget: float | None, report: Report) -> Result:
    """One student; `budget` in FLOPs for an arm of one stage. If RUNS has it already, what was found of it."""
    from experiments import students
    from mixdistill.recipe import fingerprint

    shards, workdir = folder / f"shards-{seed}", folder / f"{arm}-{seed}"
    plan = recipe(arm, shards, seed, size)
    if budget is not None:
        tokens = math.ceil(budget / cheapest_target(plan, shards))
        plan = recipe(arm, shards, seed, size, tokens)
    kept = workdir / "result.json"
    if kept.is_file() and (found := json.loads(kept.read_text()))["recipe"] == fingerprint(plan):
        return Result(**{**found["result"], "correct": np.array(found["result"]["correct"], bool)})
    trained = students.train(plan, workdir, report)
    correct, numbers = examine(trained, size)
    lines = students.metrics(workdir)
    spent = flops.spent(plan, shards, lines)
    result = Result(arm, seed, correct, numbers, spent, trained.tokens, history(plan, lines))
    values = {**result._asdict(), "correct": correct.tolist()}
    kept.write_text(json.dumps({"recipe": fingerprint(plan), "result": values}) + "\n")
    return result


def examine(trained: Any, size: Size) -> tuple[np.ndarray, dict[str, float]]:
    """bool [test problems], and the rest that greedy answers say."""
    from mixdistill.evaluation.answers import answer, correctness
    from mixdistill.evaluation.summary import summarise
    from mixdistill.evaluation.tasks import world_task

    longer = dataclasses.replace(CHAIN, splits={**CHAIN.splits, "longer": Split("test", (6,))})
    found = {}
    for name, world, split, count in (("test", CHAIN, "test", size.test), ("longer", longer, "longer", size.longer)):
        task = world_task(world, split, count, seed=PROBLEMS_SEED)
        found[name] = answer(trained.student, trained.params, task, trained.tokenizer, max_new=MAX_NEW)
    test, far = (summarise(found[name]) for name in ("test", "longer"))
    numbers = {
        "out_of_distribution": far.accuracy.mean,
        "calibration_error": test.calibration_error,
        "finished": test.finished,
        "valid": test.valid,
        "tokens_a_completion": test.num_tokens,
    }
    return correctness(found["test"]), numbers


def cheapest_target(plan: Any, shards: Path) -> float:
    """FLOPs a target of a plan of one stage; of rollouts, if all are as long as they may be: with shorter ones a target
    costs more, and the arm gets more FLOPs than it has to."""
    (stage,) = plan.stages
    if stage.name == "imitate":
        return flops.of_imitation(plan.student, shards, stage.source.teachers)
    return flops.of_rollout(plan.student, flops.mean_prompt(stage.source), MAX_NEW) / MAX_NEW


def history(plan: Any, lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """What the last stage's rollouts earned at its start and at its end (the mean over a line's train steps)."""
    own = [line["metrics"] for line in lines if line["stage"] == plan.stages[-1].name]
    names = ("rollout/answer", "rollout/spread", "rollout/length", "rollout/nll")
    return {name.removeprefix("rollout/"): [own[0][name], own[-1][name]] for name in names if name in own[0]}


def study(seeds: Sequence[int], folder: Path, size: Size, arms: Sequence[str] = ARMS) -> list[Result]:
    """FIRST and these arms, all seeds, one after the other."""
    others, results = [arm for arm in (*BASELINES, *REFINED) if arm in arms and arm != FIRST], []
    with Crew(size.workers, len(seeds) * (2 + len(others)), compiled=folder / "compiled") as crew:
        for seed in seeds:
            if not (folder / f"shards-{seed}").is_dir():
                crew.do([Job(f"traces of seed {seed}", write, (folder, seed, size))])
            (first,) = crew.do([Job(f"{FIRST}, seed {seed}", train, (folder, FIRST, seed, size, None))])
            budgets = [first.flops if arm in BASELINES else None for arm in others]
            jobs = [
                Job(f"{arm}, seed {seed}", train, (folder, arm, seed, size, budget))
                for arm, budget in zip(others, budgets, strict=True)
            ]
            results += [first, *crew.do(jobs)]
    return results


def summary(results: Sequence[Result], size: Size) -> dict[str, Any]:
    """What the results file holds."""
    found = {arm: [result for result in results if result.arm == arm] for arm in ARMS}
    arms = {arm: some for arm, some in found.items() if some}
    correct = {arm: np.stack([result.correct for result in some]) for arm, some in arms.items()}
    rows = {}
    for arm, some in arms.items():
        rows[arm] = {
            "accuracy": accuracy(correct[arm])._asdict(),
            "by_seed": {str(result.seed): float(result.correct.mean()) for result in some},
            **{name: float(np.mean([result.numbers[name] for result in some])) for name in some[0].numbers},
            "flops": float(np.mean([result.flops for result in some])),
            "tokens": float(np.mean([result.tokens for result in some])),
            "rollouts": [result.rollouts for result in some],
        }
    pairs = [(one, other) for one in REFINED for other in BASELINES if one in arms and other in arms]
    differences = {f"{one} - {other}": difference(correct[one], correct[other])._asdict() for one, other in pairs}
    return {"size": dataclasses.asdict(size), "arms": rows, "differences": differences}


def table(found: dict[str, Any]) -> str:
    """As markdown."""
    lines = ["| arm | accuracy | by seed | of 6 operands | valid | finished | calibration error | 10^9 FLOPs |"]
    lines += ["|---|---:|---|---:|---:|---:|---:|---:|"]
    for arm, row in found["arms"].items():
        seeds = " ".join(f"{value:.3f}" for value in row["by_seed"].values())
        numbers = [f"{row[name]:.3f}" for name in ("out_of_distribution", "valid", "finished", "calibration_error")]
        lines.append(
            f"| {arm} | {interval(row['accuracy'])} | {seeds} | {' | '.join(numbers)} | {row['flops'] / 1e9:.0f} |"
        )
    lines += ["", "| difference | accuracy |", "|---|---:|"]
    lines += [f"| {pair} | {interval(row)} |" for pair, row in found["differences"].items()]
    return "\n".join(lines)


def interval(row: dict[str, float]) -> str:
    """A mean and where it may lie."""
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def main(arguments: Sequence[str] | None = None, sizes: Mapping[str, Size] = SIZES) -> int:
    """The command: 0, whatever the outcome."""
    parser = argparse.ArgumentParser(prog="python -m experiments.refine", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("size", choices=sizes, help="how many traces there are")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help=f"{FIRST} always runs")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/refine"))
    parser.add_argument("--runs", type=Path, default=Path("runs/refine"), help="folder of shards and checkpoints")
    given = parser.parse_args(arguments)
    size, runs = sizes[given.size], given.runs / given.size
    runs.mkdir(parents=True, exist_ok=True)
    try:
        results = study(given.seeds, runs, size, given.arms)
    except KeyboardInterrupt:
        print("interrupted; nothing was written beside the runs", file=sys.stderr)
        return 130
    found = summary(results, size)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.size}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
