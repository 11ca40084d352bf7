"""Answer extraction and equality -> Verdict. First version: the last number of the text against the reference's."""

import dataclasses
import re
from collections.abc import Iterable

from mixdistill.traces.trace import Trace, Verdict

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def grade_traces(traces: Iterable[Trace]) -> list[Trace]:
    """The traces with answer and verdict; those without a reference stay ungraded."""
    return [_graded(trace) for trace in traces]


def _graded(trace: Trace) -> Trace:
    answer = trace.answer or _last_number(trace.text)
    if not trace.reference or trace.verdict is not Verdict.UNGRADED:
        return dataclasses.replace(trace, answer=answer)
    same = answer and _value(answer) == _value(_last_number(trace.reference))
    return dataclasses.replace(trace, answer=answer, verdict=Verdict.CORRECT if same else Verdict.WRONG)


def _last_number(text: str) -> str:
    found = NUMBER.findall(text)
    return found[-1] if found else ""


def _value(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
