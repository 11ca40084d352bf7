import gzip
import json

import numpy as np
import pytest

from experiments.base import smoke
from mixdistill.chips import CHIPS, DEVICE_KINDS, peak_of
from mixdistill.cli import main
from mixdistill.objective import Tally
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.goodput import goodput, mean, measured, parts, sentence
from mixdistill.training.hooks import METRICS_FILE, json_lines, read_metrics
from mixdistill.training.position import Position
from mixdistill.training.report import Report


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


class Device:
    def __init__(self, kind: str):
        self.device_kind = kind


def test_peaks_are_of_devices_that_are_known():
    assert peak_of([Device("TPU v5 lite")] * 4) == 4 * 197e12
    assert peak_of([Device("NVIDIA H200"), Device("NVIDIA H200")]) == 2 * 989e12
    assert peak_of([Device("NVIDIA H200"), Device("NVIDIA H200 NVL of tomorrow")]) is None
    assert peak_of([Device("cpu")]) is None
    assert set(DEVICE_KINDS.values()) == set(CHIPS) - {"cpu"}


def tallies(tokens: list[float], flops: float | None) -> dict[str, Tally]:
    found = {"teacher/tokens": Tally(np.array(tokens), np.array(tokens))}
    return found if flops is None else found | {"flops": Tally(np.float64(flops), np.float64(2))}


SPENT = {"data": 0.5, "dispatch": 0.5, "device": 1.0, "compile": 100.0, "evaluation": 7.0, "checkpoint": 9.0}


def test_mfu_is_of_the_time_of_train_steps():
    found = measured(tallies([30.0, 10.0], 4e12), SPENT, 10e12)
    assert found["tokens_per_second"] == (40, 2.0)
    assert found["mfu"] == (4e12, 2e13)


@pytest.mark.parametrize(("flops", "peak"), [(4e12, None), (None, 1e13)])
def test_mfu_has_no_weight_where_nothing_is_known(flops, peak):
    assert measured(tallies([40.0], flops), SPENT, peak)["mfu"] == (0, 0)


def report(tmp_path, position: Position, peak: float | None) -> Report:
    hooks = [json_lines(tmp_path, ("ann", "bob"), position.logged)]
    return Report(smoke(), hooks, position, 0.0, peak)


def test_a_line_that_a_signal_cut_short_counts_the_time_of_both_processes(tmp_path):
    """Process 1 is stopped after its first train step; process 2 finishes the line."""
    with report(tmp_path, Position(), 1e12) as first:
        first.spent = type(first.spent)({"device": 3.0, "compile": 50.0})
        first.add(Position(train_step=1), tallies([10.0, 0.0], 6e11), None)  # pyright: ignore[reportArgumentType]
        window = json.loads(json.dumps(first.unfinished()))
        first.flush(None)  # pyright: ignore[reportArgumentType]
    with report(tmp_path, Position(train_step=1, window=window), 1e12) as second:
        second.spent = type(second.spent)({**second.spent.counted, "dispatch": 1.0})
        second.add(Position(train_step=2), tallies([5.0, 5.0], 2e11), None)  # pyright: ignore[reportArgumentType]
        second.flush(None)  # pyright: ignore[reportArgumentType]
    (only,) = read_metrics(tmp_path / METRICS_FILE)
    assert only["spent"] == {"device": 3.0, "compile": 50.0, "dispatch": 1.0}
    assert only["metrics"]["tokens_per_second"] == 20 / 4
    assert only["metrics"]["mfu"] == pytest.approx(8e11 / 4e12)
    assert mean([only, only], "mfu") == pytest.approx(0.2)
    assert sentence([only]).endswith("; in train steps 5 tokens/s, MFU 20.0%")


def test_a_run_says_where_its_time_went_and_records_a_profile(tmp_path, capsys):
    write_world(CHAIN, tmp_path / "shards", {"F": 30, "H": 30})
    changes = [f"stages.0.source.shards={tmp_path / 'shards'}", "stages.0.num_train_steps=6", "log_every=2"]
    words = [word for change in changes for word in ("--set", change)]
    workdir = tmp_path / "w"
    assert main(["train", "experiments.base:smoke", "--workdir", str(workdir), "--profile", "3:4", *words]) == 0
    out, said = capsys.readouterr()
    last = out.splitlines()[-1]
    assert "; goodput " in last
    assert " tokens/s, MFU not known" in last  # a CPU has no published peak, and none is invented
    assert f"profile of train steps 3 to 4: {workdir / 'profile'}" in said
    lines = read_metrics(workdir / METRICS_FILE)
    assert all(line["metrics"]["mfu"] is None and line["metrics"]["tokens_per_second"] > 0 for line in lines)
    spent = parts(lines)
    assert {"data", "compile", "dispatch", "device"} <= spent.keys()
    assert sum(spent.values()) - spent["wall"] <= spent["wall"]
    trace = next((workdir / "profile").rglob("perfetto_trace.json.gz"))
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("train_step" in event.get("name", "") for event in events)


def test_train_steps_that_are_none_are_refused(capsys):
    assert main(["train", "experiments.base:smoke", "--profile", "13:10"]) == 2
    assert "--profile 13:10: write FIRST:LAST" in capsys.readouterr().err
