"""A recipe with everything it names opened and checked. Building a Job writes nothing, so bad input leaves no trace."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import optax
from jax.sharding import Mesh

from mixdistill.data.mixture import Mixture
from mixdistill.data.pipeline import Pipeline, make_pipeline
from mixdistill.errors import UserError
from mixdistill.mesh import make_mesh
from mixdistill.objective import Objective
from mixdistill.optimizers import make_optimizer
from mixdistill.recipe import Recipe, fingerprint, show
from mixdistill.students.student import Student
from mixdistill.traces.shards import Shards
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.training.checkpoint import Identity
from mixdistill.training.position import Position
from mixdistill.training.state import TrainState, init_state, initial_memory
from mixdistill.training.steer import READ_AHEAD
from mixdistill.training.step import TrainStep, compile_train_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Job:
    """What `run` needs, ready to use."""

    recipe: Recipe
    mesh: Mesh
    student: Student
    optimizer: optax.GradientTransformationExtraArgs
    objectives: tuple[Objective, ...]  # one a stage
    identity: Identity

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names in the order of teacher_id."""
        return self.identity.teachers

    def initial_state(self) -> TrainState:
        """Fresh parameters on the mesh."""
        memory = initial_memory(self.objectives)
        return init_state(self.student, self.optimizer, memory, self.recipe.seed, self.mesh, self.recipe.rules)

    def train_step(self, stage: int) -> TrainStep:
        """The compiled train step of a stage."""
        step = make_train_step(
            self.student,
            self.objectives[stage],
            self.optimizer,
            num_microbatches=self.recipe.num_microbatches,
            frozen=self.recipe.optimizer.frozen,
            mesh=self.mesh,
            rules=self.recipe.rules,
        )
        return compile_train_step(step, self.mesh, self.recipe.rules, self.student)

    def pipeline(self, position: Position) -> Pipeline:
        """The pipeline of the position's stage, where the position says."""
        pipeline = make_pipeline(
            self.recipe.stages[position.stage].source,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            read_ahead=READ_AHEAD,
        )
        if position.pipeline is not None:
            pipeline.set_state(position.pipeline)
        return pipeline


def build(recipe: Recipe, devices: Sequence[jax.Device] | None = None) -> Job:
    """Opens shards, makes the mesh, the student and the optimiser, and tries the objectives out on abstract arrays.

    Raises `UserError` for whatever is missing or does not fit.
    """
    mesh = make_mesh(recipe.mesh, devices)
    shards = _open_shards(recipe)
    student = recipe.build_student()
    _check_vocabulary(student, shards)
    for stage in recipe.stages:
        _check_rows(stage.source, recipe, mesh)
    teachers = shards[0].teachers
    objectives = [recipe.objective_of(index).with_teachers(teachers) for index in range(len(recipe.stages))]
    for objective in objectives:
        _check_routers(objective)
    identity = Identity(show(recipe), fingerprint(recipe), teachers, shards[0].manifest["tokenizer"])
    optimizer = make_optimizer(recipe.optimizer, student.axes, recipe.budget)
    return Job(recipe, mesh, student, optimizer, tuple(objectives), identity)


def _open_shards(recipe: Recipe) -> list[Shards]:
    """All shards of all stages, which must agree on tokenizer and teachers."""
    wanted = _tokenizer_hash(recipe.tokenizer)
    paths = dict.fromkeys(path for stage in recipe.stages for path in shard_paths(stage.source))
    shards = [Shards.open(path, tokenizer_hash=wanted) for path in paths]
    first = shards[0]
    for other in shards[1:]:
        if other.manifest["tokenizer"] != first.manifest["tokenizer"]:
            raise UserError(
                f"shards {first.path} and {other.path} were made with different tokenizers; prepare them alike"
            )
    return shards


def shard_paths(mixture: Mixture) -> tuple[str, ...]:
    """The folders that a mixture reads."""
    return (mixture.shards,) if isinstance(mixture.shards, str) else tuple(mixture.shards)


def _tokenizer_hash(tokenizer: str | None) -> str | None:
    if tokenizer is None or (len(tokenizer) == 64 and set(tokenizer) <= set("0123456789abcdef")):
        return tokenizer
    return Tokenizer.load(tokenizer).hash


def _check_vocabulary(student: Student, shards: Sequence[Shards]) -> None:
    size = shards[0].tokenizer.vocab_size
    if student.vocab_size < size:
        raise UserError(
            f"the student has a vocabulary of {student.vocab_size}, the tokenizer of {shards[0].path} one of {size}; "
            f"set the student's vocab_size to at least {size}"
        )


def _check_rows(mixture: Mixture, recipe: Recipe, mesh: Mesh) -> None:
    parts = math.prod(mesh.shape[axis] for axis in recipe.rules.mesh_axes("batch")) * recipe.num_microbatches
    if mixture.rows % parts:
        raise UserError(
            f"{mixture.rows} rows a train step do not divide over {parts} (devices that share the batch times "
            f"{recipe.num_microbatches} microbatches); change rows, mesh or num_microbatches"
        )


def _check_routers(objective: Objective) -> None:
    routers = [name for name, entry in objective.memory.items() if entry.every]
    if len(routers) > 1:
        raise UserError(f"memory entries {', '.join(routers)} all steer the mixture; keep one of them")
