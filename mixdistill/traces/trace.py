"""Trace: one teacher's worked solution to one problem. Host only; its JSON form passes between processes."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from mixdistill.errors import UserError

SCHEMA_VERSION = 1


class Verdict(enum.StrEnum):
    """What grading said of the final answer. `UNVERIFIED` is a grader that failed or ran out of time, never a guess."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNGRADED = "ungraded"
    UNVERIFIED = "unverified"


@dataclasses.dataclass(frozen=True)
class Step:
    """One reasoning step. `text` keeps its own white space: the texts of a trace joined are the original text."""

    text: str
    token_logprobs: tuple[float, ...] = ()  # the teacher's own, in nats; empty when not recorded


@dataclasses.dataclass(frozen=True)
class Trace:
    """A worked solution. `answer` is the final answer alone, "" when the text holds none."""

    problem_id: str
    prompt: str
    steps: tuple[Step, ...]
    answer: str
    teacher: str
    verdict: Verdict = Verdict.UNGRADED
    reference: str = ""  # the problem's reference answer, "" when unknown: grading and evaluation read it
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # provenance (JSON values): source, fold, sample

    @property
    def text(self) -> str:
        """The completion, exactly as the teacher wrote it."""
        return "".join(step.text for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON values; `from_json` inverts it."""
        return {
            "schema": SCHEMA_VERSION,
            "problem_id": self.problem_id,
            "prompt": self.prompt,
            "steps": [_step_to_json(step) for step in self.steps],
            "answer": self.answer,
            "teacher": self.teacher,
            "verdict": self.verdict.value,
            "reference": self.reference,
            "meta": dict(self.meta),
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "Trace":
        """Raises `UserError` for another schema version or a missing field."""
        if row.get("schema") != SCHEMA_VERSION:
            raise UserError(f"trace has schema {row.get('schema')!r}; this version reads {SCHEMA_VERSION}")
        try:
            steps = tuple(Step(s["text"], tuple(s.get("token_logprobs", ()))) for s in row["steps"])
            return Trace(
                row["problem_id"],
                row["prompt"],
                steps,
                row["answer"],
                row["teacher"],
                Verdict(row["verdict"]),
                row.get("reference", ""),
                row.get("meta", {}),
            )
        except KeyError as error:
            raise UserError(f"trace lacks field {error.args[0]!r}; it has {', '.join(sorted(row))}") from None


def _step_to_json(step: Step) -> dict[str, Any]:
    row: dict[str, Any] = {"text": step.text}
    if step.token_logprobs:
        row["token_logprobs"] = list(step.token_logprobs)
    return row
