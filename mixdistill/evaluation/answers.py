"""A student's answers to a task: greedy completions, judged, with the probability that the student gave its answer."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.evaluation.tasks import Task
from mixdistill.generation.sampler import Generated, complete
from mixdistill.students.student import Params, Student
from mixdistill.traces.encode import encode_prompt
from mixdistill.traces.templates import PLAIN, ChatTemplate
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.traces.worlds.world import Problem

UNFINISHED = "unfinished"


class Answer(NamedTuple):
    """One problem's."""

    problem: Problem
    text: str
    answer: str  # "" where there is none
    correct: bool
    valid: bool | None  # the reasoning; None: nobody can tell
    error: str  # "" where nothing is wrong; "unfinished" for what is wrong and was cut off
    finished: bool  # the end token came
    confidence: float  # probability that the student gave the tokens of its answer, given what it wrote before; or NaN
    num_tokens: int


def answer(
    student: Student,
    params: Params,
    task: Task,
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate = PLAIN,
    max_new: int = 512,
    rows: int = 256,
    before: Sequence[int] = (),
) -> list[Answer]:
    """The most likely completion of every problem, of at most `max_new` tokens, decoded `rows` at a time. `before`
    are tokens in front of every prompt, such as a teacher's tag."""
    prompts = [[*before, *encode_prompt(tokenizer, problem.prompt, template)] for problem in task.problems]
    made = complete(student, params, prompts, max_new=max_new, eos_id=tokenizer.eos_id, rows=rows)
    texts = [tokenizer.decode(completion.tokens.tolist()) for completion in made]
    judged = task.judge(task.problems, texts)
    return [
        Answer(
            problem,
            text,
            found.answer,
            found.correct,
            found.valid,
            UNFINISHED if found.error and not completion.ended else found.error,
            completion.ended,
            confidence(tokenizer, completion, text, found.answer),
            len(completion.tokens),
        )
        for problem, text, found, completion in zip(task.problems, texts, judged, made, strict=True)
    ]


def correctness(answers: Sequence[Answer]) -> np.ndarray:
    """bool [problems]."""
    return np.array([one.correct for one in answers], bool)


def confidence(tokenizer: Tokenizer, completion: Generated, text: str, found: str) -> float:
    """The product of the probabilities of the tokens that hold the last mention of `found`; NaN where it has none."""
    place = text.rfind(found) if found else -1
    if place < 0:
        return math.nan
    start, stop = token_span(tokenizer, completion.tokens, place, place + len(found))
    return float(np.exp(completion.logprobs[start:stop].astype(np.float64).sum()))


def token_span(tokenizer: Tokenizer, tokens: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """Tokens [start, stop) that hold characters [first, last) of their text.

    Found by decoding prefixes: a student may spell a text in other tokens than the tokenizer would.
    """

    def length(count: int) -> int:
        return len(tokenizer.decode(tokens[:count].tolist()))

    counts = range(len(tokens) + 1)
    start = bisect.bisect_right(counts, first, key=length) - 1
    return start, bisect.bisect_left(counts, last, key=length)
