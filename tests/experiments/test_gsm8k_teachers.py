"""The small form of the GSM8K experiment on a few recorded traces: it runs, it is killed, it goes on."""

import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import gsm8k_teachers
from experiments.development_data import development_data
from experiments.gsm8k_teachers import ARMS, TEACHERS, Size, main
from mixdistill.errors import UserError
from mixdistill.students.families import tiny
from mixdistill.training.hooks import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[2]
PROBLEMS = 40
SMALL = Size(student=tiny(600), rows=1, length=768, train_steps=8, checkpoint_every=4, held_out=2, workers=1)
KILLED = (
    "from experiments.gsm8k_teachers import Size, main\n"
    "from mixdistill.students.families import tiny\n"
    "main(['--out', {out!r}], Size(student=tiny(600), rows=1, length=768, train_steps=8, checkpoint_every=4,"
    " held_out=2, workers=1))"
)


def rows(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return list(lines)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The recorded traces of a few problems that all teachers have tried."""
    try:
        recorded = development_data()
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("data")
    (folder / "teachers.json").write_bytes((recorded / "teachers.json").read_bytes())
    fewest = rows(recorded / "gsm8k_longcot" / "r1-distill-qwen-32b.jsonl.gz")
    problems = set(itertools.islice(dict.fromkeys(json.loads(row)["problem_id"] for row in fewest), PROBLEMS))
    for name, teachers in TEACHERS.items():
        (folder / name).mkdir()
        for teacher in teachers:
            found = rows(recorded / name / f"{teacher}.jsonl.gz")
            kept = [row for row in found if json.loads(row)["problem_id"] in problems] or found[:PROBLEMS]
            with gzip.open(folder / name / f"{teacher}.jsonl.gz", "wt", encoding="utf-8") as out:
                out.writelines(kept)
    return folder


def metrics(out: Path, arm: str) -> list[dict]:
    clocks = {"seconds": None, "clock": None, "spent": None}
    lines = read_metrics(out / arm / METRICS_FILE)
    for line in lines:
        del line["metrics"]["tokens_per_second"], line["weights"]["tokens_per_second"]
    return [line | clocks for line in lines]


def test_killed_and_resumed_it_prints_the_same_table(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIXDISTILL_DATA", str(data))
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(out=str(out))], cwd=ROOT, env=os.environ)
    checkpoint = out / "gated" / "checkpoints" / "4"
    deadline = time.monotonic() + 400
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    shutil.copytree(out / "shards", tmp_path / "whole" / "shards")
    tables = []
    for folder in (out, tmp_path / "whole"):
        assert main(["--out", str(folder)], SMALL) == 0
        tables.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("|")])
    assert len(tables[0]) == 2 + 11 + 1
    assert tables[0] == tables[1]
    for arm in ARMS:
        assert metrics(out, arm) == metrics(tmp_path / "whole", arm)


def test_the_teachers_may_be_released():
    try:
        classes = json.loads((development_data() / "teachers.json").read_text())
    except UserError as error:
        pytest.skip(str(error))
    models = {name for folder, names in TEACHERS.items() for name in names if folder != "gsm8k_human"}
    assert len(models) >= 8
    assert {classes[name]["class"] for name in (*models, gsm8k_teachers.ANCHOR)} == {"open"}
