"""Study: do refinements beyond the student's frontier hurt, and do student-side rules stay within it?

Every problem has an original trace, which is wrong in one state every second time, and three right refinements: plain
(F), cautious (H) and terse (T), the last beyond what this student can follow. A student of the originals scores them
all; the rules choose what the rest of the tokens are spent on.
"""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments import arms, students
from experiments.corruptions import slip
from mixdistill.data.ledger import SHORT, blocks, default_sidecar, open_ledger, write_block
from mixdistill.data.mixture import Mixture, Scores, Select
from mixdistill.evaluation.tasks import world_task
from mixdistill.gates import paced
from mixdistill.generation.contexts import alone, full
from mixdistill.generation.policy import Policy
from mixdistill.generation.sampler import complete
from mixdistill.generation.scoring import fingerprint_of, score
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.students.families import walk
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.encode import encode_prompt
from mixdistill.traces.shards import Shards, write_shards
from mixdistill.traces.trace import Trace
from mixdistill.traces.worlds.walk import STATES, WALK
from mixdistill.traces.worlds.world import Teacher
from mixdistill.traces.worlds.write import encode_words
from mixdistill.training.workdir import Trained

FLAWED = 0.5  # share of the originals
FIRST = 0.4  # share of the tokens, on originals, before the refinements come
ROWS = 8  # of a batch: about 20 traces
PROBLEMS_SEED, MAX_NEW = 900, 48
RULES = ("IFD", "RSR", "PACED")
OWN = "rules"  # the context of the ledger in which this study's own columns stand
CHOSEN = {  # arm -> the column and end of it by which one trace a problem is taken
    "best quality": Select(by=Scores(name="summary/quality", context=OWN), keep="highest"),
    "IFD": Select(by=Scores(name="summary/ifd", context=OWN), keep="highest"),
    "RSR": Select(by=Scores(name="summary/trace_rank_surprisal_ratio"), keep="lowest"),
}


def _original(question: Any, rng: random.Random) -> list[str]:
    """The forward trace; in every second one a state is another one, and what follows goes on as if it were right."""
    steps = list(WALK.teachers["F"].write(question, rng))
    return slip(steps, STATES, rng) if rng.random() < FLAWED else steps


WORLD = dataclasses.replace(
    WALK,
    teachers={
        "O": Teacher(_original, "original: F with one wrong state in half of the traces", sound=False),
        **{name: WALK.teachers[name] for name in "FHT"},
    },
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    problems: int = 3_000  # in training, each with a trace of everybody
    tokens: int = 180_000  # completion tokens that a student sees
    rollouts: int = 4  # a problem, for its pass rate
    test: int = 300  # problems of each split


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Shards in which every problem has a trace of every teacher, and what a student of the originals says of them."""
    shards = write_shards(_encoded(seed, size.problems), folder / "shards", tokenizer=WORLD.tokenizer())
    base = arms.recipe("base", _student(), [_originals(shards.path, size, seed)], seed)
    trained = students.train(base, folder / "base", report)
    mark = fingerprint_of(trained.student, trained.params)
    contexts = [full(), alone([trained.tokenizer.eos_id])]
    score(shards, trained.student, trained.params, default_sidecar(shards), fingerprint=mark, contexts=contexts)
    columns = {
        "ifd": _difficulty(shards),
        "quality": _quality(shards),
        "pass_rate": _pass_rates(shards, trained, size.rollouts, seed),
    }
    for block in blocks(default_sidecar(shards) / mark[:SHORT], shards, OWN):
        none = np.zeros(block.stop - block.first + 1, np.int64)
        write_block(block.path, none, {}, {name: one[block.first : block.stop] for name, one in columns.items()})


def _encoded(seed: int, count: int) -> Iterator[Any]:
    ids, end = WORLD.tokenizer().inner.get_vocab(), WORLD.tokenizer().eos_id
    for problem in WORLD.problems(seed, "train", count):
        for teacher in WORLD.teachers:
            yield encode_words(ids, end, WORLD.trace(problem, teacher))


def _traces(shards: Shards) -> Iterator[Trace]:
    return (shards[number].trace for number in range(len(shards)))


def _difficulty(shards: Shards) -> np.ndarray:
    """IFD of each trace, as a ratio of perplexities; NaN from 1 on, where the prompt hinders (2402.10110)."""
    sidecar = default_sidecar(shards)
    after, before = (open_ledger(sidecar, shards, context=name) for name in ("full", "alone"))
    gain = [
        after.field(n, "label_logprob").mean(dtype=np.float64) - before.field(n, "label_logprob").mean(dtype=np.float64)
        for n in range(len(shards))
    ]
    ratio = np.exp(-np.array(gain))
    return np.where(ratio < 1, ratio, np.nan).astype(np.float32)


def _quality(shards: Shards) -> np.ndarray:
    """What a judge of correctness and concision says: minus the length, NaN where a step is wrong."""
    valid = [WORLD.judge(WORLD.problem_of(trace.prompt), trace.text).valid for trace in _traces(shards)]
    words = [len(trace.text.split()) for trace in _traces(shards)]
    return np.where(valid, -np.array(words, np.float32), np.nan).astype(np.float32)


def _pass_rates(shards: Shards, trained: Trained, rollouts: int, seed: int) -> np.ndarray:
    """How often the student solves each trace's problem, at temperature 1."""
    prompts = list(dict.fromkeys(trace.prompt for trace in _traces(shards)))
    tokens = [encode_prompt(trained.tokenizer, prompt) for prompt in prompts for _ in range(rollouts)]
    settings = {"max_new": MAX_NEW, "eos_id": trained.tokenizer.eos_id, "policy": Policy(1.0), "seed": seed}
    drawn = complete(trained.student, trained.params, tokens, **settings)
    texts = [trained.tokenizer.decode(one.tokens.tolist()) for one in drawn]
    problems = [WORLD.problem_of(prompt) for prompt in prompts]
    right = [WORLD.verify(problems[n // rollouts], text) for n, text in enumerate(texts)]
    rates = dict(zip(prompts, np.reshape(right, (-1, rollouts)).mean(axis=1), strict=True))
    return np.array([rates[trace.prompt] for trace in _traces(shards)], np.float32)


def run(cell: Cell) -> Row:
    """One student."""
    tasks = {name: world_task(WORLD, name, cell.size.test, seed=PROBLEMS_SEED) for name in ("test", "long")}
    row = arms.trained_row(cell, _plan(cell), tasks, MAX_NEW)
    later = [line for line in students.metrics(cell.folder / "run") if line["stage"] != "originals"]
    taken = students.kept_shares(later)
    return row._replace(numbers={**row.numbers, **{f"share {name}": taken.get(name, 0.0) for name in WORLD.teachers}})


def _student() -> Any:
    return walk(WORLD.tokenizer().vocab_size)


def _originals(shards: Path, size: Size, seed: int) -> Stage:
    stage = arms.imitate(shards, round(FIRST * size.tokens), ["O"], seed=seed, rows=ROWS)
    return dataclasses.replace(stage, name="originals")


def _plan(cell: Cell) -> Recipe:
    shards, size = cell.data / "shards", cell.size
    stages = [_originals(shards, size, cell.seed), _refined(cell, shards, size.tokens - round(FIRST * size.tokens))]
    return arms.recipe(cell.arm, _student(), stages, cell.seed)


def _refined(cell: Cell, shards: Path, tokens: int) -> Stage:
    if cell.arm == "originals":
        return arms.imitate(shards, tokens, ["O"], seed=cell.seed, rows=ROWS)
    if cell.arm == "readable":
        return arms.imitate(shards, tokens, ["F"], seed=cell.seed, rows=ROWS)
    if cell.arm in CHOSEN:
        return arms.imitate(shards, tokens, seed=cell.seed, rows=ROWS, select=CHOSEN[cell.arm])
    everything = arms.imitate(shards, tokens, seed=cell.seed, rows=ROWS)
    if cell.arm == "everything":
        return everything
    rate = {"pass_rate": Scores(name="summary/pass_rate", context=OWN)}
    source: Mixture = dataclasses.replace(everything.source, fields=rate)  # type: ignore[type-var]
    weighed = Objective({"imitate": Term(cross_entropy, gates=(paced,))}, fields=("pass_rate",))
    return dataclasses.replace(everything, source=source, objective=weighed)


def _taken(results: Results, arm: str) -> str:
    return " ".join(f"{name} {results.mean(arm, f'share {name}'):.0%}" for name in WORLD.teachers)


def verdict(results: Results) -> Verdict:
    """Two halves, each by intervals: the refinements of best quality hurt; the three rules beat taking everything and
    taking the best."""
    beyond = results.difference("best quality", "originals", "test")
    within = results.difference("readable", "originals", "test")
    won = {
        rule: all(results.difference(rule, other, "test").low > 0 for other in ("everything", "best quality"))
        for rule in RULES
    }
    hurts = beyond.high < 0
    parts = [hurts, *won.values()]
    outcome = "holds" if all(parts) else "holds in part" if any(parts) else "overturned"
    if results.interval("readable", "test").low < 0.5:
        outcome = "not testable at this scale"
    winners = [rule for rule, found in won.items() if found]
    words = (
        f"The best refinements by correctness and concision are {signed(beyond)} against the flawed originals, "
        f"readable ones {signed(within)}; {', '.join(winners) or 'none'} of {', '.join(RULES)} beat"
        f"{'s' if len(winners) < 2 else ''} both taking everything and taking the best."
    )
    more = " ".join(
        f"{rule} is {signed(results.difference(rule, 'everything', 'test'))} against everything, "
        f"{signed(results.difference(rule, 'best quality', 'test'))} against the best and "
        f"{signed(results.difference(rule, 'readable', 'test'))} against the readable ones, and learns from "
        f"{_taken(results, rule)} (tokens)."
        for rule in RULES
    )
    return Verdict(outcome, words, more)


def study() -> Study:
    """Study 6."""
    pairs = [("best quality", "originals"), ("readable", "originals"), ("everything", "originals")]
    pairs += [(rule, other) for rule in RULES for other in ("everything", "best quality", "readable")]
    return Study(
        name="learning_frontier",
        question="Do refinements beyond the student's frontier hurt, and which rule stays within it?",
        expected=(
            "they hurt, and the student's own view repairs it: selective reflection-tuning keeps a refinement by the "
            "student's IFD (926 samples give a 74.29 % AlpacaEval win rate, 2402.10110, read in its released code); "
            "traces selected by RSR beat a random mix by 6.4 to 8.4 points and the best single teacher for 4 of 5 "
            "students (2601.14249, read in the paper); PACED weighs problems by p^a (1 - p)^b (2603.11178; "
            "its exponents and scores unverified). "
            "An independent replication found RSR no better than chance (Kendall -0.18)"
        ),
        decides="whether one of these rules is advised for choosing among refinements of one problem",
        sources=("2402.10110", "2603.11178", "2601.14249"),
        arms={
            "originals": "no refinements: half of the traces have a wrong state",
            "everything": "originals and all three refinements, mixed by tokens",
            "best quality": "one trace a problem: the shortest whose steps are all right",
            "readable": "the plain refinement F of every problem: what a perfect rule could take",
            "IFD": "one trace a problem: the highest IFD below 1, in perplexities",
            "RSR": "one trace a problem: the lowest rank-surprisal ratio",
            "PACED": "everything, a problem weighed by p (1 - p) of the student's pass rate on it",
        },
        seeds=(0, 1, 2, 3, 4),
        size=Size(),
        tiny=Size(problems=60, tokens=1_500, rollouts=2, test=8),
        run=run,
        prepare=prepare,
        measures=[
            Measure("test", "accuracy"),
            Measure("long", "accuracy, longer walks"),
            Measure("test valid", "valid"),
            Measure("test calibration error", "calibration error"),
            Measure("test tokens", "tokens a completion", 1),
            *(Measure(f"share {name}", f"share of {name} in what is learned") for name in WORLD.teachers),
        ],
        comparisons=[Comparison(*pair, split) for split in ("test", "long") for pair in pairs],
        verdict=verdict,
        notes=f"\nAll students see originals for {FIRST:.0%} of the tokens; the rules are those of such a student.",
    )
