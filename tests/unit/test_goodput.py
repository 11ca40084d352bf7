import gzip
import json

import pytest

from mixdistill.cli import main
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.goodput import goodput, parts, sentence
from mixdistill.training.hooks import METRICS_FILE, read_metrics


def line(clock: float, seconds: float, **spent: float) -> dict:
    return {"clock": clock, "seconds": seconds, "spent": spent}


def test_goodput_counts_the_time_between_processes():
    # Started at 100; 5 s later a line; dead and waiting until 125; another line.
    lines = [line(105.0, 5.0, data=0.5, device=2.0, compile=2.0), line(125.0, 10.0, dispatch=1.5, device=3.5)]
    assert parts(lines) == {"data": 0.5, "device": 5.5, "compile": 2.0, "dispatch": 1.5, "wall": 25.0}
    assert goodput(lines) == pytest.approx(7.5 / 25)
    assert sentence(lines) == "goodput 30% (device 22%, compile 8%, dispatch 6%, data 2%)"


@pytest.mark.parametrize("lines", [[], [{"seconds": 1.0}], [line(1.0, 0.0)]])
def test_nothing_measured_is_no_number(lines):
    assert goodput(lines) is None
    assert sentence(lines) == ""


def test_a_run_says_where_its_time_went_and_records_a_profile(tmp_path, capsys):
    write_world(CHAIN, tmp_path / "shards", {"F": 30, "H": 30})
    changes = [f"stages.0.source.shards={tmp_path / 'shards'}", "stages.0.num_train_steps=6", "log_every=2"]
    words = [word for change in changes for word in ("--set", change)]
    workdir = tmp_path / "w"
    assert main(["train", "experiments.base:smoke", "--workdir", str(workdir), "--profile", "3:4", *words]) == 0
    out, said = capsys.readouterr()
    assert "; goodput " in out.splitlines()[-1]
    assert f"profile of train steps 3 to 4: {workdir / 'profile'}" in said
    lines = read_metrics(workdir / METRICS_FILE)
    spent = parts(lines)
    assert {"data", "compile", "dispatch", "device"} <= spent.keys()
    assert sum(spent.values()) - spent["wall"] <= spent["wall"]
    trace = next((workdir / "profile").rglob("perfetto_trace.json.gz"))
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("train_step" in event.get("name", "") for event in events)


def test_train_steps_that_are_none_are_refused(capsys):
    assert main(["train", "experiments.base:smoke", "--profile", "13:10"]) == 2
    assert "--profile 13:10: write FIRST:LAST" in capsys.readouterr().err
