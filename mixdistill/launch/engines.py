"""The engines, by name."""

from collections.abc import Callable
from typing import NamedTuple

from mixdistill.errors import UserError
from mixdistill.launch import jobset, local, skypilot, slurm, tpu_vm, xpk
from mixdistill.launch.job import Job


class Engine(NamedTuple):
    """How one is told what to run."""

    write: Callable[[Job], str]
    submit: Callable[[str, Job], list[list[str]]] | None  # commands, given the path of what was written; None: `local`
    uses: tuple[str, ...]  # fields of `Job` beyond those that all engines use
    suffix: str


ENGINES = {
    "local": Engine(local.write, None, local.USES, ".sh"),
    "slurm": Engine(slurm.write, slurm.submit, slurm.USES, ".sbatch"),
    "gke": Engine(jobset.write, jobset.submit, jobset.USES, ".yaml"),
    "xpk": Engine(xpk.write, xpk.submit, xpk.USES, ".sh"),
    "skypilot": Engine(skypilot.write, skypilot.submit, skypilot.USES, ".yaml"),
    "tpu-vm": Engine(tpu_vm.write, tpu_vm.submit, tpu_vm.USES, ".sh"),
}
OPTIONAL = tuple(sorted({field for engine in ENGINES.values() for field in engine.uses}))


def check(on: str, given: tuple[str, ...]) -> None:
    """Raises `UserError` for an option that the engine would pass over in silence."""
    foreign = [name for name in given if name not in ENGINES[on].uses]
    if foreign:
        flags = [f"--{name.replace('_', '-')}" for name in (*foreign, *ENGINES[on].uses)]
        raise UserError(
            f"{on} does not use {', '.join(flags[: len(foreign)])}; it uses {', '.join(flags[len(foreign) :])}"
        )
