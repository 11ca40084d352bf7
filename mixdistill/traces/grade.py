"""Grading: the final answer of a text, and whether it equals the reference -> Verdict.

`grade_extract` finds the answer and never sees the reference; `grade_equal` decides what plain rules can decide; the
rest, algebra, goes to a process that can be killed (`grade_pool`). What that cannot tell is UNVERIFIED, not a guess."""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence

from mixdistill.traces.grade_equal import equal, plain
from mixdistill.traces.grade_extract import extract
from mixdistill.traces.grade_pool import Pair, Pool
from mixdistill.traces.trace import Trace, Verdict

VERDICTS = {True: Verdict.CORRECT, False: Verdict.WRONG, None: Verdict.UNVERIFIED}


def has_algebra() -> bool:
    """Whether math-verify is installed; without it answers that take algebra are UNVERIFIED."""
    return importlib.util.find_spec("math_verify") is not None


def grade_traces(traces: Sequence[Trace], pool: Pool | None = None) -> list[Trace]:
    """The traces with `answer` (unless they have one) and `verdict` (unless they have one). UNGRADED: no reference."""
    answered = [dataclasses.replace(trace, answer=trace.answer or extract(trace.text)) for trace in traces]
    open_ = [trace for trace in answered if trace.reference and trace.verdict is Verdict.UNGRADED]
    verdicts = iter(compare([(trace.answer, trace.reference) for trace in open_], pool))
    graded = {id(trace): dataclasses.replace(trace, verdict=next(verdicts)) for trace in open_}
    return [graded.get(id(trace), trace) for trace in answered]


def compare(pairs: Sequence[Pair], pool: Pool | None = None) -> list[Verdict]:
    """The verdict on each (answer, reference); no answer is WRONG. `pool` does the algebra (None: one process that all
    calls of this process share)."""
    told = {pair: bool(pair[0]) and equal(*pair) for pair in pairs}
    hard = [pair for pair, verdict in told.items() if verdict is None]
    if hard and has_algebra():
        told.update(
            zip(hard, (pool or _pool()).equal([(plain(one), plain(other)) for one, other in hard]), strict=True)
        )
    return [VERDICTS[told[pair]] for pair in pairs]


@functools.cache
def _pool() -> Pool:
    return Pool()
