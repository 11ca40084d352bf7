"""A stage's batches from the student's own completions, with the interface of `data.pipeline.Pipeline`.

Rollouts of a batch depend on (seed, number of the batch, params) alone. The state holds the batch that is in use, so a
run that stops between two updates on it goes on with the same one; a batch not yet drawn is drawn again, identically.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mixdistill.data.corpus import Corpus
from mixdistill.data.fields import Batch
from mixdistill.data.placement import place
from mixdistill.errors import UserError
from mixdistill.generation.rewards import weighted_sum
from mixdistill.generation.rollouts import Drawn, Rollout, Rollouts, choose_groups, measures, spread, to_batch
from mixdistill.generation.sampler import Completion, Generated, generated, sample
from mixdistill.losses.policy_gradient import group_advantages
from mixdistill.mesh import Rules
from mixdistill.objective import Tally
from mixdistill.students.student import Params, Student
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.tokenizer import content_ids
from mixdistill.training.references import References


class Ask(NamedTuple):
    """What the student is asked: a recorded trace's problem (step 0), or its step after those before it."""

    trace_id: int
    step: int


class RolloutPipeline:
    """Batches `[rows, length]` of one stage, without an end; equal on all processes, which each place their rows."""

    def __init__(
        self,
        source: Rollouts,
        corpus: Corpus,
        student: Student,
        teacher_id: int,
        mesh: Mesh,
        rules: Rules,
        part: tuple[int, int] = (0, 1),
    ):
        self.source, self.corpus, self.student = source, corpus, student
        self.num_targets = 0
        self.tallies: dict[str, Tally] = {}
        self._teacher_id, self._mesh, self._rules, self._part = teacher_id, mesh, rules, part
        self._content = content_ids(corpus.shards[0].tokenizer)
        self._asks = find_asks(source, corpus)
        self._references = References(source.references, corpus)
        self._state: dict[str, Any] = {"batch": 0, "cursor": 0, "used": 0}
        self._held: Batch | None = None

    def read(self, params: Params) -> Batch:
        """The next batch for a student with these parameters: this process's rows."""
        self.tallies = {}
        if self._held is None or self._state["used"] == self.source.updates:
            self._held = self._draw(params)
            self._state["used"] = 0
        self._state["used"] += 1
        self.num_targets = int(self._held["valid"].sum())
        index, count = self._part
        rows = self.source.rows // count
        return {name: array[index * rows : (index + 1) * rows] for name, array in self._held.items()}

    def get_state(self) -> dict[str, Any]:
        """JSON values: where the next batch begins, and the batch that is in use while it has updates left."""
        in_use = self._held is not None and 0 < self._state["used"] < self.source.updates
        return {**self._state, "held": _to_json(self._held) if in_use and self._held else None}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `get_state` was called."""
        found = dict(state)
        held = found.pop("held")
        self._state, self._held = found, None if held is None else _from_json(held)

    def close(self) -> None:
        """Nothing runs beside the loop."""

    def _draw(self, params: Params) -> Batch:
        """As many rounds of prompts as it takes to find groups whose rewards differ."""
        began, source = time.perf_counter(), self.source
        rounds: list[Drawn] = []
        for _ in range(source.max_rounds):
            rounds.append(self._round(params, len(rounds)))
            total = np.concatenate([one.rewards.total for one in rounds]).reshape(-1, source.samples)
            if (spread(total) > source.min_spread).sum() >= source.prompts:
                break
        chosen = choose_groups(total, source.prompts, source.min_spread)
        self._state["batch"] += 1
        drawn = _take(rounds, chosen, source.samples)
        drawn = drawn._replace(reference=self._references.logprobs(drawn))
        advantage = group_advantages(drawn.rewards.total.reshape(-1, source.samples), normalise=source.normalise)
        found = measures(drawn, source.samples) | {
            "rollout/rounds": (float(len(rounds)), 1.0),
            "rollout/tokens": (float(sum(len(s.tokens) for one in rounds for s in one.completions)), 1.0),
            "rollout/seconds": (time.perf_counter() - began, 1.0),
        }
        self.tallies = {name: Tally(*map(np.asarray, pair)) for name, pair in found.items()}  # pyright: ignore[reportArgumentType]
        return to_batch(drawn, advantage.reshape(-1), self._teacher_id, self._content, source.length)

    def _round(self, params: Params, number: int) -> Drawn:
        source, shards = self.source, self.corpus.shards[0]
        asks = [self._next_ask() for _ in range(source.prompts)]
        encoded = [self._trace(ask) for ask in asks]
        prompts = [_prompt(trace, ask) for trace, ask in zip(encoded, asks, strict=True)]
        rows = [prompt for prompt in prompts for _ in range(source.samples)]
        seed = [source.seed, self._state["batch"], number]
        completions = self._complete(params, rows, int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1)
        rollouts = []
        for row, said in enumerate(completions):
            group = row // source.samples
            text = shards.tokenizer.decode((said.tokens[:-1] if said.ended else said.tokens).tolist())
            rollouts.append(Rollout(encoded[group].trace, asks[group].step, text, said.ended, len(said.tokens)))
        rewards = weighted_sum({name: judge(rollouts) for name, judge in source.judges.items()}, source.weights)
        trace_id = np.repeat(np.array([ask.trace_id for ask in asks], np.int32), source.samples)
        return Drawn(trace_id, rows, completions, rewards)

    def _next_ask(self) -> Ask:
        epoch, index = divmod(self._state["cursor"], len(self._asks))
        self._state["cursor"] += 1
        order = np.random.default_rng((self.source.seed, epoch)).permutation(len(self._asks))
        return self._asks[int(order[index])]

    def _trace(self, ask: Ask) -> EncodedTrace:
        folder, index = self.corpus.locate(ask.trace_id)
        return self.corpus.shards[folder][index]

    def _complete(self, params: Params, prompts: list[list[int]], seed: int) -> list[Generated]:
        source = self.source
        tokens = np.zeros((len(prompts), source.max_prompt), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        index, count = self._part
        own = slice(index * len(prompts) // count, (index + 1) * len(prompts) // count)
        asked = {"tokens": tokens[own], "lengths": np.array(list(map(len, prompts)), np.int32)[own]}
        asked = place(asked, self._mesh, self._rules)
        eos_id = self.corpus.shards[0].tokenizer.eos_id
        drawing = {"max_new": source.max_new, "eos_id": eos_id, "policy": source.policy, "seed": seed}
        found = _on_host(sample(self.student, params, asked["tokens"], asked["lengths"], **drawing))
        return [generated(found, row, eos_id) for row in range(len(prompts))]


def find_asks(source: Rollouts, corpus: Corpus) -> list[Ask]:
    """All that can be asked: problems once each, whoever solved them; or every step of every trace. Raises `UserError`
    when nothing fits."""
    pool = np.sort(np.concatenate([*corpus.pools, np.zeros(0, np.int64)])).astype(int)
    asks = list(_problems(pool, corpus) if source.instances == "problems" else _steps(pool, corpus, source.max_prompt))
    num_prompt = np.concatenate([shards.index["num_prompt"] for shards in corpus.shards])
    asks = [ask for ask in asks if num_prompt[ask.trace_id] <= source.max_prompt]
    if not asks:
        raise UserError(f"no prompt of {', '.join(source.asked.folders)} fits in max_prompt={source.max_prompt} tokens")
    return asks


def _problems(pool: np.ndarray, corpus: Corpus):
    seen = set()
    for trace_id in map(int, pool):
        folder, index = corpus.locate(trace_id)
        problem = (folder, int(corpus.shards[folder].index["problem"][index]))
        if problem not in seen:
            seen.add(problem)
            yield Ask(trace_id, 0)


def _steps(pool: np.ndarray, corpus: Corpus, max_prompt: int):
    """Steps 1 .. N of each trace whose beginning fits in a prompt."""
    for trace_id in map(int, pool):
        folder, index = corpus.locate(trace_id)
        step_id = corpus.shards[folder].arrays(index).step_id
        first = np.searchsorted(step_id, np.arange(1, step_id[-1] + 1))
        yield from (Ask(trace_id, step) for step, start in enumerate(first, start=1) if start <= max_prompt)


def _prompt(trace: EncodedTrace, ask: Ask) -> list[int]:
    end = trace.num_prompt if ask.step == 0 else int(np.searchsorted(trace.step_id, ask.step))
    return trace.tokens[:end].tolist()


def _take(rounds: list[Drawn], groups: np.ndarray, samples: int) -> Drawn:
    """The rows of these groups, counted over all rounds."""
    rows = (groups[:, None] * samples + np.arange(samples)).reshape(-1)
    prompts = [prompt for one in rounds for prompt in one.prompts]
    completions = [said for one in rounds for said in one.completions]
    parts = {
        name: np.concatenate([one.rewards.parts[name] for one in rounds])[rows] for name in rounds[0].rewards.parts
    }
    total = np.concatenate([one.rewards.total for one in rounds])[rows]
    trace_id = np.concatenate([one.trace_id for one in rounds])[rows]
    rewards = rounds[0].rewards._replace(total=total, parts=parts)
    return Drawn(trace_id, [prompts[row] for row in rows], [completions[row] for row in rows], rewards)


def _on_host(found: Completion) -> Completion:
    if all(array.is_fully_addressable for array in found):
        return jax.device_get(found)
    return multihost_utils.process_allgather(found, tiled=True)


def _to_json(batch: Batch) -> dict[str, Any]:
    # float32 passes through Python floats and JSON unchanged; NaN is written as null, for JSON has none.
    return {
        name: {"dtype": array.dtype.name, "rows": [[None if x != x else x for x in row] for row in array.tolist()]}
        for name, array in batch.items()
    }


def _from_json(found: dict[str, Any]) -> Batch:
    return {
        name: np.array(
            [[np.nan if value is None else value for value in row] for row in entry["rows"]], np.dtype(entry["dtype"])
        )
        for name, entry in found.items()
    }
