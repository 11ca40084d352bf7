"""Does a student need traces that are right? Every corruption is of all its traces, in the walk world.

The papers' claims are two: traces of other problems teach as well as the right ones (mazes), and it is the order of the
steps that matters, not their content (long traces). Walks are short and their answer can hardly be found without them.
"""

import dataclasses
from pathlib import Path

from experiments import arms, corruptions, students
from mixdistill.evaluation.intervals import Interval
from mixdistill.evaluation.tasks import Task, world_task
from mixdistill.students.families import walk
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.worlds.walk import WALK

PLAIN = {
    "correct": corruptions.as_it_is,
    "swapped": corruptions.swapped,
    "half of the answers wrong": corruptions.in_part(corruptions.with_another_answer, 0.5),
    "steps shuffled": corruptions.shuffled,
    "a third of the steps deleted": corruptions.thinned(1 / 3),
    "no reasoning": corruptions.without_reasoning,
}
HEDGED = {
    "hedged": corruptions.as_it_is,
    "hedged, keywords dropped": corruptions.without_words(("maybe", "check")),
}
SPLITS = ("test", "long", "clutter")
PROBLEMS_SEED = 900  # problems are the same for all students
MAX_NEW = 48
NO_REASONING = 0.25  # of the tokens: three a trace instead of about fifteen, so about as many traces
LITTLE = 0.1  # accuracy


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    traces: int = 5_000  # of each kind
    tokens: int = 260_000  # completion tokens that a student sees
    problems: int = 150  # of each split


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Every kind of trace, as a teacher."""
    corruptions.write_kinds(WALK, folder / "plain", PLAIN, "F", size.traces, seed=seed)
    corruptions.write_kinds(WALK, folder / "hedged", HEDGED, "H", size.traces, seed=seed)


def run(cell: Cell) -> Row:
    """One student."""
    shards = cell.data / ("plain" if cell.arm in PLAIN else "hedged")
    tokens = round(cell.size.tokens * (NO_REASONING if cell.arm == "no reasoning" else 1))
    stage = arms.imitate(shards, tokens, [cell.arm], seed=cell.seed)
    plan = arms.recipe("corrupted", walk(WALK.tokenizer().vocab_size), [stage], cell.seed)
    trained = students.train(plan, cell.folder / "run", cell.report)
    given = tasks(cell.size)
    found = arms.answered(trained, given, MAX_NEW)
    outcomes, numbers = arms.counted(given, found)
    right = [one.valid for one in found["test"] if one.correct]
    numbers["valid where right"] = sum(right) / len(right) if right else float("nan")
    return Row(cell.arm, cell.seed, outcomes, numbers, arms.spent(cell.folder / "run"))


def tasks(size: Size) -> dict[str, Task]:
    """Problems like those of training, longer walks, and more edges beside the walk."""
    return {split: world_task(WALK, split, size.problems, seed=PROBLEMS_SEED) for split in SPLITS}


def size_of(cost: Interval) -> str:
    """Of a difference to the uncorrupted, by its interval."""
    if cost.low > -LITTLE:
        return "little"
    return "much" if cost.high < -LITTLE else "an amount that is not decided"


def verdict(results: Results) -> Verdict:
    """Each claim by the intervals of its differences, in distribution."""
    cost = {arm: results.difference(arm, "correct", "test") for arm in PLAIN if arm != "correct"}
    cost["keywords dropped"] = results.difference("hedged, keywords dropped", "hedged", "test")
    size = {name: size_of(found) for name, found in cost.items()}
    claims = {
        "swap": size["swapped"] == "little",
        "structure": size["steps shuffled"] == size["a third of the steps deleted"] == "much",
        "content": size["half of the answers wrong"] == size["keywords dropped"] == "little",
    }
    outcome = "holds" if all(claims.values()) else "holds in part" if any(claims.values()) else "overturned"
    if results.interval("correct", "test").low < 0.5:
        outcome = "not testable at this scale"
    told = {name: f"{size[name]} ({signed(found)})" for name, found in cost.items()}
    far = signed(results.difference("swapped", "correct", "long"))
    words = (
        f"Traces of other problems cost {told['swapped']}, on longer walks {far}: here the trace "
        f"{'need not be' if claims['swap'] else 'carries the computation and has to be'} that of the problem."
    )
    more = (
        f"No reasoning at all costs {told['no reasoning']}. Structure: shuffled steps cost {told['steps shuffled']}, "
        f"a third of them deleted {told['a third of the steps deleted']}. Content: wrong answers in half of the traces "
        f"cost {told['half of the answers wrong']}, dropped keywords {told['keywords dropped']}. Of the right answers, "
        f"{results.interval('correct', 'valid where right')} have valid reasoning after right traces and "
        f"{results.interval('swapped', 'valid where right')} after swapped ones. Little is less than {LITTLE} of "
        "accuracy by the whole interval, much is more by the whole interval."
    )
    return Verdict(outcome, words, more)


def study() -> Study:
    """The study."""
    tested = [(arm, "correct") for arm in PLAIN if arm != "correct"] + [("hedged, keywords dropped", "hedged")]
    tested.append(("swapped", "no reasoning"))
    return Study(
        name="corrupted_traces",
        question="Does a student need traces that are right?",
        expected=(
            "Swapped traces: 83.3 % against 79.9 % for right ones on Wilson mazes, 11.7 against 0.0 out of "
            "distribution (Drunkard), with trace validity 0 % (2505.13775 v3, read in a summary); wrong final answers "
            "cost 3.2 points, dropped keywords little, shuffled and deleted steps much (2502.07374, abstract)"
        ),
        decides="whether wrong and invalid traces are filtered before training, and that validity is reported apart",
        sources=("2505.13775", "2502.07374"),
        arms={
            "correct": "teacher F as it is",
            "swapped": "the reasoning of another problem, the right answer",
            "half of the answers wrong": "right reasoning; every second trace with the answer of another problem",
            "steps shuffled": "the steps of the reasoning in random order",
            "a third of the steps deleted": "each step left out with probability 1/3",
            "no reasoning": "the answer alone; a quarter of the completion tokens, about as many traces",
            "hedged": "teacher H, who opens with 'maybe' and closes with 'check NODE STATE'",
            "hedged, keywords dropped": "the same without these two words",
        },
        seeds=range(5),
        size=Size(),
        tiny=Size(traces=200, tokens=1_500, problems=8),
        run=run,
        prepare=prepare,
        measures=[
            Measure("test", "accuracy"),
            Measure("long", "longer walks"),
            Measure("clutter", "more clutter"),
            Measure("test valid", "valid"),
            Measure("valid where right", "valid where right"),
            Measure("test calibration error", "calibration error"),
            *(Measure(f"test error {kind}", kind) for kind in ("malformed", "edge", "stop", "product")),
        ],
        comparisons=[Comparison(one, other, split) for one, other in tested for split in SPLITS],
        verdict=verdict,
    )
