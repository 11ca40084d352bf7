"""Traces made wrong on purpose, each in one respect (arXiv:2505.13775, arXiv:2502.07374). Pure functions of traces.

The last step of a trace holds its answer; the steps before it are its reasoning.
"""

import dataclasses
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from mixdistill.traces.shards import Shards, write_shards
from mixdistill.traces.trace import Step, Trace, Verdict
from mixdistill.traces.worlds.world import World, generator
from mixdistill.traces.worlds.write import encode_words, traces

Kind = Callable[[Trace, Trace, random.Random], Trace]  # (a trace, one of another problem, random numbers)


def as_it_is(trace: Trace, other: Trace, rng: random.Random) -> Trace:
    """What the others are compared with."""
    return trace


def swapped(trace: Trace, other: Trace, rng: random.Random) -> Trace:
    """The reasoning of the other problem; the answer stays."""
    return dataclasses.replace(trace, steps=(*other.steps[:-1], trace.steps[-1]))


def with_another_answer(trace: Trace, other: Trace, rng: random.Random) -> Trace:
    """The reasoning stays; the answer is that of the other problem."""
    verdict = Verdict.CORRECT if other.answer == trace.reference else Verdict.WRONG
    return dataclasses.replace(trace, steps=(*trace.steps[:-1], other.steps[-1]), answer=other.answer, verdict=verdict)


def without_reasoning(trace: Trace, other: Trace, rng: random.Random) -> Trace:
    """The answer alone."""
    return dataclasses.replace(trace, steps=trace.steps[-1:])


def shuffled(trace: Trace, other: Trace, rng: random.Random) -> Trace:
    """The steps of the reasoning in random order."""
    *reasoning, answer = trace.steps
    return dataclasses.replace(trace, steps=(*rng.sample(reasoning, len(reasoning)), answer))


def scrambled(trace: Trace, other: Trace, rng: random.Random) -> Trace:
    """The words of the reasoning in random order, as one step."""
    *reasoning, answer = trace.steps
    words = " ".join(step.text for step in reasoning).split()
    return dataclasses.replace(trace, steps=(Step(" ".join(rng.sample(words, len(words))) + " "), answer))


def filled(word: str) -> Kind:
    """Every word of the reasoning replaced by this one."""
    return lambda trace, other, rng: rewritten(trace, lambda step: [word] * len(step))


def thinned(share: float) -> Kind:
    """Every step of the reasoning is left out with this probability."""

    def thin(trace: Trace, other: Trace, rng: random.Random) -> Trace:
        *reasoning, answer = trace.steps
        return dataclasses.replace(trace, steps=(*(step for step in reasoning if rng.random() >= share), answer))

    return thin


def without_words(words: Collection[str]) -> Kind:
    """The reasoning without these words."""

    def drop(trace: Trace, other: Trace, rng: random.Random) -> Trace:
        return rewritten(trace, lambda step: [word for word in step if word not in words])

    return drop


def by(world: World, teacher: str) -> Kind:
    """What another teacher writes about the same problem."""
    return lambda trace, other, rng: world.trace(world.problem_of(trace.prompt), teacher)


def in_part(kind: Kind, share: float) -> Kind:
    """So that a trace is corrupted with this probability, and stays as it is otherwise."""
    return lambda trace, other, rng: kind(trace, other, rng) if rng.random() < share else trace


def rewritten(trace: Trace, rewrite: Callable[[Sequence[str]], Sequence[str]]) -> Trace:
    """With the words of every step of the reasoning replaced; a step without words is no step."""
    *reasoning, answer = trace.steps
    new = [" ".join(rewrite(step.text.split())) for step in reasoning]
    return dataclasses.replace(trace, steps=(*(Step(text + " ") for text in new if text), answer))


def corrupt(plain: Sequence[Trace], name: str, kind: Kind, seed: int) -> Iterator[Trace]:
    """These traces as a teacher `name` writes them; the other problem is that of the next trace."""
    for number, (trace, other) in enumerate(zip(plain, [*plain[1:], *plain[:1]], strict=True)):
        yield dataclasses.replace(kind(trace, other, generator(seed, name, number)), teacher=name)


def write_kinds(world: World, out: Path, kinds: Mapping[str, Kind], teacher: str, count: int, *, seed: int) -> Shards:
    """Shards in which every kind is a teacher, all with the same `count` problems and `teacher`'s traces of them."""
    tokenizer, plain = world.tokenizer(), [*traces(world, {teacher: count}, seed=seed)]
    ids = tokenizer.inner.get_vocab()
    made = (trace for name, kind in kinds.items() for trace in corrupt(plain, name, kind, seed))
    return write_shards((encode_words(ids, tokenizer.eos_id, trace) for trace in made), out, tokenizer=tokenizer)


def slip(steps: Sequence[str], states: Collection[str], rng: random.Random) -> list[str]:
    """Reasoning in which the state that ends one step, drawn by `rng`, is another one; what follows goes on as if it
    were right. The last step, with the answer, stays."""
    made, place = list(steps), rng.randrange(len(steps) - 1)
    head, _, state = made[place].rpartition(" ")
    made[place] = f"{head} {rng.choice([other for other in states if other != state])}"
    return made
