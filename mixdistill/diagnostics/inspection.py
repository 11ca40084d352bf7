"""Inspection: what can be said of the teachers in some shards before training, as one dict."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixdistill.diagnostics import duplicates, verdicts
from mixdistill.diagnostics.conflict import Clash, Continuations, conflict_matrix, count_continuations, worst_contexts
from mixdistill.diagnostics.content import content_traces
from mixdistill.diagnostics.describe import describe_pairs, describe_teachers
from mixdistill.diagnostics.groups import THRESHOLD, Group, compatible_groups, coverage
from mixdistill.diagnostics.survey import Survey, merge, survey
from mixdistill.diagnostics.tokenization import TokenizerFit, tokenizer_fit
from mixdistill.traces.ordered_pool import ordered_map
from mixdistill.traces.shards import Shards

ALL = 2**62  # traces a teacher
PARTS = 4  # of the survey, over processes
WORTH_PROCESSES = 4000  # traces; fewer are surveyed before a process has started
SHOWN_CLASHES, SHOWN_GROUPS, SHOWN_PAIRS = 5, 5, 8
SEEN = 0.5  # share of its n-grams from which an evaluation problem counts as seen


def inspect(shards: Shards, *, workers: int = 1, against: Sequence[str] = ()) -> dict[str, Any]:
    """Form, conflict, groups, overlap, verdicts: no student. `against`: evaluation problems that must not be in the
    shards. NaN stands for "no data"; `plain` makes JSON of it."""
    found, continuations = _work(shards, workers)
    teachers = describe_teachers(shards, found)
    matrix = conflict_matrix(continuations)
    for name, row in teachers.items():
        row["conflicts"] = _conflicts_of(name, matrix)
    fit, overlap = tokenizer_fit(shards.tokenizer), _overlap(shards, found.prompts, against)
    made = {
        "shards": str(shards.path),
        "fingerprint": shards.fingerprint,
        "traces": len(shards),
        "tokens": int(shards.manifest["num_tokens"]),
        "problems": len(shards.problems),
        "student": None,
        "pilots": [],
        "pairwise": [],
        "teachers": teachers,
        "pairs": {**describe_pairs(shards, found), "conflict": matrix.score, "shared": matrix.shared},
        "clashes": _clashes(shards, continuations, matrix),
        "groups": _groups(shards, found, matrix.score),
        "tokenizer": fit._asdict(),
        "overlap": overlap,
        "warnings": [w._asdict() for w in [*_tokenizer_warnings(fit, teachers), *_overlap_warnings(overlap)]],
    }
    conclude(made)
    return made


def conclude(inspection: Mapping[str, Any]) -> None:
    """Writes the warnings and the verdict of every teacher, from what is known of it by now."""
    teachers = inspection["teachers"]
    for row in teachers.values():
        row["warnings"] = [warning._asdict() for warning in verdicts.teacher_warnings(row)]
    for name, row in teachers.items():
        row["verdict"] = verdicts.verdict(name, row, teachers)


def all_warnings(inspection: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every warning, those of teachers with their name."""
    of_teachers = [{"teacher": name, **w} for name, row in inspection["teachers"].items() for w in row["warnings"]]
    return [*({"teacher": "", **w} for w in inspection["warnings"]), *of_teachers]


def plain(value: Any) -> Any:
    """JSON values: arrays become lists, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Job:
    """The work of one process: the conflict of all teachers, or the survey of some traces."""

    def __init__(self, shards: Shards):
        self.shards = shards

    def __call__(self, span: tuple[int, int] | None) -> Survey | Continuations:
        if span is None:
            return count_continuations(content_traces(self.shards, ALL))
        return survey(self.shards, *span)


def _work(shards: Shards, workers: int) -> tuple[Survey, Continuations]:
    ends = np.linspace(0, len(shards), PARTS + 1).astype(int).tolist()
    jobs = [None, *itertools.pairwise(ends)]
    workers = min(workers, len(jobs)) if len(shards) >= WORTH_PROCESSES else 1
    found = list(ordered_map(Job(shards), jobs, workers=workers))
    (continuations,) = (part for part in found if isinstance(part, Continuations))
    return merge([part for part in found if isinstance(part, Survey)]), continuations


def _conflicts_of(name: str, matrix) -> list[dict[str, Any]]:
    i = matrix.teachers.index(name)
    order = np.argsort(-np.nan_to_num(matrix.score[i]), kind="stable")
    return [
        {"with": matrix.teachers[j], "score": float(matrix.score[i, j]), "shared": float(matrix.shared[i, j])}
        for j in order
        if j != i and matrix.score[i, j] > THRESHOLD and matrix.shared[i, j] >= verdicts.COMPARED
    ]


def _clashes(shards: Shards, continuations: Continuations, matrix) -> list[dict[str, Any]]:
    """The worst contexts of the worst pairs, as text."""
    score = np.where(matrix.shared >= verdicts.COMPARED, np.nan_to_num(matrix.score), 0.0)
    pairs = [(i, j) for i in range(len(score)) for j in range(i) if score[i, j] > THRESHOLD]
    pairs = sorted(pairs, key=lambda pair: -score[pair])[:SHOWN_PAIRS]

    def text(tokens: Sequence[int]) -> str:
        return shards.tokenizer.decode(tokens)

    def telling(clashes: list[Clash]) -> list[Clash]:
        """Words before digits: which digit follows a digit depends on the problems, and says little to a reader."""
        return sorted(clashes, key=lambda clash: not re.search(r"[^\W\d]", text(clash.context)))[:SHOWN_CLASHES]

    return [
        {
            "teachers": [matrix.teachers[j], matrix.teachers[i]],
            "score": float(score[i, j]),
            "contexts": [
                {
                    "text": text(clash.context),
                    "share": clash.share,
                    "after": [[[text([token]), share] for token, share in side] for side in clash.after],
                }
                for clash in telling(worst_contexts(continuations, matrix.teachers[j], matrix.teachers[i], limit=50))
            ],
        }
        for i, j in pairs
    ]


def _groups(shards: Shards, found: Survey, score: np.ndarray) -> list[dict[str, Any]]:
    """Groups of compatible teachers; what counts as covered is a problem that one of them solves (has, if ungraded)."""
    teacher, problem = shards.index["teacher_id"], shards.index["problem"]
    graded = ~np.isnan(found.correct).all()
    good = found.correct == 1 if graded else np.ones(len(teacher), bool)
    kinds = {name: set(problem[good & (teacher == k)].tolist()) for k, name in enumerate(shards.teachers)}
    wanted = dict.fromkeys(range(len(shards.problems)), 1.0)
    groups = compatible_groups(shards.teachers, score, kinds, wanted)[:SHOWN_GROUPS]
    return [{**group._asdict(), "adds": _additions(group, kinds, wanted)} for group in groups]


def _additions(group: Group, kinds, wanted) -> list[dict[str, Any]]:
    """Teachers in the order in which each adds most coverage to those before it."""
    left, together, adds = list(group.teachers), set(), []
    while left:
        best = max(left, key=lambda name: len(kinds[name] - together))
        before = coverage(together, wanted)
        together = together | kinds[best]
        adds.append({"teacher": best, "adds": coverage(together, wanted) - before})
        left.remove(best)
    return adds


def _overlap(shards: Shards, prompts: Mapping[int, str], against: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How many problems of every smaller fold the largest has seen, and how many of `against` are anywhere."""
    folds = {name: np.unique(shards.index["problem"][shards.index["fold"] == k]) for k, name in enumerate(shards.folds)}
    largest = max(folds, key=lambda name: len(folds[name]), default="")
    tests = {f"fold {name}": [prompts[p] for p in held] for name, held in folds.items() if name != largest}
    training = [prompts[p] for p in folds.get(largest, ())]
    found = {name: _seen(texts, training, f"fold {largest}") for name, texts in tests.items()}
    return found | ({"against": _seen(against, list(prompts.values()), "all traces")} if against else {})


def _seen(evaluation: Sequence[str], training: Sequence[str], where: str) -> dict[str, Any]:
    share = duplicates.seen_share(evaluation, training)
    seen = np.flatnonzero(share >= SEEN)
    examples = [evaluation[i] for i in seen[:3]]
    return {"in": where, "problems": len(evaluation), "seen": len(seen), "examples": examples}


def _overlap_warnings(overlap: Mapping[str, Mapping[str, Any]]) -> list[verdicts.Finding]:
    return [
        verdicts.Finding(
            "warning",
            "overlap",
            f"{row['seen']} of {row['problems']} problems of {name} are also in {row['in']} (half of their "
            f"{duplicates.OVERLAP_WORDS}-word sequences or more)",
            "leave them out of one side, or results there mean nothing",
        )
        for name, row in overlap.items()
        if row["seen"]
    ]


def _tokenizer_warnings(fit: TokenizerFit, teachers: Mapping[str, Mapping[str, Any]]) -> list[verdicts.Finding]:
    used = [name for name, row in teachers.items() if 1 - row["think_tags"].get("none", 0.0) >= verdicts.TAGS]
    if not (fit.split_think_tags and used):
        return []
    return [
        verdicts.Finding(
            "note",
            "split tags",
            f"the tokenizer cuts {' and '.join(fit.split_think_tags)} into pieces; {', '.join(used)} write them",
            "use a tokenizer that has them as tokens, if the student is to be served with a reasoning parser",
        )
    ]
