"""The index of the studies, experiments/README.md, written from their committed rows.

python -m experiments.index            # writes it
python -m experiments.index --check    # exit code 1 if it, a table or a verdict is not what the rows say
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixdistill.studies.publish import results_of, signed, table, verdict_page
from mixdistill.studies.rows import ALL, read_all
from mixdistill.studies.study import Study, load_study

STUDIES = (
    "mixing",
    "corrupted_traces",
    "form_or_content",
    "teacher_context",
    "length_and_difficulty",
    "local_memorisation",
    "learning_frontier",
    "step_confidence",
    "imitate_then_refine",
    "adaptive_routing",
    "composition",
    "admission_rules",
    "real_teachers",
)
RESULTS, README = Path(__file__).parent / "results", Path(__file__).parent / "README.md"
HEAD = """# Studies

Each is one file: a question, arms at equal token budgets, seeds, paired differences with intervals, and a verdict that
is computed from the rows. `mixdistill sweep NAME` runs what is missing and writes `results/NAME/`; `--tiny` shows in
seconds that it runs; `--check --arms A --seeds N` runs one row again and compares it bit for bit (on the same type of
machine). What follows from all of them: [docs/findings.md](../docs/findings.md).

| study | question | verdict | difference that decides | seeds |
|---|---|---|---|---|
"""


def lines() -> Iterator[str]:
    """One a study."""
    for name in STUDIES:
        study, found = load_study(name), read_all(RESULTS / name / ALL)
        head = f"| [{name}]({name}.py) | {study.question} |"
        if not found:
            yield f"{head} not run yet | | |"
            continue
        results = results_of(study, found)
        verdict = study.verdict(results)
        first = study.comparisons[0]
        gain = signed(results.difference(first.one, first.other, first.measure))
        seeds = len({row.seed for row in results.rows})
        said = f"[**{verdict.outcome}**](results/{name}/verdict.md): {verdict.words}"
        yield f"{head} {said} | {first.one} - {first.other}: {gain} | {seeds} |"


def text() -> str:
    """Of the README."""
    return HEAD + "\n".join(lines()) + "\n"


def stale() -> list[Path]:
    """Files that are not what the rows say."""
    wanted = {README: text()}
    for name in STUDIES:
        study, found = load_study(name), read_all(RESULTS / name / ALL)
        if found:
            wanted |= dict(_pages(study, RESULTS / name, found))
    return [path for path, said in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != said]


def _pages(study: Study, folder: Path, found: list) -> Iterator[tuple[Path, str]]:
    results = results_of(study, found)
    yield folder / "table.md", table(study, results)
    yield folder / "verdict.md", verdict_page(study, results, study.verdict(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.index", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args(arguments).check:
        print(*(f"{path} is not what the rows say" for path in stale()), sep="\n", file=sys.stderr)
        return 1 if stale() else 0
    README.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
