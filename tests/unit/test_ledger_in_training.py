"""From `score` to a gate: a recipe whose gates read what another student thought of the traces."""

import jax
import numpy as np
import pytest

from mixdistill.data.ledger import default_sidecar, open_ledger
from mixdistill.data.mixture import Mixture, Scores
from mixdistill.errors import UserError
from mixdistill.gates import at_least, at_most
from mixdistill.generation.scoring import score
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.signals.signal import use
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace
from mixdistill.training.hooks import read_metrics
from mixdistill.training.loop import run

WORDS = [f"w{i}" for i in range(12)]
TOKENIZER = word_level(WORDS)
FIELDS = {"recorded_label_logprob": Scores(), "recorded_surprisal": Scores(name="summary/surprisal")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Scored by a student that is not the one to be trained."""
    random = np.random.default_rng(0)
    traces = [
        Trace(f"p{i}", WORDS[i % 12], (Step(" ".join(random.choice(WORDS, 6))),), "", "ab"[i % 2]) for i in range(16)
    ]
    made = prepare_traces(traces, tmp_path_factory.mktemp("ledger") / "s", tokenizer=TOKENIZER)
    student = make_student(tiny(TOKENIZER.vocab_size))
    params = jax.jit(student.init)(jax.random.key(1))
    score(made, student, params, default_sidecar(made), fingerprint="f" * 64, devices=jax.devices()[:1])
    return made


def recipe(shards, gate, fields=tuple(FIELDS)) -> Recipe:
    objective = Objective({"imitate": Term(cross_entropy, gates=(gate,))}, fields=fields)
    source = Mixture(shards=str(shards.path), rows=8, length=16, fields=FIELDS)
    stage = Stage("imitate", 2, source, objective)
    return Recipe(name="gated", student=tiny(TOKENIZER.vocab_size), stages=(stage,), log_every=1)


def kept(made: Recipe, workdir) -> float:
    """The share of the tokens that two train steps keep."""
    run(made, workdir, devices=jax.devices()[:1], quiet=True)
    lines = read_metrics(workdir / "metrics.jsonl")
    assert len(lines) == 2
    counts = np.array([(line["metrics"]["kept"] * line["weights"]["kept"], line["weights"]["kept"]) for line in lines])
    return float(counts[:, 0].sum() / counts[:, 1].sum())


def test_a_gate_reads_recorded_tokens(shards, tmp_path):
    logprobs = np.concatenate(
        [open_ledger(default_sidecar(shards), shards).fields(i)["label_logprob"] for i in range(16)]
    )
    limit = float(np.median(logprobs))
    made = recipe(shards, use(at_least, score="recorded_label_logprob", threshold=limit))
    # Two train steps of 8 rows of 2 traces see every trace twice.
    assert kept(made, tmp_path / "run") == pytest.approx((logprobs >= limit).mean())


def test_a_gate_reads_what_is_recorded_of_a_trace(shards, tmp_path):
    surprisal = open_ledger(default_sidecar(shards), shards).summary()["surprisal"]
    limit = float(np.sort(surprisal)[3]) + 1e-6
    made = recipe(shards, use(at_most, score="recorded_surprisal", threshold=limit))
    assert kept(made, tmp_path / "run") == pytest.approx(4 / 16)


def test_a_field_that_nothing_fills_is_told_when_the_job_is_built(shards, tmp_path):
    gate = use(at_least, score="recorded_rank", threshold=1.0)
    made = recipe(shards, gate, fields=("recorded_rank",))
    with pytest.raises(UserError, match=r"reads field 'recorded_rank', .*Mixture\(fields="):
        run(made, tmp_path / "none", quiet=True)
    assert not (tmp_path / "none").exists()
