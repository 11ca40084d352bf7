"""World: procedural problems with several teachers, an exact verifier and a known difficulty.

A problem is its prompt: `read` recovers everything from it, so a shard or a bare prompt can be judged without the
generator. All is pure: problem i of (seed, split, stream) and the trace of (problem, teacher) need no other one.

Held-out problems never overlap with training: the hash of a prompt alone says whether the problem belongs to training,
validation or test, and a split draws anew until it meets one of its own part, whatever the seed, size and family.
"""

import dataclasses
import functools
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mixdistill.errors import UserError, unknown
from mixdistill.traces.tokenizer import Tokenizer, word_level
from mixdistill.traces.trace import Step, Trace, Verdict

Part = Literal["train", "validation", "test"]
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # of all possible problems
MAX_DRAWS = 1000  # a part of 10 % is missed 1000 times in a row only when it is empty


class Problem(NamedTuple):
    """One question. Equal prompts have equal ids."""

    id: str
    prompt: str
    answer: str
    difficulty: int  # the oracle's: what it counts is the world's to say
    split: str


class Judgement(NamedTuple):
    """What a world says of one completion."""

    correct: bool  # the final answer
    valid: bool  # the reasoning before it, by itself
    error: str  # one of the world's `errors`; "" when correct and valid


class Split(NamedTuple):
    """Where problems come from."""

    part: Part
    sizes: tuple[int, ...]  # drawn uniformly
    family: str = ""  # which generator, where a world has several


class Teacher(NamedTuple):
    """`write` gives the reasoning steps, the last one with the answer; the generator serves teachers that guess."""

    write: Callable[[Any, random.Random], Sequence[str]]
    about: str
    sound: bool = True  # every step is right (the answer always is)


@dataclass(frozen=True)
class World:
    """`Question` is what `read` makes of a prompt. White space divides words; one word is one token."""

    name: str
    words: tuple[str, ...]  # the vocabulary
    splits: Mapping[str, Split]
    teachers: Mapping[str, Teacher]
    errors: tuple[str, ...]
    draw: Callable[[random.Random, Split, int], str]  # a prompt of this size
    read: Callable[[str], Any]  # prompt -> question; raises UserError
    answer: Callable[[Any], str]
    measure: Callable[[Any], int]  # the oracle difficulty
    judge_question: Callable[[Any, str], Judgement]
    extract: Callable[[str], str]  # completion -> its final answer; "" when it has none

    def problem(
        self, seed: int, split: str, index: int, *, stream: str = "", sizes: Sequence[int] | None = None
    ) -> Problem:
        """Problem `index` of an endless sequence; `stream` names further ones. `sizes` replaces the split's own.
        Raises `UserError` for an unknown split and for sizes that have no problem in the split's part."""
        where = self._split(split, sizes)
        rng = generator(self.name, seed, split, stream, index)
        size = rng.choice(where.sizes)
        for _ in range(MAX_DRAWS):
            prompt = self.draw(rng, where, size)
            if part_of(prompt) == where.part:
                return self.problem_of(prompt, split)
        raise UserError(f"world {self.name} has too few problems of size {size} to keep some for {where.part}")

    def problem_of(self, prompt: str, split: str = "") -> Problem:
        """The problem that `prompt` states, however it is spaced. Raises `UserError` when it states none."""
        prompt = joined(*prompt.split()) + " "
        question = self.read(prompt)
        return Problem(
            f"{self.name}-{_hash(prompt):016x}", prompt, self.answer(question), self.measure(question), split
        )

    def trace(self, problem: Problem, teacher: str) -> Trace:
        """How `teacher` solves it, graded. Raises `UserError` for an unknown teacher."""
        if teacher not in self.teachers:
            raise unknown(f"teacher of world {self.name}", teacher, self.teachers)
        question = self.read(problem.prompt)
        *steps, last = self.teachers[teacher].write(question, generator(self.name, teacher, problem.prompt))
        text = (*(Step(step + " ") for step in steps), Step(last))
        completion = "".join(step.text for step in text)
        verdict = Verdict.CORRECT if self.judge_question(question, completion).correct else Verdict.WRONG
        meta = {"fold": problem.split, "difficulty": problem.difficulty}
        answer = self.extract(completion)
        return Trace(problem.id, problem.prompt, text, answer, teacher, verdict, problem.answer, meta)

    def judge(self, problem: Problem, completion: str) -> Judgement:
        """Answer and reasoning of a completion, apart."""
        return self.judge_question(self.read(problem.prompt), completion)

    def verify(self, problem: Problem, completion: str) -> bool:
        """Whether the completion's answer is right."""
        return self.judge(problem, completion).correct

    def tokenizer(self) -> Tokenizer:
        """One token a word."""
        return _tokenizer(self.words)

    def problems(self, seed: int, split: str, count: int, *, stream: str = "", sizes=None) -> list[Problem]:
        """The first `count` of the sequence of `problem`."""
        return [self.problem(seed, split, index, stream=stream, sizes=sizes) for index in range(count)]

    def _split(self, name: str, sizes: Sequence[int] | None) -> Split:
        if name not in self.splits:
            raise unknown(f"split of world {self.name}", name, self.splits)
        if sizes is None:
            return self.splits[name]
        if not sizes:
            raise UserError(f"no sizes given for split {name!r} of world {self.name}; it has {self.splits[name].sizes}")
        return self.splits[name]._replace(sizes=tuple(sizes))


def share_words(*worlds: World) -> tuple[World, ...]:
    """The same worlds with one vocabulary, so that their shards train one student."""
    words = tuple(dict.fromkeys(word for world in worlds for word in world.words))
    return tuple(dataclasses.replace(world, words=words) for world in worlds)


def generator(*key: Any) -> random.Random:
    """Random numbers that depend on `key` alone."""
    return random.Random(_hash(repr(key)))


def part_of(prompt: str) -> Part:
    """Which part of a world's problems this one belongs to: a property of the prompt alone."""
    place = _hash(prompt) / 2**64
    if place < SHARES["train"]:
        return "train"
    return "validation" if place < SHARES["train"] + SHARES["validation"] else "test"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


@functools.cache
def _tokenizer(words: tuple[str, ...]) -> Tokenizer:
    return word_level(words)


def after_last(completion: str, mark: str) -> str:
    """The word after the last `mark`; "" when there is none."""
    words = completion.split()[::-1]
    place = words.index(mark) if mark in words else 0
    return words[place - 1] if place else ""


def joined(*words: Any) -> str:
    """Words with one blank between them."""
    return " ".join(map(str, words))
