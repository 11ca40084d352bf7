"""Recorded traces of real teachers: do measures of fit agree with each other and with what a student learns, which
teachers conflict, and does a mixed, gated or selected student say more of what people and unseen teachers write?

Six open models and people on the problems of GSM8K that all of them solved (`MIXDISTILL_DATA`); students of less than a
million parameters from scratch, equal tokens, trained on problems of fold a. What they are judged by is the likelihood
of solutions of unseen problems (fold b): of people, and of three teachers that nobody has learned from. Not a score on
GSM8K: no answer is graded.
"""

import dataclasses
import gzip
import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments import arms, students
from experiments.development_data import development_data
from mixdistill.diagnostics.content import sample_traces
from mixdistill.diagnostics.measures import TraceScores, by_teacher, trace_parts
from mixdistill.evaluation.fit import start_of
from mixdistill.gates import near_anchor
from mixdistill.generation import contexts
from mixdistill.generation.scoring import Runner
from mixdistill.losses import cross_entropy
from mixdistill.memory import running
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe
from mixdistill.routers import acceptance
from mixdistill.signals.signal import use
from mixdistill.students.config import DecoderConfig
from mixdistill.students.families import small
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import shown, signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.prepare import Settings
from mixdistill.traces.prepare import prepare as prepare_shards
from mixdistill.traces.shards import Shards
from mixdistill.training.admission import Admission, admit, admitted
from mixdistill.training.workdir import Trained

FILES = {  # name here -> file of the recorded traces; all of class `open` in teachers.json
    "human": "gsm8k_human/test",
    "nemo": "gsm8k_teachers/Mistral-Nemo-Instruct-2407",
    "mixtral": "gsm8k_teachers/Mixtral-8x7B-Instruct-v0.1",
    "phi-3.5": "gsm8k_teachers/Phi-3.5-mini-instruct",
    "qwen2": "gsm8k_teachers/Qwen2-7B-Instruct",
    "yi": "gsm8k_teachers/Yi-1.5-34B-Chat",
    "rho-1b": "gsm8k_teachers/rho-math-1b-v0.1",
    "rho-7b": "gsm8k_teachers/rho-math-7b-v0.1",
    "phi-3-medium": "gsm8k_longcot/phi-3-medium",
    "qwen2.5": "gsm8k_longcot/qwen2.5-32b-instruct",
}
UNSEEN = ("rho-7b", "phi-3-medium", "qwen2.5")
ANCHOR = "human"
POOL = tuple(name for name in FILES if name not in UNSEEN)
MODELS = tuple(name for name in POOL if name != ANCHOR)
MIXES = ("mixed", "gated", "selected")
# A measure of fit -> 1 where a high value speaks for a teacher, -1 where a low one does.
FITS = {
    "rank_surprisal_ratio": -1,
    "grape": 1,
    "local_naturalness": 1,
    "ifd": 1,
    "surprisal": -1,
    "length": -1,
}
MARGIN = 0.3  # nats above the human solutions that the gate allows
WINDOW = 2  # steps before, for local naturalness
CLAIMED = 0.6  # Kendall's tau; the papers' rank correlations lie above


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    vocab_size: int = 2048
    problems: int = 450  # of fold a, drawn by the seed
    held_out: int = 20  # of fold b
    tokens: int = 60_000  # that a student sees
    scored: int = 25  # traces of each teacher, for measures of fit
    embed: int = 128
    layers: int = 2


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Shards of the drawn problems' traces, with a tokenizer of their own."""
    chosen = _problems(seed, size)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in FILES:
        files.append(folder / f"{name}.jsonl")
        rows = (json.dumps(row | {"teacher": name}) for row in _rows(name) if row["problem_id"] in chosen)
        files[-1].write_text("\n".join(rows) + "\n", encoding="utf-8")
    prepare_shards(files, folder / "shards", vocab_size=size.vocab_size, settings=Settings(grade=False))


def _rows(name: str) -> Iterator[dict]:
    with gzip.open(development_data() / f"{FILES[name]}.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _problems(seed: int, size: Size) -> set[str]:
    """Of fold a problems that the pool has solved, of fold b those that everybody has."""
    solved = {name: {row["problem_id"]: row["fold"] for row in _rows(name)} for name in FILES}
    draw, found = random.Random(seed), set()
    for fold, count, names in (("a", size.problems, POOL), ("b", size.held_out, tuple(FILES))):
        common = set.intersection(*(set(solved[name]) for name in names))
        found |= set(draw.sample(sorted(p for p in common if solved[ANCHOR][p] == fold), count))
    return found


def run(cell: Cell) -> Row:
    """One student; the one of people's solutions also says how all teachers fit."""
    shards = cell.data / "shards"
    trained = students.train(_plan(cell, shards), cell.folder / "run", cell.report)
    numbers = _held_out(trained, Shards.open(shards))
    if cell.arm == ANCHOR:
        numbers |= _fit(trained, Shards.open(shards), cell) | _conflict(Shards.open(shards), cell.seed)
    lines = students.metrics(cell.folder / "run")
    return Row(cell.arm, cell.seed, {}, numbers | _shares(lines), arms.spent(cell.folder / "run"))


def _plan(cell: Cell, shards: Path) -> Recipe:
    teachers = POOL if cell.arm in MIXES else (cell.arm,)
    weights = dict.fromkeys(teachers, 1.0)
    knobs = {"rows": 2, "length": 512, "folds": ("a",), "weights": weights, "seed": cell.seed}
    stage = arms.imitate(shards, cell.size.tokens, teachers, **knobs)
    if cell.arm == "gated":
        gate = use(near_anchor, anchor=ANCHOR, margin=MARGIN)
        memory = {"baseline": running("teacher/content_nll"), "refill": acceptance()}
        stage = dataclasses.replace(
            stage, objective=Objective({"i": Term(cross_entropy, gates=(gate,))}, memory=memory)
        )
    plan = arms.recipe(cell.arm, _student(cell.size), [stage], cell.seed)
    return admitted(plan, _admission(Shards.open(shards), cell.seed)) if cell.arm == "selected" else plan


def _admission(shards: Shards, seed: int) -> Admission:
    """The group without conflict that holds most of the pool."""
    found = admit(shards, seed=seed)
    group = max(found.groups, key=lambda one: len({*one.teachers} & {*POOL}))
    kept = tuple(name for name in group.teachers if name in POOL)
    return dataclasses.replace(found, groups=(group._replace(teachers=kept),))


def _student(size: Size) -> DecoderConfig:
    config = small(size.vocab_size)
    shape = {"embed": size.embed, "mlp": 3 * size.embed, "head_dim": size.embed // 4}
    return dataclasses.replace(config, layers=size.layers, unroll=size.layers, **shape)


def _held_out(trained: Trained, shards: Shards) -> dict[str, float]:
    """Nats a completion token of everybody's solutions of the same unseen problems: the mean over problems."""
    index, runner = shards.index, Runner(trained.student, trained.params, 2048, jax.devices()[:1])
    numbers = np.flatnonzero(index["fold"] == shards.folds.index("b"))
    offsets, fields = runner(contexts.full(), [shards[int(n)] for n in numbers])
    sums = np.add.reduceat(-fields["label_logprob"].astype(np.float64), offsets[:-1]) / np.diff(offsets)
    who = index["teacher_id"][numbers]
    nll = {name: float(sums[who == k].mean()) for k, name in enumerate(shards.teachers)}
    found = {f"nll {name}": value for name, value in nll.items()}
    unseen, models = (float(np.mean([nll[name] for name in names])) for names in (UNSEEN, MODELS))
    return found | {"human": nll[ANCHOR], "unseen": unseen, "models": models}


def _fit(trained: Trained, shards: Shards, cell: Cell) -> dict[str, float]:
    """Every measure of every model, and Kendall's tau of every two measures over the models."""
    runner = Runner(trained.student, trained.params, 2048, jax.devices()[:1])
    fold, chosen = shards.index["fold"] == shards.folds.index("a"), sample_traces(shards, 2**31, seed=cell.seed)
    numbers = np.concatenate([chosen[name][fold[chosen[name]]][: cell.size.scored] for name in MODELS])
    traces = [shards[int(n)] for n in numbers]
    kinds = {"full": contexts.full(), "alone": contexts.alone(start_of(shards)), "local": contexts.local(WINDOW)}
    scored = {kind: runner(context, traces) for kind, context in kinds.items()}
    parts = []
    for i, trace in enumerate(traces):
        of = {
            kind: {name: values[offsets[i] : offsets[i + 1]].astype(np.float32) for name, values in fields.items()}
            for kind, (offsets, fields) in scored.items()
        }
        own: Any = {name: of["full"][name] for name in ("label_logprob", "rank", "entropy", "confidence")}
        more: Any = {kind: of[kind]["label_logprob"] for kind in ("alone", "local")}
        parts.append(trace_parts(TraceScores(**own, step_id=trace.step_id[trace.num_prompt :], **more)))
    who, problem = (shards.index[name][numbers] for name in ("teacher_id", "problem"))
    found = by_teacher(parts, who, problem, shards.teachers, resamples=2)
    values = {fit: [sign * found[name][fit].value for name in MODELS] for fit, sign in FITS.items()}
    told = {f"{fit} {name}": found[name][fit].value for fit in FITS for name in MODELS}
    return told | {f"tau {a}~{b}": tau(values[a], values[b]) for a, b in itertools.combinations(FITS, 2)}


def tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b."""
    found: Any = stats.kendalltau(one, other)
    return float(found.statistic)


def _conflict(shards: Shards, seed: int) -> dict[str, float]:
    """Bits between every two teachers of the pool."""
    found = admit(shards, seed=seed).conflict
    return {f"conflict {a}-{b}": found.between(a, b) for a, b in itertools.combinations(POOL, 2)}


def _shares(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    kept = students.kept_tokens(lines) / sum(sum(line["weights"]["teacher/tokens"].values()) for line in lines)
    return {"kept": kept, **{f"share {name}": share for name, share in students.shares(lines[-1]).items()}}


def derive(rows: Sequence[Row]) -> list[Row]:
    """The best single model, and how well every measure foretells which model trains best."""
    found = []
    for seed in sorted({row.seed for row in rows}):
        of = {row.arm: row for row in rows if row.seed == seed}
        if not {ANCHOR, *MODELS} <= set(of):
            continue
        best = min((of[name] for name in MODELS), key=lambda row: row.numbers["human"] + row.numbers["unseen"])
        told = {}
        for fit, sign in FITS.items():
            values = [sign * of[ANCHOR].numbers[f"{fit} {name}"] for name in MODELS]
            for goal in ("human", "unseen"):
                told[f"tau {fit} {goal}"] = tau(values, [-of[name].numbers[goal] for name in MODELS])
        between = {name: value for name, value in of[ANCHOR].numbers.items() if "~" in name}
        found += [best._replace(arm="best single model"), Row("ranking", seed, {}, told | between)]
    return found


def verdict(results: Results) -> Verdict:
    """From the table: whether the rank-surprisal ratio foretells what the unseen teachers' likelihood will be."""
    rsr = results.interval("ranking", "tau rank_surprisal_ratio unseen")
    if math.isnan(rsr.mean) or math.isnan(results.mean("mixed", "unseen")):
        return Verdict("not testable at this scale", "Not run yet: students of single models, people or the mix.")
    taus = {fit: results.interval("ranking", f"tau {fit} unseen") for fit in FITS}
    reliable = [fit for fit, found in taus.items() if found.low > 0]
    between = [results.interval("ranking", f"tau {a}~{b}") for a, b in itertools.combinations(FITS, 2)]
    agree = sum(found.low > 0 for found in between)
    mixes = {name: results.difference(name, "best single model", "unseen") for name in MIXES}
    gate = results.difference("gated", "mixed", "human")
    models = [results.mean(ANCHOR, f"conflict {a}-{b}") for a, b in itertools.combinations(MODELS, 2)]
    people = [results.mean(ANCHOR, f"conflict {ANCHOR}-{name}") for name in MODELS]
    words = (
        f"Kendall's tau of the rank-surprisal ratio with what students of single teachers make of unseen ones is "
        f"{shown(rsr, 2)}; measures whose tau is surely above zero: {', '.join(reliable) or 'none'}. The mixed student "
        f"is {signed(mixes['mixed'])} nats a token from the best single model's on unseen teachers."
    )
    more = (
        f"Of {len(between)} pairs of measures {agree} surely rank the six models alike. On unseen teachers gated is "
        f"{signed(mixes['gated'])} and selected {signed(mixes['selected'])} nats from the best single model; gated "
        f"minus mixed on people's solutions {signed(gate)}. The best single model is chosen by the numbers that are "
        f"reported, which favours it. Continuation conflict is {min(models):.2f} to {max(models):.2f} bits between "
        f"models and {min(people):.2f} to {max(people):.2f} between a model and people."
    )
    if rsr.low > 0:
        return Verdict("holds", words, more)
    return Verdict("overturned" if rsr.high < CLAIMED else "not testable at this scale", words, more)


def study() -> Study:
    """Real traces."""
    about = {
        ANCHOR: "people's solutions alone; its student measures how the models fit",
        **{name: f"{FILES[name].split('/')[1]} alone" for name in MODELS},
        "mixed": "people and the six models, equal shares of the tokens",
        "gated": f"the same; traces more than {MARGIN} nats above people's are refused, and refilled from the others",
        "selected": "those of the largest group without continuation conflict, with the frontier check",
    }
    tested = [(name, "best single model", goal) for name in MIXES for goal in ("human", "unseen")]
    tested += [("gated", "mixed", "human"), ("mixed", "human", "unseen"), ("mixed", "human", "human")]
    titles = {"rank_surprisal_ratio": "RSR", "grape": "GRAPE", "local_naturalness": "LALP", "ifd": "IFD"}
    return Study(
        name="real_teachers",
        question="Real teachers: do measures of fit foretell what a student learns, and does mixing them help?",
        expected=(
            "the rank-surprisal ratio has a rank correlation of 0.86 with a student's gain over 11 teachers "
            "(2601.14249); in a replication on agents' traces its tau is -0.18, as GRAPE's and local naturalness's "
            "(not verified)"
        ),
        decides="whether a measure of fit may choose teachers by default, and whether a gate may on natural text",
        sources=("2601.14249", "2502.04194", "2510.03988", "2402.10110"),
        arms=about,
        seeds=(0, 1, 2),
        size=Size(),
        tiny=Size(vocab_size=600, problems=12, held_out=2, tokens=3_000, scored=3, embed=32),
        run=run,
        prepare=prepare,
        measures=[
            Measure("human", "NLL, people"),
            Measure("unseen", "NLL, unseen teachers"),
            Measure("models", "NLL, the six models"),
            Measure("kept", "kept", 2),
            *(Measure(f"tau {fit} unseen", f"tau {titles.get(fit, fit)}", 2) for fit in FITS),
        ],
        comparisons=[Comparison(*one) for one in tested],
        verdict=verdict,
        derive=derive,
        notes=(
            "\nNLL in nats a completion token, the mean over solutions of the same unseen problems; seeds draw "
            "problems, too. Tau: of a measure with the unseen teachers' NLL under students of single models."
        ),
    )
