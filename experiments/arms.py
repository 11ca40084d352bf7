"""What the studies' arms have in common: a small recipe on a world's shards, and a trained student as a row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import students
from mixdistill.data.mixture import Mixture
from mixdistill.evaluation.answers import Answer, answer, correctness
from mixdistill.evaluation.summary import summarise
from mixdistill.evaluation.tasks import Task
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage
from mixdistill.studies.study import Cell, Row
from mixdistill.training.spending import in_all
from mixdistill.training.workdir import Trained


def imitate(shards: Path, tokens: int, teachers: Sequence[str] | None = None, **knobs: Any) -> Stage:
    """Cross entropy on these teachers (None: all) for a number of completion tokens; `knobs` are of the mixture."""
    chosen = None if teachers is None else tuple(teachers)
    source = Mixture(shards=str(shards), teachers=chosen, **{"rows": 16, "length": 64, **knobs})
    return Stage("imitate", None, source, Objective({"imitate": Term(cross_entropy)}), num_tokens=tokens)


def recipe(name: str, student: Any, stages: Sequence[Stage], seed: int, **changes: Any) -> Recipe:
    """With the optimiser that all studies use, and no checkpoint but the last."""
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup=0.08, final=0.1, b2=0.98, weight_decay=0.01, clip=1.0)
    common = {"log_every": 20, "checkpoint_every": 1_000_000, "optimizer": optimizer}
    return Recipe(name=name, student=student, stages=tuple(stages), seed=seed, **{**common, **changes})


def trained_row(cell: Cell, plan: Recipe, tasks: Mapping[str, Task], max_new: int) -> Row:
    """Trains the plan in the cell's folder and measures the student on the tasks (see `measured`)."""
    trained = students.train(plan, cell.folder / "run", cell.report)
    outcomes, numbers = measured(trained, tasks, max_new)
    return Row(cell.arm, cell.seed, outcomes, numbers, spent(cell.folder / "run"))


def measured(
    trained: Trained, tasks: Mapping[str, Task], max_new: int
) -> tuple[dict[str, list[bool]], dict[str, float]]:
    """Of greedy answers: see `counted`."""
    return counted(tasks, answered(trained, tasks, max_new))


def answered(trained: Trained, tasks: Mapping[str, Task], max_new: int) -> dict[str, list[Answer]]:
    """Greedy answers by task."""
    return {
        name: answer(trained.student, trained.params, task, trained.tokenizer, max_new=max_new)
        for name, task in tasks.items()
    }


def counted(
    tasks: Mapping[str, Task], answers: Mapping[str, Sequence[Answer]]
) -> tuple[dict[str, list[bool]], dict[str, float]]:
    """Whether each problem's answer is right, by task; and "TASK valid", "TASK calibration error", "TASK finished",
    "TASK tokens" (a completion) and "TASK error KIND" (share of the problems), NaN where nobody can tell."""
    outcomes, numbers = {}, {}
    for name, found in answers.items():
        whole = summarise(found)
        outcomes[name] = correctness(found).tolist()
        numbers |= {
            f"{name} valid": whole.valid,
            f"{name} calibration error": whole.calibration_error,
            f"{name} finished": whole.finished,
            f"{name} tokens": whole.num_tokens,
            **{f"{name} error {kind}": whole.errors.get(kind, 0) / len(found) for kind in tasks[name].errors},
        }
    return outcomes, numbers


def spent(workdir: Path) -> dict[str, float]:
    """What a run has cost, as the sweep's table shows it."""
    whole = in_all(students.metrics(workdir))
    return {"tokens seen": whole.seen, "tokens trained": whole.trained, "flops": whole.flops}
