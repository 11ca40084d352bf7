"""Which teachers go together, from their traces alone: continuation conflict, and the groups that follow from it.

No student and no training token; what it costs, tokens read and CPU seconds, is part of the answer.
"""

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mixdistill.data.corpus import Corpus, problem_numbers
from mixdistill.data.mixture import Mixture
from mixdistill.diagnostics import groups as grouping
from mixdistill.diagnostics.conflict import WIDTH, ConflictMatrix, Tokens, continuation_conflict
from mixdistill.diagnostics.content import content_traces, in_order_of, sample_traces
from mixdistill.diagnostics.groups import Group, compatible_groups
from mixdistill.diagnostics.undecidable import THRESHOLD, Undecidable
from mixdistill.errors import UserError
from mixdistill.recipe import Recipe, Stage
from mixdistill.recipe.parameters import Compatible
from mixdistill.traces.encode import encode_prompt
from mixdistill.traces.shards import Shards
from mixdistill.traces.tokenizer import content_ids
from mixdistill.training.asks import read_trace
from mixdistill.training.processes import by_first

NUM_TRACES = 1000  # of each teacher, for the conflict matrix; below 200 it fails


@dataclasses.dataclass(frozen=True)
class Admission:
    """The groups to choose from, best first, and what they follow from."""

    groups: tuple[Group, ...]
    conflict: ConflictMatrix
    threshold: float  # bits of conflict above which two teachers are kept apart
    anchor: str | None = None
    anchor_nll: float = math.nan  # of its student on its content tokens, nats; above 0.15 the disagreements mean little
    disagreement: Mapping[str, Undecidable] = dataclasses.field(default_factory=dict)  # of each other with the anchor
    tokens: int = 0  # seen by the anchor's student
    read: int = 0  # tokens of the traces that were compared
    cpu_seconds: float = 0.0  # of all threads

    @property
    def teachers(self) -> tuple[str, ...]:
        """The best group."""
        return self.groups[0].teachers

    @property
    def apart(self) -> tuple[str, ...]:
        """All others."""
        return tuple(name for name in self.conflict.teachers if name not in self.teachers)


def admit(
    shards: Shards,
    prompts: Sequence[str] = (),
    *,
    num_traces: int = NUM_TRACES,
    threshold: float = grouping.THRESHOLD,
    seed: int = 0,
) -> Admission:
    """By continuation conflict.

    `prompts` state the target problems: a group is the better the more of them are of a kind (a length, in tokens) that
    it has traces for. Without any, all kinds of prompts in the shards count alike.
    """
    began, chosen = time.process_time(), sample_traces(shards, num_traces, seed=seed)
    read = sum(int(shards.index["num_tokens"][numbers].sum()) for numbers in chosen.values())
    traces, kinds = content_traces(shards, num_traces, seed=seed), prompt_kinds(shards)
    return _admission(traces, kinds, wanted_kinds(shards, kinds, prompts), threshold, read, began)


def admit_corpus(corpus: Corpus, setting: Compatible) -> Admission:
    """`admit` for what a stage of a recipe may draw. Teachers that have nothing to draw are not compared. On several
    processes the first one decides."""
    began, shards = time.process_time(), corpus.shards[0]
    random, is_content = np.random.default_rng(setting.seed), content_ids(shards.tokenizer)
    problem = problem_numbers(corpus.shards)
    place = random.permutation(problem.max(initial=-1) + 1)
    lengths = np.concatenate([one.index["num_prompt"] for one in corpus.shards])
    traces, kinds, read = {}, {}, 0
    for name, pool in zip(corpus.teachers, corpus.pools, strict=True):
        if not len(pool):
            continue
        numbers = in_order_of(place, problem, random.permutation(pool)[: setting.num_traces])
        found = [read_trace(corpus, int(number)) for number in numbers]
        completions = [trace.tokens[trace.num_prompt :] for trace in found]
        traces[name] = [tokens[is_content[tokens]] for tokens in completions]
        kinds[name] = set(lengths[pool].tolist())
        read += sum(len(trace.tokens) for trace in found)
    return _admission(traces, kinds, wanted_kinds(shards, kinds, setting.prompts), setting.threshold, read, began)


def restricted(recipe: Recipe, teachers: Sequence[str]) -> Recipe:
    """The recipe with recorded traces of these teachers alone. Raises `UserError` for a stage that none of them is in,
    or whose anchor is none of them."""
    return dataclasses.replace(recipe, stages=tuple(_restricted(stage, teachers) for stage in recipe.stages))


def _restricted(stage: Stage, teachers: Sequence[str]) -> Stage:
    source = stage.source
    if not isinstance(source, Mixture):
        return stage  # the student's own completions: no teacher is in them
    names = [name for name in source.teachers or teachers if name in teachers]
    weights = source.weights and {name: weight for name, weight in source.weights.items() if name in teachers}
    if not names or (source.weights and not any((weights or {}).values())) or source.anchor not in (None, *names):
        raise UserError(
            f"stage {stage.name!r} is left without its teachers: {_listed(list(teachers))} are compatible, all others "
            "are kept apart; change the stage, or the recipe's admission"
        )
    return dataclasses.replace(stage, source=dataclasses.replace(source, teachers=tuple(names), weights=weights))


def _admission(
    traces: Tokens,
    kinds: Mapping[str, Collection[int]],
    wanted: Mapping[int, float],
    threshold: float,
    read: int,
    began: float,
) -> Admission:
    matrix = continuation_conflict(traces)
    # Rounding may differ between machines, and a score may lie on the threshold.
    score = by_first(matrix.score, matrix.score)
    found = compatible_groups(matrix.teachers, score, kinds, wanted, threshold=threshold)
    matrix = matrix._replace(score=score)
    return Admission(tuple(found), matrix, threshold, read=read, cpu_seconds=time.process_time() - began)


def prompt_kinds(shards: Shards) -> dict[str, set[int]]:
    """The lengths of the prompts (tokens) that each teacher has traces for."""
    teacher, length = shards.index["teacher_id"], shards.index["num_prompt"]
    return {name: set(np.unique(length[teacher == k]).tolist()) for k, name in enumerate(shards.teachers)}


def wanted_kinds(shards: Shards, kinds: Mapping[str, Collection[int]], prompts: Sequence[str]) -> dict[int, float]:
    """How many of the prompts are of each kind (a length, in tokens); without prompts, all kinds alike."""
    if not prompts:
        return dict.fromkeys(set().union(*kinds.values()), 1.0)
    lengths = [len(encode_prompt(shards.tokenizer, prompt, shards.template)) for prompt in prompts]
    return {length: float(count) for length, count in collections.Counter(lengths).items()}


def reason(admission: Admission) -> str:
    """One sentence: which teachers were kept apart, and why."""
    together, apart = _listed(admission.teachers), admission.apart
    if not apart:
        return f"No teacher was kept apart: {together} do not conflict."
    head = f"{_listed(apart)} {'was' if len(apart) == 1 else 'were'} kept apart from {together}"
    if admission.anchor is not None:
        torn = [f"{name} {admission.disagreement[name].undecidable_late:.2f}" for name in apart]
        return f"{head}: undecidable disagreement with {admission.anchor} is {_listed(torn)} (limit {THRESHOLD:.2f})."
    scores = [admission.conflict.between(a, b) for a, b in itertools.combinations(admission.teachers, 2)]
    return (
        f"{head}, because they continue the same {WIDTH} content tokens differently: conflict "
        f"{_listed([_worst(admission, name) for name in apart])}, against {max(scores, default=0.0):.2f} bits within "
        f"{together} (limit {admission.threshold:.2f})."
    )


def _worst(admission: Admission, name: str) -> str:
    """The teacher of the group that this one conflicts with most."""
    if any(math.isnan(admission.conflict.between(name, other)) for other in admission.teachers):
        return f"{name} unknown for want of traces"
    score, other = max((admission.conflict.between(name, other), other) for other in admission.teachers)
    return f"{other}-{name} {score:.2f}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def decision(admission: Admission) -> dict[str, Any]:
    """A line of the ledger."""
    return {
        "train_step": 0,
        "event": "admission",
        "together": list(admission.teachers),
        "apart": list(admission.apart),
        "reason": reason(admission),
        "read": admission.read,
        "cpu_seconds": round(admission.cpu_seconds, 3),
    }


def cost(admission: Admission) -> str:
    """What it took, in words."""
    return f"{admission.read:,} tokens of traces read in {admission.cpu_seconds:.2f} CPU seconds"
