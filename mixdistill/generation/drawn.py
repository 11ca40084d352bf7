"""From drawn completions to a batch: pure functions."""

import math
from typing import NamedTuple

import numpy as np

from mixdistill.data.fields import FIELDS, TOP_K_FIELDS, Batch
from mixdistill.generation.rewards import Rewards
from mixdistill.generation.sampler import Generated

# Batch fields that only rollouts have, float32 [B, T].
ADVANTAGE = "advantage"
REFERENCE = "reference_logprob"  # of the target under the prompt's reference, nats; 0 where there is none
DISTIL = "distil"  # 1 where the prompt's reference is to be followed, 0 where the reward is


class Opinion(NamedTuple):
    """What a reference says of one completion, an entry a token, in nats."""

    logprob: np.ndarray  # float32 [n]
    top_ids: np.ndarray  # int32 [n, K]
    top_logprob: np.ndarray  # float32 [n, K]


class Drawn(NamedTuple):
    """Completions, group after group. One of no tokens never came: its server failed."""

    trace_id: np.ndarray  # int32 [n]
    teacher_id: np.ndarray  # int32 [n]
    prompts: list[list[int]]  # token ids [n]
    completions: list[Generated]  # [n]
    rewards: Rewards  # [n]
    drawn_at: np.ndarray  # int32 [n]: train step of the weights that drew it; -1: not told
    distil: np.ndarray  # float32 [n]
    num_faults: int = 0  # requests that failed on the way
    opinions: list[Opinion] | None = None  # [n]

    def take(self, rows: np.ndarray) -> "Drawn":
        """These rows."""
        rewards = Rewards(self.rewards.total[rows], {name: part[rows] for name, part in self.rewards.parts.items()})
        return Drawn(
            self.trace_id[rows],
            self.teacher_id[rows],
            [self.prompts[row] for row in rows],
            [self.completions[row] for row in rows],
            rewards,
            self.drawn_at[rows],
            self.distil[rows],
            self.num_faults,
            None if self.opinions is None else [self.opinions[row] for row in rows],
        )


def joined(rounds: list[Drawn]) -> Drawn:
    """All rows of several rounds, without opinions."""
    names = rounds[0].rewards.parts
    parts = {name: np.concatenate([one.rewards.parts[name] for one in rounds]) for name in names}
    return Drawn(
        np.concatenate([one.trace_id for one in rounds]),
        np.concatenate([one.teacher_id for one in rounds]),
        [prompt for one in rounds for prompt in one.prompts],
        [said for one in rounds for said in one.completions],
        Rewards(np.concatenate([one.rewards.total for one in rounds]), parts),
        np.concatenate([one.drawn_at for one in rounds]),
        np.concatenate([one.distil for one in rounds]),
        sum(one.num_faults for one in rounds),
    )


def spread(total: np.ndarray) -> np.ndarray:
    """Standard deviation of each group's known rewards, float64 [groups]; 0 of fewer than two."""
    known = np.isfinite(total)
    values = np.where(known, total, 0.0).astype(np.float64)
    count = np.maximum(known.sum(-1), 1)
    mean = values.sum(-1) / count
    return np.sqrt((np.where(known, values - mean[:, None], 0.0) ** 2).sum(-1) / count)


def choose_groups(useful: np.ndarray, wanted: int) -> np.ndarray:
    """Numbers of `wanted` groups: the useful ones first, else in order. `useful` is bool [groups]."""
    return np.concatenate([np.flatnonzero(useful), np.flatnonzero(~useful)])[:wanted]


def to_batch(drawn: Drawn, advantage: np.ndarray, content: np.ndarray, length: int, top_k: int = 0) -> Batch:
    """Every field, [n, length], a completion a row. `advantage` is float32 [n]; `content` bool [V]. A completion that
    could not be judged is not trained on."""
    batch = _empty(len(drawn.completions), length, top_k)
    for row, (prompt, said) in enumerate(zip(drawn.prompts, drawn.completions, strict=True)):
        tokens = np.concatenate([prompt, said.tokens])
        size, new = len(tokens) - 1, slice(len(prompt) - 1, len(tokens) - 1)
        batch["tokens"][row, :size], batch["target"][row, :size] = tokens[:-1], tokens[1:]
        batch["segment_id"][row, :size] = 1
        batch["position"][row, :size] = np.arange(size)
        batch["teacher_id"][row, :size] = drawn.teacher_id[row]
        batch["trace_id"][row, :size] = drawn.trace_id[row]
        batch["valid"][row, new] = math.isfinite(drawn.rewards.total[row])
        batch["step_id"][row, new] = batch["valid"][row, new]
        batch["teacher_logprob"][row, new] = said.logprobs
        batch[ADVANTAGE][row, new] = advantage[row]
        batch[DISTIL][row, new] = drawn.distil[row]
        if drawn.opinions is not None:
            _write(batch, row, new, drawn.opinions[row], top_k)
    batch["content"] = content[batch["target"]] & batch["valid"]
    return batch


def _empty(rows: int, length: int, top_k: int) -> Batch:
    fields = FIELDS | (TOP_K_FIELDS if top_k else {})
    sizes = {"B": rows, "T": length, "K": top_k}
    batch = {
        name: np.full([sizes[axis] for axis in field.shape], field.padding, field.dtype)
        for name, field in fields.items()
    }
    return batch | {name: np.zeros((rows, length), np.float32) for name in (ADVANTAGE, REFERENCE, DISTIL)}


def _write(batch: Batch, row: int, new: slice, opinion: Opinion, top_k: int) -> None:
    batch[REFERENCE][row, new] = opinion.logprob
    if top_k:
        batch["teacher_topk_ids"][row, new] = opinion.top_ids
        batch["teacher_topk_logprob"][row, new] = opinion.top_logprob
        rest = -np.expm1(np.log(np.exp(opinion.top_logprob.astype(np.float64)).sum(-1).clip(1e-30, 1.0)))
        batch["teacher_tail_logprob"][row, new] = np.log(np.maximum(rest, 1e-9))
