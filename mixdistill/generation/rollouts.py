"""Rollouts: the student's own completions as a source of training, a batch of them for every few train steps.

`Rollouts` is what a recipe says; the rest are pure functions from drawn completions to a batch. A rollout is a trace by
teacher "self" whose `teacher_logprob` is the log-probability under the policy that drew it, with one more field,
`advantage`. Step-wise supervised RL (SRL, arXiv:2510.25992) differs in one setting: `instances="steps"` asks for one
step of a recorded trace, given those before it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mixdistill.data.fields import FIELDS, Batch
from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError, unknown
from mixdistill.generation.policy import Policy
from mixdistill.generation.rewards import Rewards
from mixdistill.generation.sampler import Generated
from mixdistill.losses.policy_gradient import group_advantages
from mixdistill.traces.trace import Trace

DRAWN = Policy()  # the student's own distribution
SELF = "self"  # the teacher's name of a rollout
ADVANTAGE, REFERENCE = "advantage", "reference_logprob"  # batch fields that only rollouts have


class Rollout(NamedTuple):
    """One completion and what it is judged by."""

    trace: Trace  # the recorded one whose problem was asked
    step: int  # 0: the whole problem; k: the k-th reasoning step of the trace was asked for
    text: str
    ended: bool
    num_tokens: int


Judge = Callable[[Sequence[Rollout]], Sequence[float]]  # NaN: could not be told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Where prompts come from, how they are answered, and what an answer is worth. Raises `UserError`.

    The reward is the sum of `weights[name] * judges[name](rollouts)`. A group of `samples` of one prompt whose rewards
    differ by no more than `min_spread` (standard deviation) teaches nothing: up to `max_rounds` times as many prompts
    are drawn to find `prompts` groups that do (DAPO's dynamic sampling, arXiv:2503.14476). `updates` train steps are
    made from one batch of rollouts. `references` are the workdirs of trained students, by the teacher whose prompts
    they answer for (or one, named "*"): their log-probabilities become the field `reference_logprob`.
    """

    shards: str | tuple[str, ...]
    judges: Mapping[str, Judge]
    weights: Mapping[str, float]
    prompts: int  # groups a batch
    samples: int = 8
    max_prompt: int = 64  # tokens; longer ones are left out
    max_new: int = 64  # tokens
    policy: Policy = DRAWN
    instances: Literal["problems", "steps"] = "problems"
    normalise: Literal["population", "sample", "none"] = "population"
    min_spread: float = 0.0
    max_rounds: int = 1
    updates: int = 1
    references: Mapping[str, str] = dataclasses.field(default_factory=dict)
    teachers: tuple[str, ...] | None = None  # whose prompts, or steps; None: all
    folds: tuple[str, ...] | None = None
    verdicts: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("prompts", "samples", "max_prompt", "max_new", "max_rounds", "updates"):
            if getattr(self, name) < 1:
                raise UserError(f"rollouts {name} is {getattr(self, name)}; it is at least 1")
        if self.instances not in ("problems", "steps"):
            raise unknown("rollouts instances", self.instances, ("problems", "steps"))
        for name in self.weights:
            if name not in self.judges:
                raise unknown("judge", name, self.judges)
        if not self.weights:
            raise UserError(f"rollouts need the weight of at least one judge; there are: {', '.join(self.judges)}")
        group_advantages(np.zeros((1, 2)), normalise=self.normalise)

    @property
    def rows(self) -> int:
        """Of a batch: a row a completion."""
        return self.prompts * self.samples

    @property
    def length(self) -> int:
        """Columns of a batch."""
        return self.max_prompt + self.max_new

    @property
    def folders(self) -> tuple[str, ...]:
        """The shard folders that prompts come from."""
        return self.asked.folders

    @property
    def asked(self) -> Mixture:
        """The recorded traces whose prompts are asked."""
        return Mixture(
            shards=self.shards,
            rows=self.rows,
            length=2**20,  # a trace's own length does not matter here
            teachers=self.teachers,
            folds=self.folds,
            verdicts=self.verdicts,
        )


class Drawn(NamedTuple):
    """A batch of completions, group after group, in the order of `rows`."""

    trace_id: np.ndarray  # int32 [n]
    prompts: list[list[int]]  # token ids [n]
    completions: list[Generated]  # [n]
    rewards: Rewards  # [n]
    reference: list[np.ndarray] | None = None  # float32, a value a completion token [n]


def spread(total: np.ndarray) -> np.ndarray:
    """Standard deviation of each group's known rewards, float64 [groups]; 0 of fewer than two."""
    known = np.isfinite(total)
    values = np.where(known, total, 0.0).astype(np.float64)
    count = np.maximum(known.sum(-1), 1)
    mean = values.sum(-1) / count
    return np.sqrt((np.where(known, values - mean[:, None], 0.0) ** 2).sum(-1) / count)


def choose_groups(total: np.ndarray, wanted: int, min_spread: float) -> np.ndarray:
    """Numbers of `wanted` groups of `total` [groups, samples]: those with enough spread first, else in order."""
    useful = spread(total) > min_spread
    return np.concatenate([np.flatnonzero(useful), np.flatnonzero(~useful)])[:wanted]


def to_batch(drawn: Drawn, advantage: np.ndarray, teacher_id: int, content: np.ndarray, length: int) -> Batch:
    """Every field, [n, length], a completion a row. `advantage` is float32 [n]; `content` bool [V]. A completion that
    could not be judged is not trained on."""
    shape = (len(drawn.completions), length)
    batch = {name: np.full(shape, field.padding, field.dtype) for name, field in FIELDS.items()}
    batch |= {name: np.zeros(shape, np.float32) for name in (ADVANTAGE, REFERENCE)}
    for row, (prompt, said) in enumerate(zip(drawn.prompts, drawn.completions, strict=True)):
        tokens = np.concatenate([prompt, said.tokens])
        size, new = len(tokens) - 1, slice(len(prompt) - 1, len(tokens) - 1)
        batch["tokens"][row, :size], batch["target"][row, :size] = tokens[:-1], tokens[1:]
        batch["segment_id"][row, :size] = 1
        batch["position"][row, :size] = np.arange(size)
        batch["teacher_id"][row, :size] = teacher_id
        batch["trace_id"][row, :size] = drawn.trace_id[row]
        batch["valid"][row, new] = math.isfinite(drawn.rewards.total[row])
        batch["step_id"][row, new] = batch["valid"][row, new]
        batch["teacher_logprob"][row, new] = said.logprobs
        batch[ADVANTAGE][row, new] = advantage[row]
        if drawn.reference is not None:
            batch[REFERENCE][row, new] = drawn.reference[row]
    batch["content"] = content[batch["target"]] & batch["valid"]
    return batch


def measures(drawn: Drawn, samples: int) -> dict[str, tuple[float, float]]:
    """(sum, weight) of what a batch of rollouts says of itself: rewards, their spread, lengths, ends, share of groups
    with an answer at all and in all samples ("pass")."""
    total = drawn.rewards.total.reshape(-1, samples)
    lengths = [len(said.tokens) for said in drawn.completions]
    parts = {f"rollout/{name}": _sum(values) for name, values in drawn.rewards.parts.items()}
    return {
        "rollout/reward": _sum(drawn.rewards.total),
        "rollout/spread": _sum(spread(total)),
        "rollout/flat_groups": _sum(spread(total) == 0),
        "rollout/unverified": _sum(~np.isfinite(drawn.rewards.total)),
        "rollout/ended": _sum([said.ended for said in drawn.completions]),
        "rollout/length": _sum(lengths),
        "rollout/nll": (-float(sum(said.logprobs.sum() for said in drawn.completions)), float(sum(lengths))),
        **parts,
    }


def _sum(values) -> tuple[float, float]:
    array = np.asarray(values, np.float64)
    known = np.isfinite(array)
    return float(array[known].sum()), float(known.sum())
