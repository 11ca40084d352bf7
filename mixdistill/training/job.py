"""A recipe with everything it names opened and checked. Building a Job writes nothing, so bad input leaves no trace."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optax
from jax.sharding import Mesh

from mixdistill.data.beside import TOP_K
from mixdistill.data.corpus import Corpus, open_corpus, weight_vector
from mixdistill.data.mixture import Mixture
from mixdistill.data.pipeline import Pipeline
from mixdistill.data.placement import share
from mixdistill.errors import UserError, unknown
from mixdistill.generation.rollouts import SELF, Rollouts
from mixdistill.mesh import Device, make_mesh
from mixdistill.objective import Objective, Tally
from mixdistill.optimizers import make_optimizer
from mixdistill.recipe import Recipe, Stage, fingerprint, show
from mixdistill.students.student import Student
from mixdistill.traces.shards import Shards
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.training import average, branches, spending
from mixdistill.training.checkpoint import Identity
from mixdistill.training.grouping import Admission, admit_corpus, restricted
from mixdistill.training.held_out import Exam
from mixdistill.training.position import Position
from mixdistill.training.rollout_pipeline import RolloutPipeline, check_rollouts
from mixdistill.training.rounds import Rounds
from mixdistill.training.start import check_start, starting_params
from mixdistill.training.state import TrainState, abstract_state, init_state, initial_memory
from mixdistill.training.steer import READ_AHEAD, without
from mixdistill.training.step import TrainStep, compile_change, compile_train_step, make_train_step

EndOfBranch = Callable[[TrainState, Position, Mapping[str, Tally]], TrainState]


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
    admission: Admission | None = None  # whom `recipe` is restricted to

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
        recipe, memory = self.recipe, self._memory()
        params = None if recipe.start is None else starting_params(recipe, self.mesh)
        return init_state(self.student, self.optimizer, memory, recipe.seed, self.mesh, recipe.rules, params)

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state. Raises `UserError` if the mesh does not divide a parameter."""
        return abstract_state(self.student, self.optimizer, self._memory(), self.mesh, self.recipe.rules)

    def _memory(self) -> dict[str, Any]:
        """First values of all memory, some of them functions of the parameters."""
        memory = initial_memory(self.objectives)
        if rules := self.rounds.rules():
            memory[branches.MEMORY] = functools.partial(branches.initial, rules[0])
        if self.recipe.average:
            memory[average.MEMORY] = average.initial
        return memory

    @property
    def rounds(self) -> Rounds:
        """The branches of its stages."""
        return Rounds(self.recipe, self.corpora, self.teachers)

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
            teacher_gradients=self.recipe.stages[stage].teacher_gradients,
        )
        if self.recipe.stages[stage].branches:
            shape = {"turns": self.rounds.turns(stage), "count": self.rounds.count(stage)}
            examined = self.recipe.stages[stage].verifier is not None
            step = branches.in_branches(step, self.optimizer, self.rounds.rule(stage), **shape, examined=examined)
        if self.recipe.average:
            step = average.averaging(step, self.recipe.average)
        return compile_train_step(step, self.mesh, self.recipe.rules, self.student)

    def end_of_branch(self, stage: int) -> EndOfBranch:
        """(state, position, tallies) -> state: ends the branches that held-out problems are answered after, and leaves
        every other state as it is."""
        if self.recipe.stages[stage].verifier is None:
            return lambda state, position, tallies: state
        shape = {"turns": self.rounds.turns(stage), "count": self.rounds.count(stage)}
        end = branches.ending(self.optimizer, self.rounds.rule(stage), **shape)
        return self.rounds.examined(stage, compile_change(end, self.mesh, self.recipe.rules, self.student))

    def pipeline(
        self, position: Position, closed: Collection[str] = (), away: Collection[str] = ()
    ) -> Pipeline | RolloutPipeline:
        """The pipeline of the position's stage, where the position says. A stage begins without `closed` teachers, and
        those turned `away` never come into it."""
        source, corpus = source_of(self.recipe, position.stage), self.corpora[position.stage]
        part = share(self.mesh, self.recipe.rules, source.rows)
        if isinstance(source, Rollouts):
            itself = self.teachers.index(SELF)
            pipeline = RolloutPipeline(source, corpus, self.student, itself, self.mesh, self.recipe.rules, part)
        else:
            source = _without(source, corpus, {*closed, *away})
            pipeline = Pipeline(_emptied(corpus, away), source, *part, READ_AHEAD)
        if position.pipeline is not None:
            pipeline.set_state(position.pipeline)
        return pipeline

    def spends(self, stage: int, pipeline: Pipeline | RolloutPipeline) -> dict[str, Tally]:
        """What it costs to learn from the batch read last."""
        if isinstance(pipeline, RolloutPipeline):
            lengths = pipeline.lengths
        else:
            lengths = pipeline.corpus.footprint[list(pipeline.traces)].tolist()
        setting = self.recipe.stages[stage].teacher_gradients
        return spending.of_train_step(self.student, lengths, setting, len(self.teachers))

    def exam(self, stage: int) -> Exam:
        """The held-out problems of a stage. Raises `UserError` for shards that do not fit."""
        asking = self.recipe.stages[stage]
        turns = self.rounds.turns(stage) if asking.verifier else None
        return Exam(asking.held_out, self.student, self.identity.tokenizer, self.mesh, self.recipe.rules, turns)


def _emptied(corpus: Corpus, away: Collection[str]) -> Corpus:
    """The corpus with no trace to draw of these teachers."""
    gone = [name in away for name in corpus.teachers]
    pools = tuple(pool[:0] if empty else pool for pool, empty in zip(corpus.pools, gone, strict=True))
    counts = {name: {**c, "eligible": 0 if name in away else c["eligible"]} for name, c in corpus.counts.items()}
    return corpus._replace(pools=pools, counts=counts)


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
    text, corpora, admission = (show(recipe), fingerprint(recipe)), _open(recipe), None
    if recipe.admission is not None:
        admission = admit_corpus(corpora[0], recipe.admission)
        recipe = restricted(recipe, admission.teachers)
        corpora = _open(recipe)
    student = recipe.build_student()
    if recipe.start is not None:
        check_start(recipe)
    for corpus in corpora:
        _check_vocabulary(student, corpus)
    for stage in recipe.stages:
        _check_rows(stage.source.rows, recipe, mesh)
        if stage.held_out:
            share(mesh, recipe.rules, stage.held_out.problems)
    teachers = _teachers(recipe, corpora[0])
    objectives = [recipe.objective_of(index).with_teachers(teachers) for index in range(len(recipe.stages))]
    for stage, objective in zip(recipe.stages, objectives, strict=True):
        _check_routers(stage, objective)
        _check_fields(stage, objective)
        if stage.teacher_gradients and (towards := stage.teacher_gradients.towards) not in (None, *teachers):
            raise unknown("teacher that gradients are compared with", towards, teachers)
    tokenizer = corpora[0].shards[0].manifest["tokenizer"]
    identity = Identity(*text, teachers, tokenizer, command)
    optimizer = make_optimizer(recipe.trained, student.axes, recipe.budget)
    job = Job(recipe, mesh, student, optimizer, tuple(objectives), corpora, identity, admission)
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
    if corpus.tags is not None and corpus.tags.largest >= student.vocab_size:
        raise UserError(
            f"learned tags take tokens up to {corpus.tags.largest}, one a teacher after the tokenizer's own; set the "
            f"student's vocab_size to at least {corpus.tags.largest + 1}, or give the tags a text"
        )
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


def _check_fields(stage: Stage, objective: Objective) -> None:
    """A field beside the standard ones must be read from somewhere; rollouts bring their own."""
    if isinstance(stage.source, Mixture):
        if TOP_K.keys() & set(objective.batch_names) and "teacher_topk" not in stage.source.fields:
            raise UserError(
                f"the objective of stage {stage.name!r} reads a teacher's top K, which its mixture does not have: "
                'Mixture(fields={"teacher_topk": Scores(name="topk", context="topk-16")}), after `mixdistill score '
                "--store-topk 16`"
            )
        for name in objective.fields:
            if name not in stage.source.fields:
                raise UserError(
                    f"the objective of stage {stage.name!r} reads field {name!r}, which its mixture does not have; "
                    f"give it one: Mixture(fields={{{name!r}: Scores(...)}})"
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
