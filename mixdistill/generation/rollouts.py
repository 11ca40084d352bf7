"""Rollouts: the student's own completions as a source of training, a batch of them for every few train steps.

`Rollouts` is what a recipe says. A rollout is a trace by teacher "self" whose `teacher_logprob` is the log-probability
under the policy that drew it, with a further field, `advantage`. Step-wise supervised RL (SRL, arXiv:2510.25992)
differs in one setting: `instances="steps"` asks for one step of a recorded trace, given those before it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError, unknown
from mixdistill.generation.policy import GREEDY, Policy
from mixdistill.generation.remote import Server
from mixdistill.generation.teaching import Teaching
from mixdistill.losses.policy_gradient import group_advantages
from mixdistill.traces.trace import Trace

DRAWN = Policy()  # the student's own distribution
SELF = "self"  # the teacher's name of a rollout
INSTANCES = ("problems", "steps", "thought steps")


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

    The reward is the sum of `weights[name] * judges[name](rollouts)`; judges without a weight are only reported. A
    group of `samples` of one prompt whose rewards differ by no more than `min_spread` (standard deviation) teaches
    nothing: up to `max_rounds` times as many prompts are drawn to find `prompts` groups that do, and with `max_rounds`
    above 1 groups that do not are left out (DAPO's dynamic sampling, arXiv:2503.14476). `updates` train steps are made
    from one batch of rollouts.

    `instances` "steps": a completion is as many tokens as the recorded step has. "thought steps": it is a thinking part
    and then the step (see `judges.similar_thought_step`), of up to `max_new` tokens.
    """

    shards: str | tuple[str, ...]
    judges: Mapping[str, Judge]
    weights: Mapping[str, float]
    prompts: int  # groups a batch
    samples: int = 8
    max_prompt: int = 64  # tokens; longer ones are left out
    max_new: int = 64  # tokens
    policy: Policy = DRAWN
    instances: Literal["problems", "steps", "thought steps"] = "problems"
    normalise: Literal["population", "sample", "none"] = "population"
    per: Literal["token", "max_new"] = "token"  # what the loss is a mean over: tokens, or places for them (Dr. GRPO)
    min_spread: float = 0.0
    max_rounds: int = 1
    updates: int = 1
    verifier: str | None = None  # the judge that says 1 for right and 0 for wrong: it counts pass@k and scores probes
    server: Server | None = None  # answers the prompts in place of the sampler
    teaching: Teaching | None = None
    teachers: tuple[str, ...] | None = None  # whose prompts, or steps; None: all
    folds: tuple[str, ...] | None = None
    verdicts: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("prompts", "samples", "max_prompt", "max_new", "max_rounds", "updates"):
            if getattr(self, name) < 1:
                raise UserError(f"rollouts {name} is {getattr(self, name)}; it is at least 1")
        for name, known in (("instances", INSTANCES), ("per", ("token", "max_new"))):
            if getattr(self, name) not in known:
                raise unknown(f"rollouts {name}", getattr(self, name), known)
        for name in (*self.weights, *((self.verifier,) if self.verifier else ())):
            if name not in self.judges:
                raise unknown("judge", name, self.judges)
        if not self.weights:
            raise UserError(f"rollouts need the weight of at least one judge; there are: {', '.join(self.judges)}")
        if self.teaching and self.teaching.probes and not self.verifier:
            raise UserError(f"probes need a verifier to score them; name one of the judges: {', '.join(self.judges)}")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Problems that are answered greedily every so many train steps, whatever the stage trains on.

    Each judge gives the tally `held_out/<judge>`. The first `problems` of the shards' problems are asked; use a fold or
    a folder that no stage trains on. `problems` has to divide over the devices as the rows of a batch do.
    """

    shards: str | tuple[str, ...]
    judges: Mapping[str, Judge]
    every: int  # train steps
    problems: int = 128
    max_prompt: int = 64
    max_new: int = 64
    folds: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.every < 1:
            raise UserError(f"held-out problems are asked every {self.every} train steps; it takes at least 1")
        _ = self.source

    @property
    def source(self) -> Rollouts:
        """As rollouts: each problem once."""
        return Rollouts(
            shards=self.shards,
            judges=self.judges,
            weights=dict.fromkeys(self.judges, 1.0),
            prompts=self.problems,
            samples=1,
            max_prompt=self.max_prompt,
            max_new=self.max_new,
            policy=GREEDY,
            folds=self.folds,
        )
