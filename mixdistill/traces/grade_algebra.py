"""Equality of mathematical expressions through math-verify. Runs only in a process of `grade_pool`."""

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

CONFIGS = (LatexExtractionConfig(), ExprExtractionConfig())


def equal(answer: str, reference: str) -> bool | None:
    """Whether both are the same value, interval, set, tuple or equation; None where the reference is no mathematics."""
    # math-verify's own time limits work by a signal in the main thread of the caller; ours ends the process.
    mine, its = (parse(f"${text}$", CONFIGS, parsing_timeout=None) for text in (answer, reference))  # type: ignore[arg-type]
    if not its:
        return None
    return bool(mine) and verify(its, mine, timeout_seconds=None, raise_on_error=True)
