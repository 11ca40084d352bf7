"""Study: do wrong tokens copy what the traces say locally, and whose phrasing do they copy?

STIM on the training traces themselves: of the first wrong token of each answer, whether its local context, the text
before or the problem explains best what the student finds likely, and which teacher writes it most. The same of tokens
of right answers, as a control that the paper's headline lacks. Students of one teacher, of several, and of traces that
one teacher begins and another continues (seams).
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import arms, students
from mixdistill.diagnostics.memorisation import Alternatives, Memorisation, memorisation
from mixdistill.diagnostics.ngram_index import NgramIndex
from mixdistill.evaluation.answers import Answer, answer
from mixdistill.evaluation.tasks import Task, world_task
from mixdistill.generation.contexts import topk
from mixdistill.generation.scoring import Runner
from mixdistill.students.families import walk
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import Shards
from mixdistill.traces.trace import Step, Trace
from mixdistill.traces.worlds.walk import WALK
from mixdistill.traces.worlds.world import Problem, Teacher
from mixdistill.traces.worlds.write import encode_words, write_world
from mixdistill.training.workdir import Trained

TOP_K = 20  # STIM's
ROWS = 8  # of a batch: about 20 traces
PROBLEMS_SEED, MAX_NEW = 900, 48
SPLICED = "spliced"
TEACHERS = {
    "F alone": ("F",),
    "K alone": ("K",),
    "F and K": ("F", "K"),
    "F, K, H and N": ("F", "K", "H", "N"),
    "F and K within a trace": (SPLICED,),
}
FORMS = ("F", "K", "H", "N")  # whose traces an answer is compared with
SOURCES = ("local", "mid", "long")


def _splice(question: Any, rng: random.Random) -> list[str]:
    """F's trace up to some edge and K's from there, or the other way round."""
    first, second = rng.sample(("F", "K"), 2)
    begun, ended = (list(WALK.teachers[name].write(question, rng)) for name in (first, second))
    seam = rng.randrange(1, len(begun) - 1)
    return begun[:seam] + ended[seam:]


WORLD = dataclasses.replace(
    WALK,
    teachers={
        **{name: WALK.teachers[name] for name in FORMS},
        SPLICED: Teacher(_splice, "begun by F and continued by K, or the other way round", sound=False),
    },
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    traces: int = 6_000  # of each teacher
    tokens: int = 170_000  # completion tokens that a student sees
    problems: int = 300  # of each split
    examined: int = 150  # tokens of each kind, at most


class Examined(NamedTuple):
    """A token, and what stands before it."""

    prompt: list[int]
    output: list[int]  # up to the token
    alternatives: Alternatives
    form: str  # the teacher that the output has followed so far


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Shards of all teachers."""
    write_world(WORLD, folder / "shards", dict.fromkeys(WORLD.teachers, size.traces), seed=seed)


def run(cell: Cell) -> Row:
    """One student, its wrong and right tokens, and how it goes on after a seam."""
    teachers, shards = TEACHERS[cell.arm], cell.data / "shards"
    stage = arms.imitate(shards, cell.size.tokens, teachers, seed=cell.seed, rows=ROWS)
    plan = arms.recipe(cell.arm, walk(WORLD.tokenizer().vocab_size), [stage], cell.seed)
    trained = students.train(plan, cell.folder / "run", cell.report)
    tasks = {split: world_task(WORLD, split, cell.size.problems, seed=PROBLEMS_SEED) for split in ("test", "long")}
    outcomes, numbers = arms.measured(trained, tasks, MAX_NEW)
    index = _index(Shards.open(shards), teachers)
    answers = [one for task in tasks.values() for one in _answers(trained, task)]
    after, seams = _seams(trained, tasks["test"])
    kinds = {
        "wrong": _of_answers(trained, answers, _wrong),
        "right": _of_answers(trained, answers, _right),
        "seam": seams,
    }
    for kind, found in kinds.items():
        shown = random.Random(cell.seed).sample(found, min(len(found), cell.size.examined))
        numbers |= {f"{kind} {name}": value for name, value in _scores(index, shown).items()}
    return Row(cell.arm, cell.seed, outcomes, numbers | after, arms.spent(cell.folder / "run"))


def _answers(trained: Trained, task: Task) -> list[Answer]:
    return answer(trained.student, trained.params, task, trained.tokenizer, max_new=MAX_NEW)


def _index(shards: Shards, teachers: Sequence[str]) -> NgramIndex:
    """Of the traces that the student learned from."""
    names = [shards.teachers[number] for number in shards.index["teacher_id"]]
    places = [place for place, name in enumerate(names) if name in teachers]
    number = [teachers.index(names[place]) for place in places]
    return NgramIndex.build([shards.arrays(place).tokens for place in places], number, teachers)


def _likely(trained: Trained, encoded: Sequence[EncodedTrace]) -> list[list[Alternatives]]:
    """The most likely tokens at each place of the completions."""
    offsets, fields = Runner(trained.student, trained.params, 8192)(topk(TOP_K), encoded)
    found = []
    for start, stop in itertools.pairwise(offsets):
        of_trace = zip(fields["topk_id"][start:stop], fields["topk_logprob"][start:stop], strict=True)
        found.append([Alternatives(ids.tolist(), np.exp(p.astype(np.float64)).tolist()) for ids, p in of_trace])
    return found


def _encoded(problem: Problem, text: str) -> EncodedTrace:
    trace = Trace(problem.id, problem.prompt, (Step(text),), "", "")
    return encode_words(WORLD.tokenizer().inner.get_vocab(), WORLD.tokenizer().eos_id, trace)


def _followed(problem: Problem, words: Sequence[str]) -> tuple[int, str]:
    """How many words some teacher would have written, and which one; the end counts as a word."""

    def common(form: str) -> int:
        known = [*WORLD.trace(problem, form).text.split(), None]
        pairs = zip([*words, None], known, strict=False)
        return next((n for n, (one, other) in enumerate(pairs) if one != other), len(known))

    form = max(FORMS, key=common)
    return common(form), form


def _wrong(one: Answer) -> tuple[int, str] | None:
    """The first word that no teacher would have written, and whom the answer had followed."""
    words = one.text.split()
    place, form = _followed(one.problem, words)
    return None if place >= len(words) else (place, form)


def _right(one: Answer) -> tuple[int, str] | None:
    """Some word of an answer that a teacher would have written."""
    words = one.text.split()
    place, form = _followed(one.problem, words)
    return (random.Random(one.problem.id).randrange(len(words)), form) if place > len(words) else None


def _of_answers(
    trained: Trained, answers: Sequence[Answer], choose: Callable[[Answer], tuple[int, str] | None]
) -> list[Examined]:
    chosen = [(one, place) for one in answers if (place := choose(one)) is not None]
    encoded = [_encoded(one.problem, one.text) for one, _ in chosen]
    likely = _likely(trained, encoded) if encoded else []
    return [
        Examined(*_parts(trace, place), alternatives[place], form)
        for trace, alternatives, (_, (place, form)) in zip(encoded, likely, chosen, strict=True)
    ]


def _parts(trace: EncodedTrace, place: int) -> tuple[list[int], list[int]]:
    tokens = trace.tokens.tolist()
    return tokens[: trace.num_prompt], tokens[trace.num_prompt : trace.num_prompt + place + 1]


class Forced(NamedTuple):
    """A trace begun by one teacher and continued by another."""

    text: str
    form: str  # who begins
    states: list[int]  # places of the states in the completion
    seam: int  # number of the first state that the other one writes


def _spliced(problem: Problem) -> Iterator[Forced]:
    """F to K and K to F, with a seam in the middle."""
    steps = {name: [step.text.strip() for step in WORLD.trace(problem, name).steps] for name in ("F", "K")}
    for first, second in (("F", "K"), ("K", "F")):
        seam = (len(steps[first]) - 1) // 2
        whole = steps[first][:seam] + steps[second][seam:]
        ends = np.cumsum([len(step.split()) for step in whole])
        yield Forced(" ".join(whole), first, (ends[:-1] - 1).tolist(), seam)


def _seams(trained: Trained, task: Task) -> tuple[dict[str, float], list[Examined]]:
    """How often the next state is right before, at and after a seam; and the wrong tokens there, as the student would
    have said them."""
    pairs = [(problem, forced) for problem in task.problems for forced in _spliced(problem)]
    encoded = [_encoded(problem, forced.text) for problem, forced in pairs]
    right: dict[str, list[bool]] = {"before seams": [], "at seams": [], "after seams": [], "own form at seams": []}
    wrong = []
    for (problem, forced), trace, likely in zip(pairs, encoded, _likely(trained, encoded), strict=True):
        own = _encoded(problem, WORLD.trace(problem, forced.form).text)
        for number, place in enumerate(forced.states):
            prompt, output = _parts(trace, place)
            said = likely[place].tokens[0]
            where = "before" if number < forced.seam else "at" if number == forced.seam else "after"
            right[f"{where} seams"].append(said == output[-1])
            if where == "at":
                right["own form at seams"].append(said == _parts(own, place)[1][-1])
            if where != "before" and said != output[-1]:
                wrong.append(Examined(prompt, [*output[:-1], said], likely[place], forced.form))
    return {name: float(np.mean(found)) for name, found in right.items()}, wrong


def _scores(index: NgramIndex, tokens: Sequence[Examined]) -> dict[str, float]:
    """Shares of the dominant sources, mean scores, and whose phrasing it is."""
    found = [memorisation(index, one.prompt, one.output, len(one.output) - 1, one.alternatives) for one in tokens]
    sources = [one.source for one in found if one.source]
    shares = {name: sources.count(name) / len(sources) for name in SOURCES} if sources else {}
    scores = {f"{name} score": _mean([getattr(one, name) for one in found]) for name in SOURCES}
    suffix = _mean([float(one.attribution.suffix) for one in found])
    return {"count": float(len(found)), **shares, **scores, "suffix": suffix, "other": _others(tokens, found)}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _others(tokens: Sequence[Examined], found: Sequence[Memorisation]) -> float:
    """Share of tokens whose longest ending is most frequent in the traces of another teacher than the one followed."""
    return _mean([
        float(one.attribution.teacher != token.form)
        for token, one in zip(tokens, found, strict=True)
        if token.form in one.attribution.rate and len(one.attribution.rate) > 1
    ])  # fmt: skip


def derive(rows: Sequence[Row]) -> list[Row]:
    """The tokens of each student, by kind."""
    return [
        Row(
            f"{row.arm}: {kind} tokens",
            row.seed,
            {},
            {
                name.removeprefix(f"{kind} "): value
                for name, value in row.numbers.items()
                if name.startswith(f"{kind} ")
            },
        )
        for row in rows
        for kind in ("wrong", "right", "seam")
    ]


def verdict(results: Results) -> Verdict:
    """Two halves, both for one teacher (F) and two: most wrong tokens are local (intervals above 0.5), and more of them
    than of right tokens (differences above 0)."""
    single, mixed = "F alone", "F and K"
    shares = {arm: results.interval(f"{arm}: wrong tokens", "local") for arm in (single, mixed)}
    more_than_right = {
        arm: results.difference(f"{arm}: wrong tokens", f"{arm}: right tokens", "local") for arm in (single, mixed)
    }
    mixing = results.difference(f"{mixed}: wrong tokens", f"{single}: wrong tokens", "local")
    parts = [all(one.low > 0.5 for one in shares.values()), all(one.low > 0 for one in more_than_right.values())]
    outcome = "holds" if all(parts) else "holds in part" if any(parts) else "overturned"
    if results.interval(single, "test").low < 0.5:
        outcome = "not testable at this scale"
    words = (
        f"Local memorisation is the largest score of {shares[single]} of the wrong tokens with one teacher and of "
        f"{shares[mixed]} with two; against tokens of right answers that is {signed(more_than_right[single])} and "
        f"{signed(more_than_right[mixed])}."
    )
    after = {arm: results.interval(arm, "after seams") for arm in (single, mixed, "F and K within a trace")}
    own = results.interval(mixed, "own form at seams")
    before = results.interval(mixed, "before seams")
    more = (
        f"A second, conflicting teacher changes the local share by {signed(mixing)}. At seams the student of both goes "
        f"on in the first teacher's form in {own} of the cases; its next state is right in {before} before a seam and "
        f"in {after[mixed]} after one, against {after[single]} for F's student and "
        f"{after['F and K within a trace']} for one that was trained on seams. Of its wrong tokens the traces of the "
        f"other teacher than the one it had followed hold the longest ending more often in "
        f"{results.interval(f'{mixed}: wrong tokens', 'other')}, of its right tokens in "
        f"{results.interval(f'{mixed}: right tokens', 'other')}."
    )
    return Verdict(outcome, words, more)


def study() -> Study:
    """Study 5."""
    measured = ("local", "local score")
    pairs = [(f"{arm}: wrong tokens", f"{arm}: right tokens", what) for what in measured for arm in TEACHERS]
    pairs += [("F and K: wrong tokens", "F alone: wrong tokens", what) for what in measured]
    pairs += [("F and K: seam tokens", "F and K: right tokens", what) for what in measured]
    pairs += [("F and K: wrong tokens", "F and K: right tokens", "other")]
    pairs += [(arm, "F alone", "after seams") for arm in ("F and K", "F and K within a trace")]
    pairs += [("F and K within a trace", "F and K", what) for what in ("after seams", "test", "long")]
    return Study(
        name="local_memorisation",
        question="Are wrong tokens local memorisation, and whose?",
        expected="local memorisation is the dominant source of up to 67 % of the wrong tokens (2508.02037, abstract; a "
        "share of tokens that GPT-4 had marked, in one setting, with counts of a web corpus; right tokens are no "
        "control there)",
        decides="whether `memorisation` may be read as a diagnosis of errors, and whether seams in traces are harmless",
        sources=("2508.02037",),
        arms={
            "F alone": "one teacher",
            "K alone": "one teacher, whose states are the inverses of F's",
            "F and K": "both, half of the tokens each: they clash",
            "F, K, H and N": "four teachers",
            "F and K within a trace": "every trace is begun by one of them and continued by the other",
        },
        seeds=(0, 1, 2, 3, 4),
        size=Size(),
        tiny=Size(traces=100, tokens=1_500, problems=8, examined=4),
        run=run,
        prepare=prepare,
        measures=[
            Measure("test", "accuracy"),
            Measure("long", "accuracy, longer walks"),
            Measure("test calibration error", "calibration error"),
            *(Measure(f"{where} seams", f"next state right {where} seams") for where in ("before", "at", "after")),
            Measure("own form at seams", "goes on as begun at seams"),
            Measure("count", "tokens examined", 0),
            *(Measure(name, f"{name}: share as the largest score") for name in SOURCES),
            *(Measure(f"{name} score", f"{name}: mean score") for name in SOURCES),
            Measure("suffix", "longest known ending, tokens", 1),
            Measure("other", "held by another teacher"),
        ],
        comparisons=[Comparison(*pair) for pair in pairs],
        verdict=verdict,
        derive=derive,
        notes="\nWrong: the first token of an answer that no teacher would have written. Right: some token of an "
        "answer that a teacher would have written. Seam: a wrong state at or after a seam, the text before it given.",
    )
