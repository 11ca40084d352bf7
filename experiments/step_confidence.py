"""Study: is confidence by step better than confidence averaged over a whole trace?

Three uses of it. To find flawed traces: every second trace of teacher S has one wrong step, and its answer is right all
the same, so that no grader finds it. To mask them while training. And to vote: DeepConf's early stop by the lowest
window against votes weighed by the mean of the whole completion.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments import arms, students
from experiments.corruptions import slip
from mixdistill.evaluation.tasks import Task, world_task
from mixdistill.gates import global_confidence, lowest_traces, no_contradiction, step_confidence, worst_token
from mixdistill.generation.contexts import full
from mixdistill.generation.policy import Policy
from mixdistill.generation.sampler import Generated, LowConfidence, complete
from mixdistill.generation.scoring import Runner
from mixdistill.generation.voting import Sample, Voting, lowest_mean, vote
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.signals.signal import use
from mixdistill.students.families import walk
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.encode import encode_prompt
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.worlds.walk import STATES, WALK
from mixdistill.traces.worlds.world import Teacher
from mixdistill.traces.worlds.write import encode_words, traces, write_world
from mixdistill.training.workdir import Trained

FLAWED = 0.5  # share of S's traces
FIRST = 0.5  # share of the tokens before a gate is there: it needs a student that has learned something
WINDOW = 4  # tokens, one more than a step has
ROWS = 8  # of a batch: about 20 traces
PROBLEMS_SEED, MAX_NEW = 900, 40
ALIKE = 1.0  # a confidence that weighs all votes alike
GATES = {  # each closes about what is wrong: half of the traces, or a tenth of the steps
    "step confidence": (use(step_confidence, quantile=0.1),),
    "mean confidence": (use(global_confidence, quantile=FLAWED),),
    "contradicted step": (use(no_contradiction, whole_step=True),),
    "mean surprisal": (use(lowest_traces, score="trace_surprisal", keep=1 - FLAWED),),
    "worst token": (worst_token,),
}
FINDERS = ("lowest step confidence", "mean confidence", "worst token", "mean surprisal")
EARLY, CAREFUL = "vote: lowest window, keep 10 %", "vote: lowest window, keep 90 %"
PLAIN, AGREED, MEAN = "vote: majority of all", "vote: majority, until they agree", "vote: mean confidence"


def _slips(question: Any, rng: random.Random) -> list[str]:
    """The forward trace; in every second one a state is another one, and what follows goes on as if it were right."""
    steps = list(WALK.teachers["F"].write(question, rng))
    return slip(steps, STATES, rng) if rng.random() < FLAWED else steps


WORLD = dataclasses.replace(
    WALK,
    teachers={"F": WALK.teachers["F"], "S": Teacher(_slips, "F with one wrong state in half of the traces", False)},
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    traces: int = 10_000  # of each teacher
    tokens: int = 180_000  # completion tokens that a student sees
    problems: int = 300  # of each split
    searched: int = 400  # traces among which the flawed ones are to be found
    voted: int = 60  # problems with a vote
    budget: int = 32  # completions a vote
    warmup: int = 8


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Shards of both teachers."""
    write_world(WORLD, folder / "shards", dict.fromkeys(WORLD.teachers, size.traces), seed=seed)


def run(cell: Cell) -> Row:
    """One student; the one without a gate also searches and votes."""
    tasks = {split: world_task(WORLD, split, cell.size.problems, seed=PROBLEMS_SEED) for split in ("test", "long")}
    trained = students.train(_plan(cell), cell.folder / "run", cell.report)
    outcomes, numbers = arms.measured(trained, tasks, MAX_NEW)
    for name, task in tasks.items():
        outcomes[f"{name} drawn"] = [drawn[0] for drawn in _judged(task, _draw(trained, task, 1, cell.seed))]
    if cell.arm == "no mask":
        numbers |= _found(trained, cell.size)
        task = world_task(WORLD, "test", cell.size.voted, seed=PROBLEMS_SEED)
        votes = _votes(task, _draw(trained, task, cell.size.budget, cell.seed), cell.size)
        for name, (correct, tokens) in votes.items():
            outcomes[name], numbers[name + " tokens"] = correct, tokens
    return Row(cell.arm, cell.seed, outcomes, numbers, arms.spent(cell.folder / "run"))


def _plan(cell: Cell) -> Recipe:
    teacher = "F" if cell.arm == "no flaws" else "S"
    stage = arms.imitate(cell.data / "shards", cell.size.tokens, [teacher], seed=cell.seed, rows=ROWS)
    stages = [stage]
    if cell.arm in GATES:
        first = round(FIRST * cell.size.tokens)
        gated = Objective({"imitate": Term(cross_entropy, gates=GATES[cell.arm])})
        stages = [
            dataclasses.replace(stage, num_tokens=first),
            Stage("masked", None, stage.source, gated, num_tokens=cell.size.tokens - first),
        ]
    return arms.recipe(cell.arm, walk(WORLD.tokenizer().vocab_size), stages, cell.seed)


class Seen(NamedTuple):
    """A trace that was searched."""

    flawed: bool
    scores: dict[str, float]  # of each finder; high where it suspects a flaw


def _found(trained: Trained, size: Size) -> dict[str, float]:
    """How well each finder tells flawed traces, and surprisal and confidence flawed steps, from others (AUROC)."""
    tokenizer = trained.tokenizer
    ids = tokenizer.inner.get_vocab()
    shown = list(traces(WORLD, {"S": size.searched}, seed=PROBLEMS_SEED))
    encoded = [encode_words(ids, tokenizer.eos_id, trace) for trace in shown]
    offsets, fields = Runner(trained.student, trained.params, 8192)(full(), encoded)
    seen, step_flaws, step_scores = [], [], {"confidence": [], "surprisal": []}
    for trace, one, start, stop in zip(shown, encoded, offsets[:-1], offsets[1:], strict=True):
        sure, surprisal = (fields[name][start:stop].astype(np.float64) for name in ("confidence", "label_logprob"))
        of_step = _by_step(one, sure), _by_step(one, -surprisal)
        clean = WORLD.trace(WORLD.problem_of(trace.prompt), "F")
        wrong = [a.text != b.text for a, b in zip(trace.steps, clean.steps, strict=True)]
        scores = (-min(of_step[0]), -sure.mean(), -surprisal.min(), -surprisal.mean())
        seen.append(Seen(any(wrong), dict(zip(FINDERS, scores, strict=True))))
        step_flaws += wrong
        step_scores["confidence"] += [-value for value in of_step[0]]
        step_scores["surprisal"] += of_step[1]
    flawed = [one.flawed for one in seen]
    return {name: auroc(flawed, [one.scores[name] for one in seen]) for name in FINDERS} | {
        f"step {name}": auroc(step_flaws, values) for name, values in step_scores.items()
    }


def _by_step(trace: EncodedTrace, values: np.ndarray) -> list[float]:
    """The mean of each step."""
    step = trace.step_id[trace.num_prompt :]
    return [float(values[step == number].mean()) for number in range(1, int(step.max()) + 1)]


def auroc(positive: Sequence[bool], score: Sequence[float]) -> float:
    """Probability that a positive has a higher score than a negative, ties half; NaN where one kind is missing."""
    sign = np.array(positive, bool)
    if sign.all() or not sign.any():
        return float("nan")
    ranks = stats.rankdata(score)
    wins = ranks[sign].sum() - sign.sum() * (sign.sum() + 1) / 2
    return float(wins / (sign.sum() * (~sign).sum()))


def _draw(trained: Trained, task: Task, count: int, seed: int) -> list[list[Generated]]:
    """`count` completions of each problem at temperature 1, with confidence."""
    prompts = [encode_prompt(trained.tokenizer, problem.prompt) for problem in task.problems for _ in range(count)]
    policy, measure = Policy(temperature=1.0), LowConfidence(WINDOW, -np.inf)
    settings = {"max_new": MAX_NEW, "eos_id": trained.tokenizer.eos_id, "seed": seed}
    drawn = complete(trained.student, trained.params, prompts, policy=policy, stop=measure, **settings)
    return [drawn[first : first + count] for first in range(0, len(drawn), count)]


def _text(one: Generated) -> str:
    return WORLD.tokenizer().decode(one.tokens.tolist())


def _judged(task: Task, drawn: Sequence[Sequence[Generated]]) -> list[list[bool]]:
    return [
        [WORLD.verify(problem, _text(one)) for one in some] for problem, some in zip(task.problems, drawn, strict=True)
    ]


def _votes(task: Task, drawn: Sequence[Sequence[Generated]], size: Size) -> dict[str, tuple[list[bool], float]]:
    """Of each kind of vote on the same completions: whether each problem's is right, and tokens a problem."""
    common = {"budget": size.budget, "round_size": size.warmup}
    rest = common | {"warmup": size.warmup}
    kinds: dict[str, tuple[Voting, Callable[[Generated], Generated]]] = {
        PLAIN: (Voting(warmup=size.budget, **common), _alike),
        AGREED: (Voting(**rest), _alike),
        MEAN: (Voting(window=MAX_NEW, **rest), _as_it_is),
        CAREFUL: (Voting(window=WINDOW, keep=90, **rest), _as_it_is),
        EARLY: (Voting(window=WINDOW, keep=10, **rest), _as_it_is),
    }
    found = {}
    for name, (voting, weigh) in kinds.items():
        votes = [vote(pool([weigh(one) for one in some]), _said, voting) for some in drawn]
        right = [one.answer == problem.answer for one, problem in zip(votes, task.problems, strict=True)]
        found[name] = right, float(np.mean([one.tokens for one in votes]))
    return found


def _as_it_is(one: Generated) -> Generated:
    return one


def _alike(one: Generated) -> Generated:
    return one._replace(confidence=np.full(len(one.tokens), ALIKE))


def _said(one: Generated) -> str | None:
    return WORLD.extract(_text(one)) or None


def pool(drawn: Sequence[Generated]) -> Sample:
    """Draws from these completions, cut where the sampler would have stopped them."""

    def sample(first: int, count: int, stop: LowConfidence) -> list[Generated]:
        return [_cut(one, stop) for one in drawn[first : first + count]]

    return sample


def _cut(one: Generated, stop: LowConfidence) -> Generated:
    for end in range(stop.window, len(one.tokens) + 1):
        if lowest_mean(one.confidence[end - stop.window : end], stop.window) < stop.threshold:
            return Generated(one.tokens[:end], one.logprobs[:end], False, one.confidence[:end])
    return one


def derive(rows: Sequence[Row]) -> list[Row]:
    """The finders and the votes of the student without a mask."""
    plain = [row for row in rows if row.arm == "no mask"]
    found = [Row(f"found by {name}", row.seed, {}, {"found": row.numbers[name]}) for row in plain for name in FINDERS]
    for row in plain:
        for name in (PLAIN, AGREED, MEAN, CAREFUL, EARLY):
            found.append(Row(name, row.seed, {"vote": row.outcomes[name]}, {"tokens": row.numbers[name + " tokens"]}))
    return found


def verdict(results: Results) -> Verdict:
    """Three parts: finding, masking, voting. Fixed beforehand: a part holds if its interval excludes zero, finding only
    where it does better than chance by 0.1, and voting if it saves tokens and loses at most 0.05."""
    finding = results.difference("found by lowest step confidence", "found by mean confidence", "found")
    masking = results.difference("step confidence", "mean confidence", "test drawn")
    helping = results.difference("step confidence", "no mask", "test drawn")
    votes = results.difference(CAREFUL, PLAIN, "vote")
    saved = results.difference(CAREFUL, AGREED, "tokens")
    target = results.difference("contradicted step", "mean surprisal", "test drawn")
    aimed = results.difference("contradicted step", "no mask", "test drawn")
    finder = results.interval("found by lowest step confidence", "found")
    parts = [
        finding.low > 0 and finder.low > 0.6,
        masking.low > 0 and helping.low > 0,
        votes.low > -0.05 and saved.high < 0,
    ]
    outcome = "holds" if all(parts) else "holds in part" if any(parts) else "overturned"
    if results.interval("no flaws", "test").low < 0.5:
        outcome = "not testable at this scale"
    words = (
        f"Of three uses of step-wise confidence {sum(parts)} show{'s' if sum(parts) == 1 else ''} the gain: the lowest "
        f"step finds flawed traces with an AUROC of {finder}, {signed(finding)} against the mean; as a mask it is "
        f"{signed(masking)} against the whole-trace mask in answers drawn at temperature 1 and {signed(helping)} "
        f"against none; stopping votes early is {signed(votes)} against the majority of all."
    )
    whole, agreed = results.mean(PLAIN, "tokens"), results.mean(AGREED, "tokens")
    stopped, early = results.mean(CAREFUL, "tokens"), results.mean(EARLY, "tokens")
    more = (
        f"Confidence does not see the target. Masks that do: the contradicted step is {signed(aimed)} against none "
        f"and {signed(target)} against the mean surprisal of the trace. A vote costs {whole:.0f} tokens with all "
        f"completions, {agreed:.0f} when it ends as soon as they agree, {stopped:.0f} with unsure ones stopped "
        f"too (keep 90 %), {early:.0f} with keep 10 %: {1 - stopped / whole:.0%} and {1 - early / whole:.0%} saved."
    )
    return Verdict(outcome, words, more)


def study() -> Study:
    """Study 7."""
    tested = [(gate, "no mask", f"{split} drawn") for split in ("test", "long") for gate in GATES]
    tested += [("no flaws", "no mask", f"{split} drawn") for split in ("test", "long")]
    tested += [
        (one, other, f"{split} drawn")
        for split in ("test", "long")
        for one, other in (("step confidence", "mean confidence"), ("contradicted step", "mean surprisal"))
    ]
    tested += [("found by lowest step confidence", "found by mean confidence", "found")]
    tested += [("found by worst token", "found by mean surprisal", "found")]
    tested += [(name, PLAIN, what) for what in ("vote", "tokens") for name in (AGREED, MEAN, CAREFUL, EARLY)]
    tested += [(CAREFUL, AGREED, "tokens"), (CAREFUL, MEAN, "vote")]
    return Study(
        name="step_confidence",
        question="Is confidence by step better than confidence averaged over the trace?",
        expected=(
            "yes: the lowest window tells good traces from bad better than the mean, and stopping unsure ones early "
            "keeps accuracy (AIME25, GPT-OSS-120B: majority 97.1 with 3.23e8 tokens, stopped early 97.9 with 0.49e8, "
            "-84.7 %, 2508.15260, read in a third-party note). That it also makes a good training mask is our "
            "extension, no paper's claim"
        ),
        decides="whether `step_confidence` or a gate of whole traces is advised for flawed teachers, and how to vote",
        sources=("2508.15260",),
        arms={
            "no flaws": "teacher F, no mask: what a perfect mask could reach",
            "no mask": "teacher S: one wrong state in half of the traces, the answer right",
            "step confidence": "S; in the second half the tenth of the steps in which the student is least sure closed",
            "mean confidence": "S; in the second half those traces closed, half of all, of the lowest mean confidence",
            "contradicted step": "S; steps closed with a token that the student is sure is another one",
            "mean surprisal": "S; the half of the traces closed with the highest mean surprisal",
            "worst token": "S; traces closed with a token of more than 3 nats",
        },
        seeds=(0, 1, 2, 3, 4),
        size=Size(),
        tiny=Size(traces=200, tokens=1_500, problems=8, searched=16, voted=2, budget=4, warmup=2),
        run=run,
        measures=[
            Measure("test", "accuracy"),
            Measure("test drawn", "accuracy at temperature 1"),
            Measure("long", "accuracy, longer walks"),
            Measure("long drawn", "longer walks at temperature 1"),
            Measure("test valid", "valid"),
            Measure("test calibration error", "calibration error"),
            Measure("step confidence", "flawed steps found by confidence (AUROC)"),
            Measure("step surprisal", "flawed steps found by surprisal (AUROC)"),
            Measure("found", "flawed traces found (AUROC)"),
            Measure("vote", "accuracy of votes"),
            Measure("tokens", "tokens a vote", 0),
        ],
        comparisons=[Comparison(*some) for some in tested],
        verdict=verdict,
        prepare=prepare,
        derive=derive,
        notes="\nFinders and votes are those of the student without a mask. All votes see the same completions.",
    )
