"""A stage's batches from the student's own completions, with the interface of `data.pipeline.Pipeline`.

Rollouts of a batch depend on (seed, number of the batch, train step, params) alone. The state holds the batch that is
in use, so a run that stops between two updates on it goes on with the same one; a batch not yet drawn is drawn again,
identically (from a server, as far as the server does the same twice).
"""

import base64
import collections
import functools
import io
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mixdistill.data.corpus import Corpus
from mixdistill.data.fields import Batch
from mixdistill.generation.drawn import Drawn, choose_groups, joined, spread, to_batch
from mixdistill.generation.measures import Sums, measures, staleness
from mixdistill.generation.rollouts import Rollouts
from mixdistill.losses.policy_gradient import group_advantages
from mixdistill.mesh import Rules
from mixdistill.objective import Tally
from mixdistill.students.student import Params, Student
from mixdistill.traces.tokenizer import content_ids
from mixdistill.training import spending
from mixdistill.training.asks import Ask, find_asks
from mixdistill.training.drawing import Drawing
from mixdistill.training.references import check_references

NOTES: dict[str, Any] = {"versions": {}, "faults": {}}  # of the server, over the stage: how often each was met


class RolloutPipeline:
    """Batches `[rows, length]` of one stage, without an end; equal on all processes, which each place their rows."""

    def __init__(
        self,
        source: Rollouts,
        corpus: Corpus,
        student: Student,
        itself: int,
        mesh: Mesh,
        rules: Rules,
        part: tuple[int, int] = (0, 1),
    ):
        """`itself` is the teacher_id of what the student draws."""
        self.source, self.corpus = source, corpus
        self.num_targets = 0
        self.tallies: dict[str, Tally] = {}
        self._part = part
        known = content_ids(corpus.shards[0].tokenizer)
        # A student may have more ids than its tokenizer, and draw them.
        self._content = np.pad(known, (0, student.vocab_size - len(known)))
        self._asks = find_asks(source, corpus)
        self._drawing, self._student = Drawing(source, corpus, student, itself, mesh, rules), student
        self._state: dict[str, Any] = {"batch": 0, "cursor": 0, "used": 0, "drawn_at": [], **NOTES}
        self._held: Batch | None = None
        self._learned, self._since = 0, None  # tokens since the last batch was there, and when that was

    def read(self, params: Params, train_step: int) -> Batch:
        """The next batch for a student with these parameters, those of `train_step`: this process's rows."""
        found: Sums = {}
        if self.spent:
            found = self._draw(params, train_step)
        assert self._held is not None
        self._state["used"] += 1
        self.num_targets = int(self._held["valid"].sum())
        self._learned += self.num_targets
        if drawn_at := self._state["drawn_at"]:
            found |= staleness(self._held["valid"].sum(1), np.array(drawn_at), train_step)
        self.tallies = {name: Tally(*map(np.asarray, pair)) for name, pair in found.items()}  # pyright: ignore[reportArgumentType]
        index, count = self._part
        rows = self.source.rows // count
        return {name: array[index * rows : (index + 1) * rows] for name, array in self._held.items()}

    @property
    def spent(self) -> bool:
        """Whether the next batch is a new one."""
        return self._held is None or self._state["used"] == self.source.updates

    @property
    def lengths(self) -> list[int]:
        """Columns of every sequence of the batch in use."""
        assert self._held is not None
        return [int(n) for n in (self._held["segment_id"] > 0).sum(1) if n]

    @property
    def traces(self) -> tuple[int, ...]:
        """The recorded traces that the batch in use was asked by."""
        if self._held is None:
            return ()
        return tuple(np.unique(self._held["trace_id"][self._held["trace_id"] >= 0]).tolist())

    def get_state(self) -> dict[str, Any]:
        """JSON values: where the next batch begins, and the batch that is in use while it has updates left."""
        in_use = self._held is not None and 0 < self._state["used"] < self.source.updates
        return {**self._state, "held": _to_text(self._held) if in_use and self._held else None}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `get_state` was called."""
        found = dict(state)
        held = found.pop("held")
        self._state, self._held = {**NOTES, **found}, None if held is None else _from_text(held)

    def close(self) -> None:
        """Nothing runs beside the loop."""

    def _draw(self, params: Params, train_step: int) -> Sums:
        """A new batch to hold, from as many rounds of prompts as it takes to find groups whose rewards differ. Where it
        fails, everything is as it was."""
        jax.block_until_ready(params)  # so that the time of updates and of rollouts can be told apart
        began, source, state = time.perf_counter(), self.source, dict(self._state)
        own, rounds = self._drawing.own(state["batch"]), []
        while not rounds or (own and len(rounds) < source.max_rounds and self._useful(rounds).sum() < source.prompts):
            rounds.append(self._round(params, state, len(rounds), train_step))
        useful = self._useful(rounds) if own else np.ones(source.prompts, bool)
        groups = choose_groups(useful, source.prompts)
        drawn = joined(rounds).take((groups[:, None] * source.samples + np.arange(source.samples)).reshape(-1))
        self._held = self._batch_of(self._drawing.with_opinions(drawn, params), useful[groups])
        found = self._measure(rounds, own, time.perf_counter() - began)
        cost = spending.drawing(self._student, joined(rounds)) if own else 0.0
        found["rollout/flops"] = (cost + self._drawing.cost_of_opinions(drawn), 1.0)
        if self._since is not None:
            found["update/tokens_per_second"] = (float(self._learned), began - self._since)
        drawn_at = drawn.drawn_at.tolist() if own else []
        self._state = {**state, "batch": state["batch"] + 1, "used": 0, "drawn_at": drawn_at}
        self._learned, self._since = 0, time.perf_counter()
        return found

    def _round(self, params: Params, state: dict[str, Any], number: int, train_step: int) -> Drawn:
        asks = [self._ask(state["cursor"] + i) for i in range(self.source.prompts)]
        drawn, notes = self._drawing.round(params, asks, (state["batch"], number), train_step)
        state["cursor"] += len(asks)
        for name, counts in notes.items():
            state[name] = dict(collections.Counter(state[name]) + counts)
        return drawn

    def _ask(self, number: int) -> Ask:
        """The asks in a new order every time round."""
        epoch, index = divmod(number, len(self._asks))
        return self._asks[int(order(self.source.seed, epoch, len(self._asks))[index])]

    def _useful(self, rounds: list[Drawn]) -> np.ndarray:
        """bool [groups of all rounds]: rewards that differ."""
        total = np.concatenate([one.rewards.total for one in rounds]).reshape(-1, self.source.samples)
        return spread(total) > self.source.min_spread

    def _batch_of(self, drawn: Drawn, useful: np.ndarray) -> Batch:
        source = self.source
        total = drawn.rewards.total.reshape(-1, source.samples)
        if source.max_rounds > 1:  # a group that was sought to be replaced is left out where none could be found
            total = np.where(useful[:, None], total, np.nan)
            drawn = drawn._replace(rewards=drawn.rewards._replace(total=total.reshape(-1)))
        advantage = group_advantages(total, normalise=source.normalise).reshape(-1)
        if source.per == "max_new":
            advantage = advantage * share_of_places(drawn, source.max_new)
        top_k = source.teaching.top_k if source.teaching else 0
        return to_batch(drawn, advantage, self._content, source.length, top_k)

    def _measure(self, rounds: list[Drawn], own: bool, seconds: float) -> Sums:
        drawn = joined(rounds)
        tokens = float(sum(len(said.tokens) for said in drawn.completions))
        of_drawn = {
            **measures(drawn, self.source.samples, self.source.verifier),
            "rollout/distil": (float(drawn.distil.sum()), float(len(drawn.distil))),
            "rollout/rounds": (float(len(rounds)), 1.0),
            "rollout/faults": (float(drawn.num_faults), 1.0),
            "rollout/tokens": (tokens, 1.0),
            "rollout/seconds": (seconds, 1.0),
            "rollout/tokens_per_second": (tokens, seconds),
        }
        return {"rollout/own": (float(own), 1.0), **(of_drawn if own else {})}


def check_rollouts(source: Rollouts, corpus: Corpus) -> None:
    """Raises `UserError` for what would go wrong when the stage begins: no prompt that fits, references that are not
    there."""
    find_asks(source, corpus)
    if source.teaching:
        check_references(source.teaching, corpus)


@functools.lru_cache(4)
def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """In what order so many asks are asked."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def share_of_places(drawn: Drawn, max_new: int) -> float:
    """Tokens that are trained on, of the places that there were for them: turns a mean over tokens into a sum over
    tokens divided by a constant (Dr. GRPO, arXiv:2503.20783)."""
    known = np.isfinite(drawn.rewards.total)
    lengths = np.array([len(said.tokens) for said in drawn.completions])
    return float(lengths[known].sum() / max(known.sum() * max_new, 1))


def _to_text(batch: Batch) -> str:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **batch)
    return base64.b64encode(file.getvalue()).decode()


def _from_text(text: str) -> Batch:
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as found:
        return dict(found)
