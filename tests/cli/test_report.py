"""`mixdistill report` on runs written by hand: what is read back, the summary, the page's sections."""

import itertools
import json

import jax
import numpy as np
import pytest

from mixdistill.cli import main
from mixdistill.errors import UserError
from mixdistill.generation.contexts import full
from mixdistill.generation.scoring import Runner
from mixdistill.reports import data_page
from mixdistill.reports.markdown import summary
from mixdistill.reports.numbers import number, share
from mixdistill.reports.replay import replay
from mixdistill.reports.run_data import find_runs
from mixdistill.reports.run_page import evaluation_figures, run_sections, study_sections
from mixdistill.reports.viewer import choose_traces, pieces, trace_views
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.tokenizer import train_bpe, word_level
from mixdistill.traces.trace import Step, Trace, Verdict
from mixdistill.training.checkpoint import Identity
from mixdistill.training.workdir import Trained


def line(train_step: int, ann: float, bob: float | None, **metrics) -> dict:
    metrics = {"loss": ann, "kept": 0.5, "teacher/nll": {"ann": ann, "bob": bob}, **metrics}
    weights = {"flops": 1.0, "teacher/nll": {"ann": 30.0, "bob": 10.0 if bob is not None else 0.0}}
    done = {"train_step": train_step, "stage": "one", "tokens": 40 * train_step, "seconds": 1.5}
    return {**done, "metrics": metrics, "weights": weights}


def write_run(folder, lines: list[dict], shards: str = "nowhere") -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.txt").write_text(f"name = 'r'\nstages.0.source.shards = {shards!r}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines) + '{"cut off')


@pytest.fixture
def study(tmp_path):
    gates = {
        "gate/imitate/worst": 0.75,
        "teacher/gate/imitate/worst": {"ann": 1.0, "bob": 0.5},
        "teacher/kept": {"ann": 1.0, "bob": 0.01},
    }
    write_run(
        tmp_path / "study" / "mixed-0",
        [line(10, 2.0, 3.0, **gates), line(20, 1.0, 2.0, **gates, **{"optimizer/skipped": 2.0, "flops": 5e3})],
    )
    write_run(tmp_path / "study" / "deep" / "single|0", [line(10, 1.5, None)])
    answers = {"task": "t", "accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6}, "num_problems": 9, "finished": 1.0}
    found = {"train_step": 20, "answers": answers, "held_out": {"ann": {"nll": 1.25, "content_nll": None, "tokens": 7}}}
    (tmp_path / "study" / "mixed-0" / "eval.json").write_text(json.dumps(found))
    events = [
        {"train_step": 0, "event": "admission", "reason": "bob was kept apart", "read": 70, "cpu_seconds": 0.2},
        {"train_step": 20, "event": "pilots", "admitted": ["ann"], "turned away": ["bob"]},
    ]
    ledger = [json.dumps(row) + "\n" for row in [*events, {"train_step": 20, "traces": [1]}]]
    (tmp_path / "study" / "mixed-0" / "ledger.jsonl").write_text("".join(ledger))
    return tmp_path / "study"


def test_runs_are_read_back(study):
    deep, mixed = find_runs(study)
    assert (deep.name, mixed.name) == ("deep/single|0", "mixed-0")
    assert mixed.shards == ("nowhere",)
    assert mixed.teachers == ["ann", "bob"]
    assert mixed.series("loss") == ([10, 20], [2.0, 1.0])
    assert mixed.series("teacher/nll", "bob") == ([10, 20], [3.0, 2.0])
    assert mixed.token_shares() == {"ann": ([10, 20], [0.75, 0.75]), "bob": ([10, 20], [0.25, 0.25])}
    assert deep.token_shares() == {"ann": ([10], [1.0])}  # who never came has no line
    assert [found["train_step"] for found in mixed.evaluations] == [20]


def test_summary(study):
    text = summary(find_runs(study))
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("|")]
    assert rows[0][1:5] == ["train steps", "tokens", "FLOPs", "loss"]
    assert rows[2][0] == r"| deep/single\|0"
    assert rows[3][1:7] == ["20", "800", "5e+03", "1", "50%", r"0.500 \[0.400, 0.600\]"]
    assert rows[2][3] == "-"
    assert "- mixed-0: bob was kept apart Cost: 70 tokens read, 0.2 CPU seconds" in text
    assert "- mixed-0: pilots admitted ann; turned away: bob" in text
    assert rows[2][-1] == "- |"
    assert "- mixed-0: 2 train steps were skipped" in text
    assert "the gates keep less than 5.0% of bob" in text


def figures_of(sections) -> dict:
    return {figure.id: figure for section in sections for figure in section.figures}


def test_sections_of_a_run(study):
    found = figures_of(run_sections(find_runs(study)[1]))
    assert {"loss", "teacher-nll", "teacher-kept", "gates-all", "teacher-gate-imitate-worst", "mixture-shares"} <= set(
        found
    )
    assert [trace["y"] for trace in found["teacher-nll"].data] == [[2.0, 1.0], [3.0, 2.0]]
    assert found["gates-all"].data[0]["name"] == "imitate/worst"
    assert found["loss"].data[0]["x"] == [10, 20]
    (first, *_) = run_sections(find_runs(study)[1])
    assert [one.text for one in first.lines][1] == "train step 20: pilots admitted ['ann'], turned away ['bob']"


def test_gradients_are_drawn_where_they_were_measured(study):
    run = find_runs(study)[1]
    assert "opposed" not in figures_of(run_sections(run))
    metrics = {"teacher/gradient_cosine": {"ann": 0.5, "bob": -0.25}, "gradient/opposed": 0.75}
    found = figures_of(run_sections(run._replace(lines=[line(10, 2.0, 3.0, **metrics)])))
    assert [trace["y"] for trace in found["teacher-gradient_cosine"].data] == [[0.5], [-0.25]]
    assert found["opposed"].data[0]["y"] == [0.75]


def test_sections_of_a_study(study):
    runs, evaluation = study_sections(find_runs(study))
    assert [row[0].text for row in runs.tables[0].rows] == ["deep/single|0", "mixed-0"]
    assert [cell.value for cell in runs.tables[0].rows[0]][-2:] == [1.5, ""]
    assert runs.figures[0].data[1]["x"] == [400, 800]
    answers, held_out = evaluation.tables
    assert answers.rows[0][3].value == 0.5
    assert held_out.rows[0][0].text == "mixed-0, ann"
    assert held_out.rows[0][3].text == "-"


def test_page_without_shards_and_without_metrics(study, tmp_path, capsys):
    write_run(tmp_path / "empty", [])
    for folder in (study, tmp_path / "empty"):
        page = tmp_path / f"{folder.name}.html"
        assert main(["report", str(folder), "-o", str(page)]) == 0
        assert "</html>" in page.read_text()[-20:]
    assert "without traces: no shards at nowhere" in capsys.readouterr().err
    assert main(["report", str(study)]) == 0
    assert "| mixed-0 |" in capsys.readouterr().out


def test_refusals(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    write_run(tmp_path / "run", [])
    assert main(["report", str(tmp_path / "run"), "-o", "/proc/none/page.html"]) == 2
    assert "choose another file" in capsys.readouterr().err


def make_shards(folder, tokenizer=None):
    traces = [
        Trace(f"p{i}", "Say é.", (Step("Naïve 😀 so. "), Step(f"It is {i}" + " x" * i)), "", t, v)
        for i in range(4)
        for t, v in (("ann", Verdict.CORRECT), ("bob", Verdict.WRONG if i > 1 else Verdict.CORRECT))
    ]
    tokenizer = tokenizer or train_bpe(["abc"], 258)  # bytes: a character is several tokens
    return prepare_traces(traces, folder, tokenizer=tokenizer)


def test_pieces_are_the_text(tmp_path):
    shards = make_shards(tmp_path / "s")
    for encoded in (shards[0], shards[7]):
        found = pieces(shards.tokenizer, encoded)
        assert len(found) == len(encoded.tokens) - encoded.num_prompt
        assert "".join(found) == encoded.trace.text + "<eos>"
    words = make_shards(tmp_path / "w", word_level(["Naïve", "😀", "so.", "It", "is", "x", "Say", "é.", *"0123"]))
    assert "".join(pieces(words.tokenizer, words[3])) == words[3].trace.text + "<eos>"


RECIPE = """stages.0.source.shards = 'nowhere'
stages.0.objective = mixdistill.objective.build:Objective
stages.0.objective.terms.imitate.loss = mixdistill.losses.cross_entropy:cross_entropy
stages.0.objective.terms.imitate.gates = ()
stages.1.objective.terms.imitate.loss = mixdistill.losses.cross_entropy:cross_entropy
stages.1.objective.terms.imitate.gates.step_confidence = mixdistill.gates.step_confidence:step_confidence
stages.1.objective.terms.imitate.gates.step_confidence.quantile = 0.0
stages.1.objective.terms.imitate.gates.step_confidence.at_least = {at_least}
stages.2.objective = None
"""


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Shards, an untrained student as a run leaves it, and what it thinks of three traces."""
    shards = make_shards(tmp_path_factory.mktemp("replay") / "s")
    student = make_student(tiny(shards.tokenizer.vocab_size))
    params = jax.tree.map(lambda x: 4 * x, jax.jit(student.init)(jax.random.key(0)))  # sure of something
    identity = Identity("", "", shards.teachers, shards.manifest["tokenizer"], "")
    trained = Trained(student, params, 3, 0, identity, shards.tokenizer, shards.template)
    offsets, fields = Runner(student, params, 512, jax.devices()[:1])(full(), [shards[n] for n in (0, 5, 2)])
    confidence = [fields["confidence"][i:j].astype(np.float32) for i, j in itertools.pairwise(offsets)]
    return shards, trained, dict(zip((0, 5, 2), confidence, strict=True))


def test_a_runs_own_gates_close_what_is_struck_through(scored):
    shards, trained, confidence = scored
    means = {}
    for n, of_trace in confidence.items():
        steps = shards[n].step_id[shards[n].num_prompt :]
        means[n] = np.array([of_trace[steps == step].mean() for step in steps])
    every = np.concatenate(list(means.values()))
    limit = float(every.min() + every.max()) / 2
    found = replay(RECIPE.format(at_least=limit), trained, shards, list(confidence))
    assert found is not None
    assert found.gates[0].startswith("step_confidence(")
    for n, of_trace in means.items():
        clear = np.abs(of_trace - limit) > 1e-2  # the ledger keeps float16
        np.testing.assert_array_equal(found.closed[n][clear], (of_trace < limit)[clear])
    assert 0 < np.concatenate(list(found.closed.values())).mean() < 1
    everything_open = replay(RECIPE.format(at_least="-inf"), trained, shards, [0])
    assert everything_open is not None
    assert not everything_open.closed[0].any()


def test_gates_that_cannot_be_replayed_are_told(scored):
    shards, trained, _ = scored
    assert replay(RECIPE[: RECIPE.index("stages.1")], trained, shards, [0]) is None
    with pytest.raises(UserError, match="at_least = mine, which is no plain value"):
        replay(RECIPE.format(at_least="mine"), trained, shards, [0])
    own = RECIPE.format(at_least=0.0).replace("mixdistill.gates.step_confidence:", "experiments.mine:")
    with pytest.raises(UserError, match=r"experiments.mine:step_confidence is not one of mixdistill's own"):
        replay(own, trained, shards, [0])
    running = RECIPE.format(at_least=0.0).replace("step_confidence:step_confidence", "near_anchor:near_anchor")
    with pytest.raises(UserError):
        replay(running, trained, shards, [0])


def test_evaluations_are_drawn(study):
    run = find_runs(study)[1]
    calibration = [[0.0, 0.0, 0]] * 8 + [[0.85, 0.5, 4], [0.95, 1.0, 5]]
    answers = {"task": "t", "accuracy": {"mean": 0.25}, "calibration": calibration, "calibration_error": 0.18}
    more = {"train_step": 40, "file": "b.json", "answers": answers, "held_out": {"ann": {"nll": 1.0}}}
    run = run._replace(evaluations=[*run.evaluations, more])
    accuracy, nll, sure = evaluation_figures(run)
    assert [(line["name"], line["x"], line["y"]) for line in accuracy.data] == [("t", [20, 40], [0.5, 0.25])]
    assert [(line["name"], line["y"]) for line in nll.data] == [("ann", [1.25, 1.0])]
    assert sure.data[1]["x"] == [0.85, 0.95]
    assert sure.data[1]["customdata"] == [4, 5]
    assert "error 0.18" in sure.about


def test_views_mask_the_least_confident_tenth_of_the_steps(tmp_path):
    shards = make_shards(tmp_path / "s")
    numbers, fields = choose_traces(shards, 6), {}
    assert len({shards.index["teacher_id"][n] for n in numbers[:2]}) == 2
    for rank, n in enumerate(numbers[:5]):
        steps = shards[n].step_id[shards[n].num_prompt :]
        confidence = (10.0 * steps + rank).astype(np.float32)
        fields[n] = {"label_logprob": -confidence, "confidence": confidence}
    views = trace_views(shards, numbers, fields)
    # Ten steps with means 10..14 and 20..24: the lowest is below the value at place 1.
    first = np.flatnonzero(shards[numbers[0]].step_id[shards[numbers[0]].num_prompt :] == 1)
    assert [view["masked"] for view in views] == [first.tolist(), [], [], [], [], []]
    given = trace_views(shards, numbers[:2], fields, {numbers[1]: np.array([False, True, True])})
    assert [view["masked"] for view in given] == [[], [1, 2]]
    assert views[5]["surprisal"] == []
    assert views[0]["surprisal"][0] == 10.0


def test_length_over_difficulty_by_hand(tmp_path):
    curves = data_page.length_against_difficulty(make_shards(tmp_path / "s"))
    # Bob fails problems 2 and 3: half of the teachers. The texts grow with the number of the problem.
    assert curves["ann"][0] == [0.0, 0.5]
    assert curves["ann"][1][0] < curves["ann"][1][1]


def test_token_calibration_by_hand():
    fields = [{"top1_logprob": np.log(np.array([0.95, 0.95, 0.25, 1.0], np.float32)), "rank": np.array([1, 2, 1, 1])}]
    bins = data_page.token_calibration(fields)
    assert bins[9] == (pytest.approx(0.9667, abs=1e-3), pytest.approx(2 / 3), 3)
    assert bins[2] == (pytest.approx(0.25), 1.0, 1)
    assert sum(count for *_, count in bins) == 4


def test_numbers_as_text():
    assert [number(x) for x in (None, float("nan"), 1234.6, 3, 0.12345)] == ["-", "-", "1,235", "3", "0.123"]
    assert [share(x) for x in (None, 0.0, 0.0123, 0.5)] == ["-", "0%", "1.2%", "50%"]
