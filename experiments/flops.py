"""Student FLOPs by one formula, so that imitation and reinforcement can be compared at equal cost.

Learning from a sequence is counted by `mixdistill.students.flops`. Drawing it with a cache costs one forward: the cache
saves nothing but repetition. The unembedding that prefilling a prompt could do without is counted, too, which makes
rollouts look a little dearer than they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixdistill.students.config import DecoderConfig
from mixdistill.students.flops import forward, learning
from mixdistill.traces.shards import Shards


def drawing(config: DecoderConfig, prompt: float, new: float) -> float:
    """A completion of `new` tokens with a cache; the last one is not fed back."""
    return forward(config, prompt + new - 1)


def of_rollout(config: DecoderConfig, prompt: float, new: float) -> float:
    """Drawing a completion and learning from it once."""
    return drawing(config, prompt, new) + learning(config, prompt + new - 1)


def of_imitation(config: DecoderConfig, shards: Path, teachers: Sequence[str]) -> float:
    """FLOPs a completion token of these teachers' traces, prompts included."""
    opened = Shards.open(shards)
    wanted = np.isin(opened.index["teacher_id"], [opened.teachers.index(name) for name in teachers])
    columns = opened.index["num_tokens"][wanted] - 1  # the last token is only a target
    targets = (opened.index["num_tokens"] - opened.index["num_prompt"])[wanted].sum()
    return sum(learning(config, int(count)) for count in columns) / float(targets)


def mean_prompt(source: Any) -> float:
    """Tokens that a rollout is given: the mean over the first 500 of what can be asked."""
    from mixdistill.data.corpus import open_corpus
    from mixdistill.training.asks import find_asks, prompt_of, read_trace

    corpus = open_corpus(source.asked)
    asks = find_asks(source, corpus)[:500]
    return float(np.mean([len(prompt_of(read_trace(corpus, ask.trace_id), ask)) for ask in asks]))


def spent(plan: Any, shards: Path, lines: Sequence[dict[str, Any]]) -> float:
    """Of a run of imitation and rollouts on these shards, by the lines of its metrics.jsonl."""
    from mixdistill.generation.rollouts import Rollouts

    total = 0.0
    for stage in plan.stages:
        own = [line for line in lines if line["stage"] == stage.name]
        if isinstance(stage.source, Rollouts):
            prompt = mean_prompt(stage.source)
            # Of the mean length: attention, the part that grows faster than the length, is a small part here.
            each = [of_rollout(plan.student, prompt, line["metrics"]["rollout/length"]) for line in own]
            total += sum(cost * line["weights"]["rollout/length"] for cost, line in zip(each, own, strict=True))
        else:
            targets = sum(sum(line["weights"]["teacher/tokens"].values()) for line in own)
            total += of_imitation(plan.student, shards, stage.source.teachers) * targets
    return total
