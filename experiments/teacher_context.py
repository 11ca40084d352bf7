"""Does a teacher that is told the answer teach worse out of distribution than a cautious one? In the walk world.

Told the answer, a teacher leaves out what it needs not work out: the first and the last state here (concise), or every
second one (terse). How much its reasoning owes to the answer is its information richness: the nats that a student saves
on it by being told the answer, too.
"""

import dataclasses
import random
from pathlib import Path

import jax
import numpy as np

from experiments import arms, corruptions, students
from mixdistill.evaluation.answers import Answer
from mixdistill.evaluation.tasks import Task, world_task
from mixdistill.generation import contexts
from mixdistill.generation.scoring import BATCH_TOKENS, Runner
from mixdistill.students.families import walk
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.shards import Shards
from mixdistill.traces.trace import Step, Trace
from mixdistill.traces.worlds.walk import STATES, WALK
from mixdistill.training.workdir import Trained

HALF = "plain, half the tokens"
MARKERS = ("maybe", "check")
SPLITS = ("test", "long", "clutter")
PROBLEMS_SEED = 900  # problems are the same for all students
HELD_OUT = 1_000  # added to the seed of traces that are scored, not learned
MAX_NEW = 64
LITTLE = 0.1  # accuracy


def told(kind: corruptions.Kind) -> corruptions.Kind:
    """The same with the answer at the end of the prompt."""

    def tell(trace: Trace, other: Trace, rng: random.Random) -> Trace:
        return dataclasses.replace(kind(trace, other, rng), prompt=f"{trace.prompt}= {trace.answer} ")

    return tell


def concise(trace: Trace, other: Trace, rng: random.Random) -> Trace:
    """Without the first state, which is the first label in another sign, and the last, which is the answer."""
    *reasoning, answer = trace.steps
    ends = (0, len(reasoning) - 1)
    steps = [_stateless(step) if k in ends else step for k, step in enumerate(reasoning)]
    return dataclasses.replace(trace, steps=(*steps, answer))


def _stateless(step: Step) -> Step:
    *words, state = step.text.split()
    assert state in STATES
    return Step(" ".join(words) + " ")


KINDS = {
    "plain": corruptions.as_it_is,
    "cautious": corruptions.by(WALK, "H"),
    "concise": concise,
    "terse": corruptions.by(WALK, "T"),
    "plain, told": told(corruptions.as_it_is),
    "concise, told": told(concise),
}
TOLD = {"plain, told": "plain", "concise, told": "concise"}  # arm -> the same untold


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    traces: int = 5_000  # of each kind
    tokens: int = 260_000  # completion tokens that a student sees
    problems: int = 150  # of each split
    scored: int = 300  # traces


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Every kind of trace, as a teacher; and a few more to score."""
    corruptions.write_kinds(WALK, folder / "shards", KINDS, "F", size.traces, seed=seed)
    corruptions.write_kinds(WALK, folder / "held out", KINDS, "F", size.scored, seed=seed + HELD_OUT)


def run(cell: Cell) -> Row:
    """One student; one that is told answers is not examined."""
    teacher = "plain" if cell.arm == HALF else cell.arm
    tokens = cell.size.tokens // (2 if cell.arm == HALF else 1)
    stage = arms.imitate(cell.data / "shards", tokens, [teacher], seed=cell.seed)
    plan = arms.recipe("context", walk(WALK.tokenizer().vocab_size), [stage], cell.seed)
    trained = students.train(plan, cell.folder / "run", cell.report)
    own = {"nats": surprisal(trained, Shards.open(cell.data / "held out"), teacher)}
    spent = arms.spent(cell.folder / "run")
    if cell.arm in TOLD:
        own["richness"] = cell.needs[TOLD[cell.arm]].numbers["nats"] - own["nats"]
        return Row(cell.arm, cell.seed, {}, own, spent)
    given = tasks(cell.size)
    found = arms.answered(trained, given, MAX_NEW)
    outcomes, numbers = arms.counted(given, found)
    cues = {f"{split} markers": markers(found[split]) for split in SPLITS}
    return Row(cell.arm, cell.seed, outcomes, {**numbers, **cues, **own}, spent)


def tasks(size: Size) -> dict[str, Task]:
    """Problems like those of training, longer walks, and more edges beside the walk."""
    return {split: world_task(WALK, split, size.problems, seed=PROBLEMS_SEED) for split in SPLITS}


def markers(answers: list[Answer]) -> float:
    """Words of caution a completion."""
    return float(np.mean([sum(word in MARKERS for word in one.text.split()) for one in answers]))


def surprisal(trained: Trained, shards: Shards, teacher: str) -> float:
    """Of the teacher's reasoning, without the answer, nats a trace."""
    found = [trace for trace in (shards[n] for n in range(len(shards))) if trace.trace.teacher == teacher]
    runner = Runner(trained.student, trained.params, BATCH_TOKENS, jax.local_devices()[:1])
    _, fields = runner(contexts.full(), found)
    steps = [trace.step_id[trace.num_prompt :] for trace in found]
    reasoning = np.concatenate([step < step[-1] for step in steps])
    return float(-fields["label_logprob"].astype(np.float64)[reasoning].sum() / len(found))


def verdict(results: Results) -> Verdict:
    """Of every concise teacher that teaches as well as the cautious one in distribution: is it worse out of it?"""
    gap = {arm: {split: results.difference(arm, "cautious", split) for split in SPLITS} for arm in ("concise", "terse")}
    learned = results.interval("cautious", "test").low > 0.5
    testable = [arm for arm, of in gap.items() if learned and of["test"].low > -LITTLE]
    worse = [arm for arm in testable if any(gap[arm][split].high < 0 for split in SPLITS[1:])]
    outcome = "not testable at this scale"
    if worse:
        outcome = "holds" if worse == testable else "holds in part"
    elif testable and all(gap[arm][split].low > -LITTLE for arm in testable for split in SPLITS[1:]):
        outcome = "overturned"
    shown = {arm: ", ".join(f"{split} {signed(found)}" for split, found in of.items()) for arm, of in gap.items()}
    words = (
        f"Against the cautious teacher the concise one is {shown['concise']}, the terse one {shown['terse']}: "
        f"as good in distribution {', '.join(testable) or 'neither'}, and of these worse out of it "
        f"{', '.join(worse) or 'none'}."
    )
    plain = {split: signed(results.difference("cautious", "plain", split)) for split in SPLITS}
    more = (
        f"The cautious teacher against the plain one: {', '.join(f'{s} {found}' for s, found in plain.items())}. Its "
        f"student writes {results.interval('cautious', 'long markers')} words of caution on a longer walk. Calibration "
        f"errors on longer walks: cautious {results.interval('cautious', 'long calibration error')}, plain "
        f"{results.interval('plain', 'long calibration error')}, concise "
        f"{results.interval('concise', 'long calibration error')}. Information richness, nats a trace: plain "
        f"{signed(results.interval('plain, told', 'richness'))}, concise "
        f"{signed(results.interval('concise, told', 'richness'))}."
    )
    return Verdict(outcome, words, more)


def study() -> Study:
    """The study."""
    tested = [("concise", "cautious"), ("terse", "cautious"), ("cautious", "plain"), ("concise", "plain")]
    tested.append((HALF, "plain"))
    compared = [*SPLITS, "long calibration error"]
    return Study(
        name="teacher_context",
        question="Does a teacher that is told the answer teach worse out of distribution than a cautious one?",
        expected=(
            "800 right traces: a student falls from 54.8 to 51.0 (AIME24) by traces written without the solution and "
            "to 20.2 by traces written with it, MATH500 from 92.2 to 90.9 and 65.5; told teachers are short (1,873 "
            "tokens for 13,054) and use few words of caution (8.8 for 182.5) (2603.24472 v1, read in notes)"
        ),
        decides="whether solution-conditioned teachers are warned about, and whether words of caution are kept",
        sources=("2603.24472",),
        arms={
            "plain": "teacher F as it is",
            HALF: "the same with half of the tokens: what dilution alone does",
            "cautious": "teacher H, who says 'maybe' first, every source, and a check at the end",
            "concise": "F without its first state and its last, which is the answer",
            "terse": "F without every second state",
            "plain, told": "F, and the prompt ends with the answer: for information richness alone",
            "concise, told": "concise, and the prompt ends with the answer: likewise",
        },
        seeds=range(5),
        size=Size(),
        tiny=Size(traces=200, tokens=1_500, problems=8, scored=8),
        run=run,
        prepare=prepare,
        measures=[
            Measure("test", "accuracy"),
            Measure("long", "longer walks"),
            Measure("clutter", "more clutter"),
            Measure("test calibration error", "calibration error"),
            Measure("long calibration error", "longer walks: calibration error"),
            Measure("test tokens", "tokens", 1),
            Measure("long markers", "longer walks: words of caution", 2),
            Measure("nats", "nats of the reasoning", 2),
            Measure("richness", "information richness, nats", 2),
            Measure("test error product", "product"),
            Measure("long error stop", "longer walks: stop"),
        ],
        comparisons=[Comparison(one, other, measure) for one, other in tested for measure in compared],
        verdict=verdict,
        needs={arm: (other,) for arm, other in TOLD.items()},
    )
