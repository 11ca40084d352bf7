"""`mixdistill prepare` and `mixdistill tokenizer` from end to end, in processes of their own where that matters."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixdistill.cli import main
from mixdistill.traces.shards import Shards, quarantined


def row(i: int, teacher: str, **changes) -> dict:
    return {
        "problem_id": f"p{i}",
        "problem": f"What is {i} + {i}?",
        "reference_answer": str(2 * i),
        "teacher": teacher,
        "fold": "ab"[i % 2],
        "trace": f"We add.\n\n{i} + {i} = {2 * i}.\n\nThe answer is {2 * i}.",
    } | changes


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def sources(tmp_path) -> list[Path]:
    """A folder with two teachers' files in subfolders, one of them compressed, and a single file of a third."""
    write(tmp_path / "in" / "b" / "ann.jsonl", [row(i, "ann") for i in range(300)])
    wrong = [row(i, "bob", trace=f"I guess.\n\nThe answer is {2 * i + i % 2}.") for i in range(200)]
    write(tmp_path / "in" / "a" / "bob.jsonl.gz", [*wrong[:5], "{broken", row(7, "bob", trace=" "), *wrong[5:]])
    (tmp_path / "in" / "README.md").write_text("not a trace file")
    return [tmp_path / "in", write(tmp_path / "cat.jsonl", [row(i, "cat") for i in range(10)])]


def prepare(*args: object) -> int:
    return main(["prepare", *map(str, args)])


def test_end_to_end(sources, tmp_path, capsys):
    out = tmp_path / "out" / "shards"
    assert prepare(*sources, "--out", out, "--workers", 1, "--vocab-size", 400) == 0
    printed = capsys.readouterr()
    assert "BPE of 400 tokens is trained" in printed.err
    lines = {line.split()[0]: line.split()[1:] for line in printed.out.splitlines() if line.strip()}
    assert lines["ann"][0] == "300"
    assert lines["ann"][-2:] == ["1.000", "0"]
    assert lines["bob"][0] == "200"
    assert lines["bob"][-2] == "0.500"
    assert lines["all"][0] == "510"
    assert lines["all"][-1] == "2"
    assert "quarantine.jsonl" in printed.out

    shards = Shards.open(out, verify="full")
    assert shards.teachers == ("ann", "bob", "cat")
    # Sources in the order given; a folder alphabetically.
    assert [shards.teachers[i] for i in shards.index["teacher_id"][[0, 200, 500]]] == ["bob", "ann", "cat"]
    assert shards[200].trace.verdict == "correct"
    assert len(shards[200].trace.steps) == 3
    bad = quarantined(out)
    assert [(r["file"], r["line"]) for r in bad] == [("in/a/bob.jsonl.gz", 6), ("in/a/bob.jsonl.gz", 7)]


def test_any_number_of_workers_gives_the_same_bytes(sources, tmp_path):
    for workers in (1, 2):
        args = "--out", tmp_path / f"s{workers}", "--workers", workers, "--vocab-size", 300
        assert prepare(*sources, *args) == 0
    one, two = (Shards.open(tmp_path / f"s{n}", verify="full") for n in (1, 2))
    assert one.manifest == two.manifest


def test_tokenizer_trained_apart(sources, tmp_path, capsys):
    path = tmp_path / "tok" / "tokenizer.json"
    command = ["tokenizer", "train", *map(str, sources), "--vocab-size", "270", "--out", str(path)]
    assert main(command) == 0
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    capsys.readouterr()
    assert main(["tokenizer", "show", str(path), "--text", "What is"]) == 0
    assert "270 tokens" in capsys.readouterr().out
    args = "--tokenizer", path, "--workers", 1
    assert prepare(*sources, "--out", tmp_path / "s", *args) == 0
    assert "is trained" not in capsys.readouterr().err
    assert prepare(*sources, "--out", tmp_path / "s", *args) == 2
    assert prepare(*sources, "--out", tmp_path / "s", "--overwrite", *args) == 0


def test_segment_rule_and_template(sources, tmp_path):
    (tmp_path / "t.jinja").write_text("Q: {{ messages[0].content }}\n{{ eos_token }}A:")
    path = tmp_path / "tokenizer.json"
    assert main(["tokenizer", "train", str(sources[1]), "--vocab-size", "300", "--out", str(path)]) == 0
    args = "--tokenizer", path, "--template", tmp_path / "t.jinja", "--segment", "sentence", "--no-grade"
    assert prepare(sources[1], "--out", tmp_path / "s", "--workers", 1, *args) == 0
    shards = Shards.open(tmp_path / "s")
    encoded = shards[3]
    assert shards.tokenizer.decode(encoded.tokens[: encoded.num_prompt]) == "Q: What is 3 + 3?\nA:"
    assert encoded.trace.text == row(3, "cat")["trace"]
    assert encoded.trace.verdict == "ungraded"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere", "--out", "s"], "no such source: nowhere"),
        (["empty", "--out", "s"], "no trace files in empty"),
        (["in", "--out", "s", "--tokenizer", "nowhere.json"], "no tokenizer at nowhere.json"),
        (["in", "--out", "s", "--vocab-size", "3"], "at least 258"),
        (["in", "--out", "s", "--format", "shargpt"], "sharegpt"),
        (["in", "--out", "s", "--segment", "sentense"], "did you mean 'sentence'"),
        (["in", "--out", "s", "--map", "prompt"], "is not FIELD=PATH"),
        (["in", "--out", "s", "--workers", "0"], "--workers 0 must be at least 1"),
        (["in", "--out", "s", "--template", "tokenizer"], "needs the --tokenizer"),
        (["in", "--out", "in"], "holds no shards, so it is left alone"),
        (["in/b/ann.jsonl", "--out", "in/b/ann.jsonl/s"], "cannot write to"),
        (["bad.jsonl", "--out", "s"], "no trace left"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(sources, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "bad.jsonl", ["{broken", row(1, "x", trace="")])
    before = sorted(tmp_path.rglob("*"))
    workers = [] if "--workers" in args else ["--workers", "1"]
    assert prepare(*args, *workers) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mixdistill prepare: ")
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_only_what_the_next_one_goes_on_from(sources, tmp_path, capfd, sent, code):
    write(tmp_path / "in" / "c.jsonl", [row(i, "dan", trace="We add. " * 200) for i in range(4000)])
    command = [sys.executable, "-m", "mixdistill.cli", "prepare", str(tmp_path / "in"), "--out", str(tmp_path / "s")]
    child = subprocess.Popen([*command, "--workers", "2", "--vocab-size", "300"], start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".s.partial-*/traces*")):  # the first results are in: workers are busy
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(child.pid, sent) if sent == signal.SIGINT else child.send_signal(sent)
    assert child.wait(timeout=60) == code
    assert [path.name for path in tmp_path.glob(".s*")] == [".s.unfinished"]
    assert not (tmp_path / "s").exists()
    said = capfd.readouterr().err
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    while group_lives(child.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_import_no_jax(tmp_path):
    code = "import sys, mixdistill.traces.prepare, mixdistill.traces.grade; print({'jax', 'flax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
