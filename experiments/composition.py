"""Study: does training on two kinds of reasoning make heterogeneous teachers compositional?

One student, one vocabulary, two kinds: CHAIN (products in any order) and WALK (look-ups, then a product). The cost of
a second, conflicting teacher is measured with one kind and with both: if two kinds teach how to compose, it falls. And
one style is shown with CHAIN alone and asked for with WALK, a combination that no trace has. No world states a problem
that takes both kinds at once, so whether their skills themselves compose is not tested.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments import arms, students
from mixdistill.evaluation.answers import Answer, answer
from mixdistill.evaluation.tasks import Task, world_task
from mixdistill.students.families import walk
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.shards import write_shards
from mixdistill.traces.trace import Step, Trace
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.walk import WALK
from mixdistill.traces.worlds.world import Problem, World, share_words
from mixdistill.traces.worlds.write import encode_words, traces, write_world
from mixdistill.training.workdir import Trained

STYLE = "maybe"  # before the prompt it asks for the style, before a step it is the style
ROWS = 8  # of a batch
PROBLEMS_SEED, MAX_NEW = 900, 48


def _named(world: World) -> World:
    """Teachers with the world's name before their own: of both worlds there is an F."""
    return dataclasses.replace(world, teachers={f"{world.name} {name}": one for name, one in world.teachers.items()})


WORLDS = {world.name: _named(world) for world in share_words(CHAIN, WALK)}
CHAIN_F, CHAIN_B, WALK_F, WALK_K, HEDGED = "chain F", "chain B", "walk F", "walk K", "chain F, hedged"
TEACHERS = {
    "chain, one teacher": (CHAIN_F,),
    "chain, two teachers": (CHAIN_F, CHAIN_B),
    "walk, one teacher": (WALK_F,),
    "walk, two teachers": (WALK_F, WALK_K),
    "both, one teacher each": (CHAIN_F, WALK_F),
    "both, two teachers each": (CHAIN_F, CHAIN_B, WALK_F, WALK_K),
    "both, a style with chain alone": (CHAIN_F, HEDGED, WALK_F),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    traces: int = 12_000  # of each teacher
    tokens: int = 160_000  # completion tokens of each kind
    problems: int = 300  # of each split


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Shards of both worlds, and of the style."""
    for name, two in (("chain", (CHAIN_F, CHAIN_B)), ("walk", (WALK_F, WALK_K))):
        write_world(WORLDS[name], folder / name, dict.fromkeys(two, size.traces), seed=seed)
    tokenizer = WORLDS["chain"].tokenizer()
    ids = tokenizer.inner.get_vocab()
    made = (encode_words(ids, tokenizer.eos_id, trace) for trace in _in_style(size.traces, seed))
    write_shards(made, folder / "hedged", tokenizer=tokenizer)


def _in_style(count: int, seed: int) -> Iterator[Trace]:
    for trace in traces(WORLDS["chain"], {CHAIN_F: count}, seed=seed + 1000):
        steps = tuple(Step(text) for text in hedged(trace))
        yield dataclasses.replace(trace, prompt=f"{STYLE} {trace.prompt}", steps=steps, teacher=HEDGED)


def hedged(trace: Trace) -> list[str]:
    """The steps with STYLE before each but the last, which is the answer."""
    *steps, last = (step.text for step in trace.steps)
    return [*(f"{STYLE} {text}" for text in steps), last]


def run(cell: Cell) -> Row:
    """One student, on the problems of each kind it has learned."""
    teachers = TEACHERS[cell.arm]
    kinds = [name for name in WORLDS if any(teacher.startswith(name) for teacher in teachers)]
    folders = [*kinds, *["hedged"] * (HEDGED in teachers)]
    # Equal tokens of each kind, shared equally by its teachers.
    weights = {one: 1 / sum(other.split()[0] == one.split()[0] for other in teachers) for one in teachers}
    stage = arms.imitate(cell.data, cell.size.tokens * len(kinds), teachers, seed=cell.seed, rows=ROWS, weights=weights)
    source = dataclasses.replace(stage.source, shards=tuple(str(cell.data / name) for name in folders))
    stage = dataclasses.replace(stage, source=source)
    plan = arms.recipe(cell.arm, walk(WORLDS["chain"].tokenizer().vocab_size), [stage], cell.seed)
    trained = students.train(plan, cell.folder / "run", cell.report)
    tasks = {kind: _task(kind, cell.size) for kind in kinds}
    outcomes, numbers = arms.measured(trained, tasks, MAX_NEW)
    if "chain" in kinds:
        numbers["own orders"] = _own_orders(trained, tasks["chain"])
    if HEDGED in teachers:
        outcomes |= {f"{kind} in style": _styled(trained, task) for kind, task in tasks.items()}
        numbers["walk style alone"] = float(np.mean(_style_alone(trained, tasks["walk"])))
    return Row(cell.arm, cell.seed, outcomes, numbers, arms.spent(cell.folder / "run"))


def _task(kind: str, size: Size) -> Task:
    return world_task(WORLDS[kind], "test", size.problems, seed=PROBLEMS_SEED)


def _answers(trained: Trained, task: Task, before: Sequence[int] = ()) -> list[Answer]:
    return answer(trained.student, trained.params, task, trained.tokenizer, max_new=MAX_NEW, before=before)


def _in_asked_style(trained: Trained, task: Task) -> list[Answer]:
    return _answers(trained, task, [trained.tokenizer.inner.token_to_id(STYLE)])


def _own_orders(trained: Trained, task: Task) -> float:
    """Share of the answers whose reasoning is right, and is neither F's nor B's: the student's own composition."""
    world = WORLDS["chain"]

    def own(one: Answer) -> bool:
        known = [world.trace(one.problem, teacher).text.split() for teacher in (CHAIN_F, CHAIN_B)]
        return bool(one.valid) and one.correct and one.text.split() not in known

    return float(np.mean([own(one) for one in _answers(trained, task)]))


def _forward(problem: Problem) -> Trace:
    kind = problem.id.partition("-")[0]
    return WORLDS[kind].trace(problem, f"{kind} F")


def _styled(trained: Trained, task: Task) -> list[bool]:
    """Whether each answer is F's trace in the style, word by word."""
    found = _in_asked_style(trained, task)
    return [one.text.split() == " ".join(hedged(_forward(one.problem))).split() for one in found]


def _style_alone(trained: Trained, task: Task) -> list[bool]:
    """Whether the answer has the style's word as often as it should, right or wrong."""
    found = _in_asked_style(trained, task)
    return [one.text.split().count(STYLE) == len(_forward(one.problem).steps) - 1 for one in found]


def derive(rows: Sequence[Row]) -> list[Row]:
    """What a second teacher costs, by kind, alone and beside the other kind; and the style where it was shown and where
    it was not."""
    by = {(row.arm, row.seed): row for row in rows}
    found = []
    for seed in sorted({row.seed for row in rows}):
        for about, one, two in (("alone", "{}, one teacher", "{}, two teachers"), ("both", *_BOTH)):
            costs = {}
            for kind in WORLDS:
                pair = [by.get((name.format(kind), seed)) for name in (one, two)]
                if None not in pair:
                    first, second = (float(np.mean(row.outcomes[kind])) for row in pair if row is not None)
                    costs[f"{kind} cost"] = first - second
            found.append(Row(f"cost of a second teacher, {about}", seed, {}, costs))
        styled = by.get(("both, a style with chain alone", seed))
        if styled is not None:
            for kind, name in (("chain", SHOWN), ("walk", NEW)):
                found.append(Row(name, seed, {"in style": styled.outcomes[f"{kind} in style"]}))
    return found


_BOTH = ("both, one teacher each", "both, two teachers each")
SHOWN, NEW = "style with chain, as shown", "style with walk, never shown"
ALONE, BESIDE = "cost of a second teacher, alone", "cost of a second teacher, both"


def verdict(results: Results) -> Verdict:
    """Yes needs all of: the cost of a second teacher falls in both kinds (intervals below zero), and the combination
    that was never shown is right more often than not."""
    falls = {kind: results.difference(BESIDE, ALONE, f"{kind} cost") for kind in WORLDS}
    new, shown = results.interval(NEW, "in style"), results.interval(SHOWN, "in style")
    parts = [*(found.high < 0 for found in falls.values()), new.low > 0.5]
    outcome = "holds" if all(parts) else "holds in part" if any(parts) else "overturned"
    if any(results.interval(f"{kind}, one teacher", kind).low < 0.5 for kind in WORLDS):
        outcome = "not testable at this scale"
    costs = {kind: results.interval(ALONE, f"{kind} cost") for kind in WORLDS}
    beside = {kind: results.interval(BESIDE, f"{kind} cost") for kind in WORLDS}
    words = (
        f"Beside a second kind of reasoning, a second, conflicting teacher costs {signed(falls['chain'])} more in "
        f"CHAIN and {signed(falls['walk'])} more in WALK than alone; a style shown with CHAIN alone is used with "
        f"WALK in {new} of the answers ({shown} where it was shown)."
    )
    own = results.interval("both, two teachers each", "own orders")
    form = results.interval("both, a style with chain alone", "walk style alone")
    more = (
        f"The costs alone are {costs['chain']} (CHAIN, F and B) and {costs['walk']} (WALK, F and K), beside the other "
        f"kind {beside['chain']} and {beside['walk']}. With two teachers in both kinds, {own} of the CHAIN answers are "
        f"right in an order of the student's own. The style's form, right or wrong, is carried over to {form} of the "
        "WALK answers. That the skills of both kinds compose within one problem is not tested: no world states such a "
        "problem."
    )
    return Verdict(outcome, words, more)


def study() -> Study:
    """Study 10."""
    pairs = [(f"{kind}, two teachers", f"{kind}, one teacher", kind) for kind in WORLDS]
    pairs += [("both, two teachers each", "both, one teacher each", kind) for kind in WORLDS]
    pairs += [("both, one teacher each", f"{kind}, one teacher", kind) for kind in WORLDS]
    pairs += [(BESIDE, ALONE, f"{kind} cost") for kind in WORLDS]
    pairs += [(NEW, SHOWN, "in style")]
    pairs += [("both, two teachers each", "chain, two teachers", "own orders")]
    return Study(
        name="composition",
        question="Does training on two kinds of reasoning make heterogeneous teachers compositional?",
        expected="nothing is published: an open question of the project. Yes would mean that the cost of conflicting "
        "teachers falls, and that style and kind combine freely",
        decides="whether a broader mixture of tasks may replace the admission of teachers",
        sources=("none: an open question of the project",),
        arms={
            "chain, one teacher": "F",
            "chain, two teachers": "F and B, which clash, half the tokens each",
            "walk, one teacher": "F",
            "walk, two teachers": "F and K, which clash, half the tokens each",
            "both, one teacher each": "both kinds, with the tokens that each has alone",
            "both, two teachers each": "the same with both pairs",
            "both, a style with chain alone": "F of both; half of CHAIN with 'maybe' before the prompt and each step",
        },
        seeds=(0, 1, 2, 3, 4),
        size=Size(),
        tiny=Size(traces=200, tokens=1_000, problems=8),
        run=run,
        prepare=prepare,
        measures=[
            *(Measure(kind, f"{kind}: accuracy") for kind in WORLDS),
            *(Measure(f"{kind} valid", f"{kind}: valid") for kind in WORLDS),
            *(Measure(f"{kind} calibration error", f"{kind}: calibration error") for kind in WORLDS),
            Measure("own orders", "chain: right in an order of its own"),
            *(Measure(f"{kind} cost", f"{kind}: cost of a second teacher") for kind in WORLDS),
            Measure("in style", "right and in the style"),
            Measure("walk style alone", "walk: form of the style"),
        ],
        comparisons=[Comparison(*pair) for pair in pairs],
        verdict=verdict,
        derive=derive,
        notes="\nEach kind has the same tokens in every arm, so that 'both' has twice as many in all.",
    )
