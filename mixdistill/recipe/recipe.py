"""Recipe and Stage: everything that decides what a run computes, checked when it is built."""

import dataclasses
from collections.abc import Callable, Mapping

from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.generation.rollouts import HeldOut, Rollouts
from mixdistill.mesh import FSDP, Rules
from mixdistill.objective import Objective
from mixdistill.optimizers import Budget, OptimizerConfig
from mixdistill.recipe.guard import Guard
from mixdistill.recipe.handover import Rule
from mixdistill.recipe.parameters import Compatible, Merge, PilotMix, TeacherGradients
from mixdistill.students.adapters import FROZEN, Lora, with_adapters
from mixdistill.students.config import DecoderConfig
from mixdistill.students.decoder import make_student
from mixdistill.students.student import Student

# Where and how visibly a run happens, not what it computes: no part of its identity.
MACHINE = ("mesh", "rules", "num_microbatches")
LOGGING = ("log_every", "checkpoint_every", "keep_checkpoints")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stretch of a curriculum: `num_train_steps`, or as many as it takes to see `num_tokens` targets.

    The train step that reaches the token budget is the last one: a stage sees at most one batch more than it asks for.
    A rule of `until` ends it earlier, one train step after the one whose tallies it has seen.
    """

    name: str
    num_train_steps: int | None
    source: Mixture | Rollouts  # recorded traces, or the student's own with a reward
    objective: Objective | None = None  # None: as in the stage before
    num_tokens: int | None = None  # targets seen, whether a gate keeps them or not
    until: tuple[Rule, ...] = ()
    held_out: HeldOut | None = None  # problems to be answered meanwhile
    branches: Merge | PilotMix | None = None  # one for each teacher of the mixture, which says how long (turns)
    teacher_gradients: TeacherGradients | None = None  # compared in every train step

    def __post_init__(self):
        if (self.num_train_steps is None) == (self.num_tokens is None):
            raise UserError(f"stage {self.name!r} needs either num_train_steps or num_tokens, and not both")
        if self.budget.size < 1:
            raise UserError(f"stage {self.name!r} has {self.budget.size} {self.budget.unit}; it needs at least 1")
        for rule in self.until:
            self._check_made(rule.tally)
        if self.branches is not None and not (isinstance(self.source, Mixture) and self.source.turns):
            raise UserError(f"stage {self.name!r} trains branches; its source needs turns: Mixture(turns=train_steps)")
        if isinstance(self.branches, PilotMix) != bool(isinstance(self.source, Mixture) and self.source.anchor):
            raise UserError(
                f"stage {self.name!r}: pilots and an anchor go together: Mixture(turns=..., anchor=TEACHER)"
            )
        controlled = isinstance(self.source, Mixture) and self.source.control
        if isinstance(self.branches, PilotMix) and controlled != (self.verifier is not None):
            raise UserError(
                f"stage {self.name!r}: pilots judged by the accuracy of held-out problems need a control, and those "
                f"judged by own NLL have none: Mixture(control={not controlled}), or PilotMix(judge='own_nll')"
            )

    def _check_made(self, tally: str) -> None:
        """A rule on a tally that nobody makes would wait for ever."""
        if tally.startswith("held_out/"):
            made = [f"held_out/{name}" for name in (*self.held_out.judges, "ended", "length")] if self.held_out else []
            if tally not in made:
                raise UserError(
                    f"stage {self.name!r} is to end by {tally!r}, and its held-out problems make "
                    f"{', '.join(made) or 'nothing: give it held_out=HeldOut(...)'}"
                )
        if tally.startswith("rollout/") and not isinstance(self.source, Rollouts):
            raise UserError(f"stage {self.name!r} is to end by {tally!r}, and its source is no Rollouts")

    @property
    def verifier(self) -> str | None:
        """The judge of held-out problems that pilots are admitted by, if there are such pilots."""
        if not isinstance(self.branches, PilotMix):
            return None
        return self.branches.verifier(tuple(self.held_out.judges) if self.held_out else ())

    @property
    def budget(self) -> Budget:
        """How long the stage is."""
        if self.num_tokens is not None:
            return Budget(self.num_tokens, "tokens")
        assert self.num_train_steps is not None
        return Budget(self.num_train_steps, "train_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run. Vary one with `dataclasses.replace`; nothing in it is read from anywhere else.

    `student` is a DecoderConfig, or a function without arguments that returns a Student. Raises `UserError` when parts
    do not fit; names that losses and gates read were already checked when the Objectives were built.
    """

    name: str
    student: DecoderConfig | Callable[[], Student]
    stages: tuple[Stage, ...]
    admission: Compatible | None = None  # which teachers are mixed at all; None: all that the stages name
    start: str | None = None  # folder of published weights that training starts from; None: random
    adapters: Lora | None = None  # trained in place of the student, whose weights are then frozen
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    average: float | None = None  # decay of a running mean of the parameters, which is judged in place of them
    seed: int = 0  # of the parameters and of the order of the data
    guard: Guard = dataclasses.field(default_factory=Guard)
    tokenizer: str | None = None  # a tokenizer.json, or its hash: the shards must have been made with it
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"fsdp": -1})
    rules: Rules = FSDP
    num_microbatches: int = 1  # a train step's rows in this many passes, for models too large for one
    log_every: int = 10  # train steps
    checkpoint_every: int = 500  # train steps; the last one is always kept
    keep_checkpoints: int = 2

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise UserError(f"recipe {self.name!r} has no stages")
        if self.start is not None and not isinstance(self.student, DecoderConfig):
            raise UserError(
                f"recipe {self.name!r} starts from {self.start}, which needs a DecoderConfig as student: "
                "read_config(folder) of mixdistill.students.weights gives the one that fits"
            )
        if self.admission is not None and not isinstance(self.stages[0].source, Mixture):
            raise UserError(
                f"recipe {self.name!r} admits teachers by their traces, and its first stage draws from the student"
            )
        if self.stages[0].objective is None:
            raise UserError(f"stage {self.stages[0].name!r} is the first and needs an objective")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise UserError(f"recipe {self.name!r} has two stages of one name: {', '.join(names)}")
        if len({stage.budget.unit for stage in self.stages}) > 1:
            raise UserError(
                f"stages of recipe {self.name!r} mix num_train_steps and num_tokens; use one of them in all"
            )
        if self.average is not None and not 0 < self.average < 1:
            raise UserError(f"recipe average is {self.average}; a decay lies between 0 and 1, such as 0.999")
        if self.average is not None and any(stage.branches for stage in self.stages):
            raise UserError(
                f"recipe {self.name!r} averages parameters and has branches, whose parameters jump; drop one"
            )
        for field in ("num_microbatches", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, field) < 1:
                raise UserError(f"recipe {field} is {getattr(self, field)}; it must be at least 1")
        for stage in self.stages:
            if stage.source.rows % self.num_microbatches:
                raise UserError(
                    f"stage {stage.name!r} has {stage.source.rows} rows a train step, which {self.num_microbatches} "
                    "microbatches do not divide; change rows or num_microbatches"
                )

    @property
    def budget(self) -> Budget:
        """How long the whole run is; the learning rate reads the share of it that is spent."""
        return Budget(sum(stage.budget.size for stage in self.stages), self.stages[0].budget.unit)

    def objective_of(self, index: int) -> Objective:
        """The objective in force in stage `index`."""
        given = [stage.objective for stage in self.stages[: index + 1] if stage.objective is not None]
        return given[-1]

    def build_student(self) -> Student:
        """The model as pure functions, with adapters if there are."""
        student = self.build_base()
        return with_adapters(student, self.adapters) if self.adapters else student

    def build_base(self) -> Student:
        """The model without adapters."""
        return make_student(self.student) if isinstance(self.student, DecoderConfig) else self.student()

    @property
    def trained(self) -> OptimizerConfig:
        """The optimiser, with what is under adapters frozen."""
        if self.adapters is None:
            return self.optimizer
        return dataclasses.replace(self.optimizer, frozen=(*self.optimizer.frozen, FROZEN))
