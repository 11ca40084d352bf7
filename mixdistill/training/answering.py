"""Who answers prompts: the sampler on the mesh that trains, or a server. Both give the same thing, on all processes."""

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mixdistill.data.placement import place, share
from mixdistill.generation.policy import Policy
from mixdistill.generation.remote import Answers, Server, complete_remotely
from mixdistill.generation.sampler import Completion, Generated, generated, padded, sample
from mixdistill.mesh import Rules
from mixdistill.students.student import Params, Student
from mixdistill.training.processes import by_first, on_host

Prompts = Sequence[Sequence[int]]
Notes = dict[str, collections.Counter[str]]  # a server's "versions" and "faults", counted; only on the first process


class Answered(NamedTuple):
    """Completions of n prompts; one of no tokens never came."""

    completions: list[Generated]
    drawn_at: np.ndarray  # int32 [n]: train step of the weights that drew it; -1: not told
    num_faults: int  # requests that failed, those that were repeated with success among them
    notes: Notes


# (params, prompts, tokens at most for each, seed, train step)
Answering = Callable[[Params, Prompts, np.ndarray, int, int], Answered]


class Limits(NamedTuple):
    """How prompts are answered, by whom ever."""

    max_prompt: int
    max_new: int
    policy: Policy
    eos_id: int


def by_sampler(student: Student, limits: Limits, mesh: Mesh, rules: Rules) -> Answering:
    """All prompts in one call, padded to `max_prompt`, so that one shape is compiled."""

    def answer(params: Params, prompts: Prompts, most: np.ndarray, seed: int, train_step: int) -> Answered:
        index, count = share(mesh, rules, len(prompts))
        own = slice(index * len(prompts) // count, (index + 1) * len(prompts) // count)
        lengths = np.array(list(map(len, prompts)), np.int32)
        local = {"tokens": padded(prompts, limits.max_prompt), "lengths": lengths, "most": most.astype(np.int32)}
        asked = place({name: array[own] for name, array in local.items()}, mesh, rules)
        drawing = {"max_new": limits.max_new, "eos_id": limits.eos_id, "policy": limits.policy, "seed": seed}
        rows = (asked["tokens"], asked["lengths"])
        found = sample(student, params, *rows, most=asked["most"], train_step=train_step, **drawing)
        drawn_at = np.full(len(prompts), train_step, np.int32)
        return Answered(_rows(on_host(found), limits.eos_id), drawn_at, 0, {})

    return answer


def by_server(server: Server, vocab_size: int, limits: Limits) -> Answering:
    """The first process asks, the others are told: a server may answer the same question in two ways."""

    def answer(params: Params, prompts: Prompts, most: np.ndarray, seed: int, train_step: int) -> Answered:
        del params, train_step
        drawing = {"max_new": most.tolist(), "eos_id": limits.eos_id, "policy": limits.policy, "seed": seed}
        empty, notes, made = (*_blank(len(prompts), limits.max_new), np.int32(0)), {}, None
        if jax.process_index() == 0:
            answers = complete_remotely(server, prompts, vocab_size=vocab_size, **drawing)
            made = (*_filled(empty[:2], answers), np.int32(answers.faults.total()))
            notes = {"versions": collections.Counter(filter(None, answers.versions)), "faults": answers.faults}
        completion, drawn_at, num_faults = by_first(made, empty)
        return Answered(_rows(completion, limits.eos_id), drawn_at, int(num_faults), notes)

    return answer


def train_step_of(version: str | None) -> int:
    """The train step that `mixdistill serve` puts at the end of the version of its weights; -1 where there is none."""
    last = (version or "").rpartition("-")[2]
    return int(last) if last.isascii() and last.isdigit() and len(last) < 10 else -1


def _rows(completion: Completion, eos_id: int) -> list[Generated]:
    return [generated(completion, row, eos_id) for row in range(len(completion.lengths))]


def _blank(rows: int, max_new: int) -> tuple[Completion, np.ndarray]:
    shape, confidence = (rows, max_new), np.zeros((rows, 0), np.float32)
    lengths, drawn_at = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
    completion = Completion(np.zeros(shape, np.int32), np.zeros(shape, np.float32), confidence, lengths)  # pyright: ignore[reportArgumentType]
    return completion, drawn_at


def _filled(blank: tuple[Completion, np.ndarray], answers: Answers) -> tuple[Completion, np.ndarray]:
    (tokens, logprobs, _, lengths), drawn_at = (tuple(map(np.array, blank[0])), blank[1].copy())
    for row, said in enumerate(answers.completions):
        if said is not None:
            lengths[row] = size = len(said.tokens)
            tokens[row, :size], logprobs[row, :size] = said.tokens, said.logprobs
            drawn_at[row] = train_step_of(answers.versions[row])
    return blank[0]._replace(tokens=tokens, logprobs=logprobs, lengths=lengths), drawn_at
