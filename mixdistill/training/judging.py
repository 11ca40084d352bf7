"""Completions before their judges. The first process judges: a check that ran out of time on one host and not on
another would part them for good."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from mixdistill.errors import UserError
from mixdistill.generation.rollouts import Judge, Rollout
from mixdistill.generation.sampler import Generated
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.training.asks import Ask
from mixdistill.training.processes import by_first


def rollout_of(ask: Ask, trace: EncodedTrace, said: Generated, tokenizer: Tokenizer) -> Rollout:
    """What a judge is shown."""
    text = tokenizer.decode((said.tokens[:-1] if said.ended else said.tokens).tolist())
    return Rollout(trace.trace, ask.step, text, said.ended, len(said.tokens))


def judged(judges: Mapping[str, Judge], rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
    """float32 [n] of every judge; NaN for a completion that never came. Raises `UserError` for a judge that does not
    give a number for each."""
    came = np.array([rollout.num_tokens > 0 for rollout in rollouts])
    some = [rollout for rollout in rollouts if rollout.num_tokens]
    like = np.zeros((len(judges), len(some)), np.float32)
    made = None
    if jax.process_index() == 0 and some:
        made = np.stack([_values(name, judge, some) for name, judge in judges.items()])
    values = by_first(made, like) if some else like
    found = np.full((len(judges), len(rollouts)), np.nan, np.float32)
    found[:, came] = values
    return dict(zip(judges, found, strict=True))


def _values(name: str, judge: Judge, rollouts: Sequence[Rollout]) -> np.ndarray:
    values = np.asarray(judge(rollouts), np.float32)
    if values.shape != (len(rollouts),):
        raise UserError(
            f"judge {name!r} gave shape {values.shape} for {len(rollouts)} rollouts; it gives one number each"
        )
    return values
