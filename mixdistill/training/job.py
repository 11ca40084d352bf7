"""A recipe with everything it names opened and checked. Building a Job writes nothing, so bad input leaves no trace."""

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np
import optax
from jax.sharding import Mesh

from mixdistill.data.corpus import Corpus, open_corpus, weight_vector
from mixdistill.data.mixture import Mixture
from mixdistill.data.pipeline import Pipeline
from mixdistill.data.placement import share
from mixdistill.errors import UserError
from mixdistill.generation.rollouts import SELF, Rollouts
from mixdistill.mesh import Device, make_mesh
from mixdistill.objective import Objective
from mixdistill.optimizers import make_optimizer
from mixdistill.recipe import Recipe, Stage, fingerprint, show
from mixdistill.students.student import Student
from mixdistill.traces.shards import Shards
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.training.checkpoint import Identity
from mixdistill.training.held_out import Exam
from mixdistill.training.position import Position
from mixdistill.training.rollout_pipeline import RolloutPipeline, check_rollouts
from mixdistill.training.start import check_start, starting_params
from mixdistill.training.state import TrainState, abstract_state, init_state, initial_memory
from mixdistill.training.steer import READ_AHEAD, without
from mixdistill.training.step import TrainStep, compile_train_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Job:
    """What `run` needs, ready to use."""

    recipe: Recipe
    mesh: Mesh
    student: Student
    optimizer: optax.GradientTransformationExtraArgs
    objectives: tuple[Objective, ...]  # one a stage
    corpora: tuple[Corpus, ...]  # one a stage
    identity: Identity

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names in the order of teacher_id."""
        return self.identity.teachers

    @property
    def shards(self) -> Shards:
        """Whose tokenizer and template the run uses."""
        return self.corpora[0].shards[0]

    def initial_state(self) -> TrainState:
        """Fresh parameters on the mesh, or those that the recipe starts from."""
        recipe, memory = self.recipe, initial_memory(self.objectives)
        params = None if recipe.start is None else starting_params(recipe, self.mesh)
        return init_state(self.student, self.optimizer, memory, recipe.seed, self.mesh, recipe.rules, params)

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state. Raises `UserError` if the mesh does not divide a parameter."""
        memory = initial_memory(self.objectives)
        return abstract_state(self.student, self.optimizer, memory, self.mesh, self.recipe.rules)

    def train_step(self, stage: int) -> TrainStep:
        """The compiled train step of a stage."""
        step = make_train_step(
            self.student,
            self.objectives[stage],
            self.optimizer,
            num_microbatches=self.recipe.num_microbatches,
            frozen=self.recipe.trained.frozen,
            mesh=self.mesh,
            rules=self.recipe.rules,
        )
        return compile_train_step(step, self.mesh, self.recipe.rules, self.student)

    def pipeline(self, position: Position, closed: Collection[str] = ()) -> Pipeline | RolloutPipeline:
        """The pipeline of the position's stage, where the position says. A stage begins without `closed` teachers."""
        source, corpus = source_of(self.recipe, position.stage), self.corpora[position.stage]
        part = share(self.mesh, self.recipe.rules, source.rows)
        if isinstance(source, Rollouts):
            itself = self.teachers.index(SELF)
            pipeline = RolloutPipeline(source, corpus, self.student, itself, self.mesh, self.recipe.rules, part)
        else:
            pipeline = Pipeline(corpus, _without(source, corpus, closed), *part, READ_AHEAD)
        if position.pipeline is not None:
            pipeline.set_state(position.pipeline)
        return pipeline

    def exam(self, stage: int) -> Exam:
        """The held-out problems of a stage. Raises `UserError` for shards that do not fit."""
        setting = self.recipe.stages[stage].held_out
        return Exam(setting, self.student, self.identity.tokenizer, self.mesh, self.recipe.rules)


def _without(source: Mixture, corpus: Corpus, closed: Collection[str]) -> Mixture:
    if not closed:
        return source
    weights = dict(zip(corpus.teachers, weight_vector(corpus, source).tolist(), strict=True))
    return dataclasses.replace(source, weights=without(weights, closed))


def source_of(recipe: Recipe, stage: int) -> Mixture | Rollouts:
    """The source of a stage, with the seed that its data order has: another for every seed of the recipe, and for
    every stage, so that two stages with one source do not repeat each other."""
    source = recipe.stages[stage].source
    seed = np.random.SeedSequence([recipe.seed, stage, source.seed]).generate_state(1)
    return dataclasses.replace(source, seed=int(seed[0]))


def build(recipe: Recipe, devices: Sequence[Device] | None = None, command: str = "") -> Job:
    """Opens shards, makes the mesh, the student and the optimiser, and tries the objectives out on abstract arrays.

    Raises `UserError` for whatever is missing or does not fit.
    """
    mesh = make_mesh(recipe.mesh, devices)
    corpora = _open(recipe)
    student = recipe.build_student()
    if recipe.start is not None:
        check_start(recipe)
    _check_vocabulary(student, corpora[0])
    for stage in recipe.stages:
        _check_rows(stage.source.rows, recipe, mesh)
        if stage.held_out:
            share(mesh, recipe.rules, stage.held_out.problems)
    teachers = _teachers(recipe, corpora[0])
    objectives = [recipe.objective_of(index).with_teachers(teachers) for index in range(len(recipe.stages))]
    for stage, objective in zip(recipe.stages, objectives, strict=True):
        _check_routers(stage, objective)
    tokenizer = corpora[0].shards[0].manifest["tokenizer"]
    identity = Identity(show(recipe), fingerprint(recipe), teachers, tokenizer, command)
    optimizer = make_optimizer(recipe.trained, student.axes, recipe.budget)
    job = Job(recipe, mesh, student, optimizer, tuple(objectives), corpora, identity)
    job.abstract_state()
    for index, (stage, corpus) in enumerate(zip(recipe.stages, corpora, strict=True)):
        job.exam(index)
        if isinstance(stage.source, Rollouts):
            check_rollouts(stage.source, corpus)
    return job


def _open(recipe: Recipe) -> tuple[Corpus, ...]:
    """The corpus of each stage; they must agree on tokenizer and teachers, or a token or a teacher_id would change its
    meaning in the middle of a run."""
    wanted = _tokenizer_hash(recipe.tokenizer)
    corpora = [_open_stage(stage.name, asked(stage.source)) for stage in recipe.stages]
    for stage, corpus in zip(recipe.stages, corpora, strict=True):
        found = corpus.shards[0].manifest["tokenizer"]
        expected = wanted or corpora[0].shards[0].manifest["tokenizer"]
        if found != expected:
            raise UserError(
                f"shards {corpus.shards[0].path} were made with tokenizer {found[:12]}, "
                f"the {'recipe names' if wanted else 'first stage has'} {expected[:12]}; prepare them again with that "
                "tokenizer, or change the recipe"
            )
        if corpus.teachers != corpora[0].teachers:
            raise UserError(
                f"stage {stage.name!r} has shards of teachers {', '.join(corpus.teachers)}, the first stage of "
                f"{', '.join(corpora[0].teachers)}; list the same folders in both and choose with weights"
            )
    return tuple(corpora)


def _open_stage(name: str, source: Mixture) -> Corpus:
    corpus = open_corpus(source)
    weight_vector(corpus, source)  # raises for unknown and empty teachers
    for teacher in source.teachers or ():
        if not corpus.counts[teacher]["eligible"]:
            raise UserError(
                f"stage {name!r} wants teacher {teacher!r}, who has no trace in rows of {source.length} tokens, folds "
                f"{source.folds or 'all'}, verdicts {source.verdicts or 'all'}; leave the teacher out, or change these"
            )
    return corpus


def asked(source: Mixture | Rollouts) -> Mixture:
    """The recorded traces that a source reads: for training, or for their prompts."""
    return source.asked if isinstance(source, Rollouts) else source


def _teachers(recipe: Recipe, corpus: Corpus) -> tuple[str, ...]:
    """Those of the shards, and the student itself where it has rollouts."""
    if not any(isinstance(stage.source, Rollouts) for stage in recipe.stages):
        return corpus.teachers
    if SELF in corpus.teachers:
        raise UserError(f"a teacher of {corpus.shards[0].path} is named {SELF!r}, as rollouts are; rename that teacher")
    return (*corpus.teachers, SELF)


def _tokenizer_hash(tokenizer: str | None) -> str | None:
    if tokenizer is None or (len(tokenizer) == 64 and set(tokenizer) <= set("0123456789abcdef")):
        return tokenizer
    return Tokenizer.load(tokenizer).hash


def _check_vocabulary(student: Student, corpus: Corpus) -> None:
    shards = corpus.shards[0]
    size = shards.manifest["vocab_size"]
    if student.vocab_size < size:
        raise UserError(
            f"the student has a vocabulary of {student.vocab_size}, the tokenizer of {shards.path} one of {size}; "
            f"set the student's vocab_size to at least {size}"
        )


def _check_rows(rows: int, recipe: Recipe, mesh: Mesh) -> None:
    parts = math.prod(mesh.shape[axis] for axis in recipe.rules.mesh_axes("batch")) * recipe.num_microbatches
    if rows % parts:
        raise UserError(
            f"{rows} rows a train step do not divide over {parts} (devices that share the batch times "
            f"{recipe.num_microbatches} microbatches); change rows, mesh or num_microbatches"
        )


def _check_routers(stage: Stage, objective: Objective) -> None:
    routers = [name for name, entry in objective.memory.items() if entry.every]
    if routers and isinstance(stage.source, Rollouts):
        raise UserError(
            f"stage {stage.name!r} has rollouts, which have no mixture, but its objective has router {routers[0]}; "
            "give the stage an objective without"
        )
    if len(routers) > 1:
        raise UserError(f"memory entries {', '.join(routers)} all steer the mixture; keep one of them")
