"""Is it the form of a trace or its content that teaches, and does a form carry over? In the walk world.

A student imitates traces of which only the content is right, only the form, or neither; and one learns a form first,
from traces whose content is worthless or from another world, and then half as many right traces.
"""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from experiments import arms, corruptions
from mixdistill.evaluation.tasks import Judged, Task, world_task
from mixdistill.recipe import Stage
from mixdistill.students.families import walk
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.trace import Trace
from mixdistill.traces.worlds import chain
from mixdistill.traces.worlds import walk as walk_world
from mixdistill.traces.worlds.world import Problem, share_words
from mixdistill.traces.worlds.write import write_world

WALK, CHAIN = share_words(walk_world.WALK, chain.CHAIN)
SPLITS = ("test", "long", "clutter")
PROBLEMS_SEED = 900  # problems are the same for all students
MAX_NEW = 48
LITTLE = 0.1  # accuracy
HALF = "half of the tokens"


def label_first(trace: Trace, other: Trace, rng: random.Random) -> Trace:
    """Every step as "label target state": nothing is wrong but the form."""
    return corruptions.rewritten(trace, _turned)


def _turned(step: Sequence[str]) -> list[str]:
    *before, one, two, state = step
    return [*before, two, one, state]


KINDS = {
    "form and content": corruptions.as_it_is,
    "content in an odd form": label_first,
    "content without form": corruptions.scrambled,
    "form without content": corruptions.by(WALK, "W"),
    "neither": corruptions.filled("check"),
}
FIRST = {"worthless form first": "form without content", "other world first": "F"}  # teacher of the first half


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    traces: int = 5_000  # of each kind
    tokens: int = 260_000  # completion tokens that a student sees
    problems: int = 150  # of each split


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Every kind of trace, as a teacher; and traces of the other world."""
    corruptions.write_kinds(WALK, folder / "walk", KINDS, "F", size.traces, seed=seed)
    write_world(CHAIN, folder / "chain", {"F": size.traces}, seed=seed)


def run(cell: Cell) -> Row:
    """One student."""
    plan = arms.recipe("form", walk(WALK.tokenizer().vocab_size), _stages(cell), cell.seed)
    given = tasks(cell.size)
    if cell.arm == "content in an odd form":
        given = {name: task._replace(judge=_as_written_by_f) for name, task in given.items()}
    return arms.trained_row(cell, plan, given, MAX_NEW)


def _stages(cell: Cell) -> list[Stage]:
    tokens, half = cell.size.tokens, cell.size.tokens // 2
    if cell.arm in KINDS:
        return [_imitate(cell, tokens, cell.arm)]
    right = _imitate(cell, half, "form and content")
    if cell.arm == HALF:
        return [right]
    return [dataclasses.replace(_imitate(cell, half, FIRST[cell.arm]), name="first"), right]


def _imitate(cell: Cell, tokens: int, teacher: str) -> Stage:
    stage = arms.imitate(cell.data, tokens, [teacher], seed=cell.seed)
    folders = tuple(str(cell.data / name) for name in ("walk", "chain"))
    return dataclasses.replace(stage, source=dataclasses.replace(stage.source, shards=folders))


def tasks(size: Size) -> dict[str, Task]:
    """Problems like those of training, longer walks, and more edges beside the walk."""
    return {split: world_task(WALK, split, size.problems, seed=PROBLEMS_SEED) for split in SPLITS}


def _as_written_by_f(problems: Sequence[Problem], texts: Sequence[str]) -> list[Judged]:
    """With "label target state" turned round before anything is judged."""
    (task, *_) = [world_task(WALK, "test", 1)]
    return task.judge(problems, [_restored(text.split()) for text in texts])


def _restored(words: list[str]) -> str:
    """A text of other words stays as it is."""
    stop = words.index("=") if "=" in words else len(words)
    start, body, answer = words[:1], words[1:stop], words[stop:]
    if len(body) % 3:
        return " ".join(words)
    turned = [word for k in range(0, len(body), 3) for word in _turned(body[k : k + 3])]
    return " ".join([*start, *turned, *answer])


def verdict(results: Results) -> Verdict:
    """By the intervals of the differences in distribution; what carries over, on all three families."""
    full = "form and content"
    cost = {arm: results.difference(arm, full, "test") for arm in KINDS if arm != full}
    form_alone, odd = cost["form without content"], cost["content in an odd form"]
    gains = {arm: {s: results.difference(arm, HALF, s) for s in SPLITS} for arm in FIRST}
    carries = [arm for arm, of in gains.items() if any(gain.low > 0 for gain in of.values())]
    if results.interval(full, "test").low < 0.5:
        outcome = "not testable at this scale"
    elif form_alone.low > -LITTLE:
        outcome = "holds"
    elif odd.high < -LITTLE or carries:
        outcome = "holds in part"
    else:
        outcome = "overturned" if form_alone.high < -LITTLE else "not testable at this scale"
    enough = {True: "is enough", False: "is not enough"}[form_alone.low > -LITTLE]
    words = (
        f"A right form with worthless content {enough}: {signed(form_alone)} against right traces (no trace but a "
        f"filler: {signed(cost['neither'])}); right content in an odd form is {signed(odd)}, its words in random order "
        f"{signed(cost['content without form'])}."
    )
    shown = {arm: ", ".join(f"{split} {signed(gain)}" for split, gain in of.items()) for arm, of in gains.items()}
    more = (
        f"What carries over, against {HALF} of right traces alone: a worthless form first "
        f"{shown['worthless form first']}; another world first {shown['other world first']}. A gain by its whole "
        f"interval: {', '.join(carries) or 'none'}."
    )
    return Verdict(outcome, words, more)


def study() -> Study:
    """The study."""
    tested = [(arm, "form and content") for arm in (*KINDS, HALF) if arm != "form and content"]
    tested += [("form without content", "neither"), *((arm, HALF) for arm in FIRST)]
    return Study(
        name="form_or_content",
        question="Is it the form of a trace or its content that teaches?",
        expected=(
            "Form: traces constrain the student to imitate what reasoning looks like (2506.02878, a position paper "
            "without a table, not read, so not verified; this is its testable part). Near it: replacing or deleting "
            "cue words barely matters as long as the distribution of behaviours is kept (2601.06002, read in a summary)"
        ),
        decides="whether traces are judged by their form or by a verifier, and whether a cheap first stage pays",
        sources=("2506.02878", "2601.06002"),
        arms={
            "form and content": "teacher F as it is",
            "content in an odd form": "every step as 'label target state' (judged after turning it round)",
            "content without form": "the words of the reasoning in random order",
            "form without content": "the right walk, every state random",
            "neither": "every word of the reasoning replaced by one and the same",
            HALF: "teacher F, half of the tokens",
            "worthless form first": "half of the tokens with random states, then as above",
            "other world first": "half of the tokens from CHAIN, products in the same form, then as above",
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
            Measure("long valid", "longer walks: valid"),
            Measure("test finished", "finished"),
            Measure("test calibration error", "calibration error"),
            *(Measure(f"test error {kind}", kind) for kind in ("malformed", "edge", "stop", "product")),
        ],
        comparisons=[Comparison(one, other, split) for one, other in tested for split in SPLITS],
        verdict=verdict,
    )
