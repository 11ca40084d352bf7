"""A job in the words that all engines share."""

import dataclasses
import re
import shlex

from mixdistill.errors import UserError
from mixdistill.launch.machines import Machine

PORT = 8476  # of the coordinator, where nothing else chooses one
GRACE = 120  # seconds between the first signal and the last: a checkpoint is written in less

# What a JobSet and a SLURM cluster both accept as a name.
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Job:
    """One recipe on some hosts. Every host runs the same command; it goes on where the run stopped.

    Secrets are named, never held: `environment` has names of variables that the engine takes from whoever submits, or
    NAME=REFERENCE where the engine keeps them itself.
    """

    name: str
    recipe: str
    workdir: str
    machine: Machine
    changes: tuple[str, ...] = ()  # PATH=VALUE, as `--set` takes them
    processes: int = 1  # a host
    environment: tuple[str, ...] = ()
    restarts: int = 10  # how often a failed or preempted job is started again
    image: str | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    cluster: str | None = None
    project: str | None = None
    zone: str | None = None
    namespace: str | None = None
    queue: str | None = None
    priority: str | None = None
    reservation: str | None = None
    service_account: str | None = None
    volume: tuple[str, ...] = ()  # CLAIM:PATH
    spot: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"job name {self.name!r}: only a-z, 0-9 and -, at most 40, starting with a letter; see --name"
            )
        for given in self.environment:
            if not VARIABLE.fullmatch(given.partition("=")[0]):
                raise UserError(f"--env {given}: {given.partition('=')[0]!r} is no name of a variable")

    @property
    def hosts(self) -> int:
        """Of all slices."""
        return self.machine.hosts * self.machine.slices

    @property
    def command(self) -> str:
        """What every process runs, quoted for a shell."""
        changes = [word for change in self.changes for word in ("--set", change)]
        train = ["mixdistill", "train", self.recipe, *changes, "--workdir", self.workdir]
        joined = self.hosts * self.processes > 1
        return shlex.join([*train, *(["--distributed"] if joined else [])])

    def references(self) -> dict[str, str]:
        """Variable -> where the engine finds it. Raises `UserError` for a name without one."""
        for given in self.environment:
            if "=" not in given:
                raise UserError(f"--env {given}: this engine keeps secrets itself; write NAME=SECRET/KEY")
        return dict(given.split("=", 1) for given in self.environment)

    def names(self) -> tuple[str, ...]:
        """Variables that are taken from whoever submits. Raises `UserError` for one with a value."""
        for given in self.environment:
            if "=" in given:
                raise UserError(
                    f"--env {given}: a specification holds no values; export the variable and write --env "
                    f"{given.partition('=')[0]}"
                )
        return self.environment
