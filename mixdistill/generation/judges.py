"""Judges of rollouts: what a completion is worth. Functions of a list of rollouts; NaN where it cannot be told."""

from collections.abc import Sequence

import numpy as np

from mixdistill.diagnostics.form import count_markers
from mixdistill.generation.rewards import after_thinking, soft_overlong, step_similarity, well_formed
from mixdistill.generation.rollouts import Judge, Rollout
from mixdistill.traces import grade
from mixdistill.traces.grade_extract import extract
from mixdistill.traces.trace import Verdict
from mixdistill.traces.worlds.find import find_world

VALUES = {Verdict.CORRECT: 1.0, Verdict.WRONG: 0.0, Verdict.UNVERIFIED: np.nan}


def exact_answer(rollouts: Sequence[Rollout]) -> list[float]:
    """1 where the final answer equals the trace's reference, 0 where it does not or there is none. A check that hangs
    or crashes costs one process and gives NaN, as does a problem without a reference."""
    pairs = [(extract(rollout.text), rollout.trace.reference) for rollout in rollouts]
    known = [bool(reference) for _, reference in pairs]
    verdicts = iter(grade.compare([pair for pair, has in zip(pairs, known, strict=True) if has]))
    return [VALUES[next(verdicts)] if has else np.nan for has in known]


def world_answer(world: str) -> Judge:
    """1 where the exact verifier of this built-in world finds the answer right. Raises `UserError` for an unknown
    world."""
    return _of_world(world, "correct")


def world_reasoning(world: str) -> Judge:
    """1 where the verifier finds the reasoning before the answer valid, whatever the answer."""
    return _of_world(world, "valid")


def _of_world(world: str, part: str) -> Judge:
    find_world(world)

    def judge(rollouts: Sequence[Rollout]) -> list[float]:
        exact = find_world(world)
        judged = [exact.judge_question(exact.read(rollout.trace.prompt), rollout.text) for rollout in rollouts]
        return [float(getattr(judgement, part)) for judgement in judged]

    return judge


def ended(rollouts: Sequence[Rollout]) -> list[float]:
    """1 for a completion that ended by itself."""
    return [float(rollout.ended) for rollout in rollouts]


def thinks_then_answers(rollouts: Sequence[Rollout]) -> list[float]:
    """1 for one thinking part in tags with an answer after it."""
    return [float(well_formed(rollout.text)) for rollout in rollouts]


def not_overlong(limit: int, cache: int) -> Judge:
    """DAPO's soft penalty: 0 up to `limit - cache` tokens, down to -1 at `limit`."""

    def judge(rollouts: Sequence[Rollout]) -> list[float]:
        return [soft_overlong(rollout.num_tokens, limit=limit, cache=cache) for rollout in rollouts]

    return judge


def similar_step(rollouts: Sequence[Rollout]) -> list[float]:
    """SRL's reward (arXiv:2510.25992) for a student that does not think aloud: word similarity of its next step to the
    expert's, -1 when it wrote nothing. For `instances="steps"`."""
    return [step_similarity(rollout.text, _expert(rollout)) for rollout in rollouts]


def similar_thought_step(rollouts: Sequence[Rollout]) -> list[float]:
    """SRL's reward for a student that thinks freely in tags and then writes the step: only the step is compared; -1
    where the form is broken. For `instances="thought steps"`."""
    return [step_similarity(after_thinking(rollout.text), _expert(rollout)) for rollout in rollouts]


def markers(rollouts: Sequence[Rollout]) -> list[float]:
    """Epistemic markers ("wait", "maybe" ...) a hundred words, as substrings (arXiv:2603.24472). To be reported, not
    rewarded: when they fall under a teacher that is told the solution, generalisation goes with them."""
    counts = [sum(count_markers(rollout.text).values()) for rollout in rollouts]
    words = [len(rollout.text.split()) for rollout in rollouts]
    return [100.0 * count / max(total, 1) for count, total in zip(counts, words, strict=True)]


def _expert(rollout: Rollout) -> str:
    return rollout.trace.steps[rollout.step - 1].text
