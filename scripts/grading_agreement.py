"""How often our grading says what the `correct` labels of the recorded traces say: a table per set.

    python scripts/grading_agreement.py [--disagreements FILE]

Exits with 1 when a set is below its threshold. The labels themselves hold some errors (README beside the traces)."""

import argparse
import collections
import json
import sys
import time
from pathlib import Path

from experiments.development_data import development_data
from mixdistill.errors import UserError
from mixdistill.traces.grade import grade_traces
from mixdistill.traces.readers import read
from mixdistill.traces.trace import Trace, Verdict

THRESHOLDS = {
    "gsm8k_teachers": 0.99,
    "gsm8k_human": 0.97,
    "gsm8k_longcot": 0.97,
    "math_l5_teachers": 0.97,
    "math_longcot": 0.97,
}


def main() -> int:
    """Prints the table; 1 if a set is below its threshold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--disagreements", type=Path, help="JSON lines file of the traces that differ")
    args = parser.parse_args()
    print(
        f"{'set':18}{'traces':>8}{'agreement':>11}{'at least':>10}{'too strict':>12}{'too mild':>10}{'open':>6}{'s':>6}"
    )
    below, different = [], []
    for name, threshold in THRESHOLDS.items():
        agreement, rows = measure(development_data() / name, name, threshold)
        different += rows
        if agreement < threshold:
            below.append(name)
    if args.disagreements:
        args.disagreements.write_text("".join(json.dumps(row) + "\n" for row in different))
    if below:
        print(f"below the threshold: {', '.join(below)}")
    return 1 if below else 0


def measure(folder: Path, name: str, threshold: float) -> tuple[float, list[dict]]:
    """The share of labelled traces whose verdict is their label's, and those where it is not ("open" ones too)."""
    start = time.process_time()
    traces = [row for path in sorted(folder.glob("*.jsonl.gz")) for row in read(path) if isinstance(row, Trace)]
    graded = [trace for trace in grade_traces(traces) if "label" in trace.meta]
    kinds = collections.Counter(kind(trace) for trace in graded)
    agreement = kinds["agree"] / len(graded)
    print(
        f"{name:18}{len(graded):8}{agreement:11.4f}{threshold:10.2f}{kinds['too strict']:12}{kinds['too mild']:10}"
        f"{kinds['open']:6}{time.process_time() - start:6.1f}"
    )
    return agreement, [described(trace) for trace in graded if kind(trace) != "agree"]


def kind(trace: Trace) -> str:
    """How verdict and label stand to each other."""
    if trace.verdict not in (Verdict.CORRECT, Verdict.WRONG):
        return "open"
    if (trace.verdict is Verdict.CORRECT) == trace.meta["label"]:
        return "agree"
    return "too strict" if trace.meta["label"] else "too mild"


def described(trace: Trace) -> dict:
    """What one needs to judge a difference."""
    return {
        "kind": kind(trace),
        "source": f"{trace.teacher} {trace.meta['source']}:{trace.meta['line']}",
        "answer": trace.answer,
        "reference": trace.reference,
        "end": trace.text[-400:],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
