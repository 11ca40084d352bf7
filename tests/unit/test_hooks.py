"""Metrics on disk and on the screen, from tallies of single train steps."""

import dataclasses
import io
import json
import math
import struct

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event as TensorBoardEvent

from experiments.base import smoke
from mixdistill.objective import Tally
from mixdistill.optimizers import Budget
from mixdistill.training.hooks import (
    METRICS_FILE,
    Event,
    Window,
    default_hooks,
    json_lines,
    means,
    plain_progress,
    read_metrics,
    tensorboard,
)
from mixdistill.training.position import Position
from mixdistill.training.report import Late, Report
from mixdistill.training.screen import screen

TEACHERS = ("ann", "bob")


def tally(total, weight) -> Tally:
    return Tally(np.asarray(total, np.float32), np.asarray(weight, np.float32))


def tallies(loss: float = 3.0, weight: float = 2.0) -> dict[str, Tally]:
    return {
        "loss": tally(loss, weight),
        "no_data": tally(0.0, 1.0),
        "optimizer/skipped": tally(0.0, 1.0),
        "teacher/nll": tally([loss, 0.0], [weight, 0.0]),
        "teacher/tokens": tally([3.0, 1.0], [3.0, 1.0]),
        "teacher/kept": tally([3.0, 0.0], [4.0, 1.0]),
    }


def event(kind="log", train_step=10, tokens=50, found=None) -> Event:
    return Event(kind, train_step, "imitate", None, tokens, 1.25, tallies() if found is None else found)


def test_a_line_is_the_ratio_of_sums_and_not_a_mean_of_means():
    window = Window()
    window.add(tallies(loss=1.0, weight=1.0))
    window.add(tallies(loss=0.0, weight=9.0))
    total = window.take()
    assert means(total)["loss"] == pytest.approx(0.1)
    assert math.isnan(means(total)["teacher/nll"][1])
    assert window.take() == {}


def test_a_tally_that_is_not_finite_hides_no_other():
    window = Window()
    for loss in (2.0, float("nan"), float("inf")):
        window.add(tallies(loss=loss, weight=2.0))
    total = window.take()["loss"]
    assert (total.sum, total.weight) == (2.0, 2.0)


def test_json_lines(tmp_path):
    hook = json_lines(tmp_path, TEACHERS, resumed=0)
    hook(event("train_step"))
    hook(event())
    (line,) = read_metrics(tmp_path / METRICS_FILE)
    assert (line["train_step"], line["stage"], line["tokens"], line["seconds"]) == (10, "imitate", 50, 1.25)
    assert line["metrics"]["loss"] == 1.5
    assert line["weights"]["loss"] == 2.0
    assert line["metrics"]["teacher/nll"] == {"ann": 1.5, "bob": None}
    json.loads((tmp_path / METRICS_FILE).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_lines_after_the_checkpoint_go_and_a_line_that_was_cut_off_too(tmp_path):
    hook = json_lines(tmp_path, TEACHERS, resumed=0)
    for train_step in (10, 20, 30):
        hook(event(train_step=train_step))
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text()[:-30])
    assert [line["train_step"] for line in read_metrics(path)] == [10, 20]
    json_lines(tmp_path, TEACHERS, resumed=15)
    assert [line["train_step"] for line in read_metrics(path)] == [10]
    assert [p.name for p in tmp_path.iterdir()] == [METRICS_FILE]


def test_tensorboard_has_the_means_and_one_scalar_a_teacher(tmp_path):
    hook = tensorboard(tmp_path, TEACHERS, resumed=0)
    hook(event())
    hook(event("end"))
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {v.tag: v.simple_value for e in records(path.read_bytes()) for v in e.summary.value}
    assert found["loss"] == 1.5
    assert found["teacher/kept/ann"] == 0.75
    assert "teacher/nll/bob" not in found  # no data


def records(data: bytes):
    """The events of a TensorBoard file: length, its checksum, the event, its checksum."""
    while data:
        (length,) = struct.unpack_from("<Q", data)
        yield TensorBoardEvent.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_plain_lines_say_what_matters():
    written = []
    hook = plain_progress(Budget(100, "tokens"), written.append)
    hook(event("start", 0, 0))
    hook(event())
    skipped = {**tallies(), "optimizer/skipped": tally(2.0, 10.0)}
    hook(event(train_step=20, tokens=80, found=skipped))
    assert written[0].startswith("train_step 10  imitate  50.0%  loss 1.5000  ")
    assert written[0].endswith(" tokens/s")
    assert written[1].endswith("skipped 2 train steps")


def test_the_screen_shows_progress_and_a_line_a_teacher():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    hook = screen(TEACHERS, Budget(20, "train_steps"), console)
    for kind, train_step in (("start", 0), ("train_step", 10), ("log", 10), ("end", 10)):
        hook(event(kind, train_step))
    text = console.file.getvalue()
    for shown in ("imitate", "10/20", "loss 1.5000", "ann", "bob", "75%", "1.500"):
        assert shown in text, shown
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_the_screen_is_left_when_a_run_fails():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    hook = screen(TEACHERS, Budget(20, "train_steps"), console)
    hook(event("start", 0))
    hook(event("failed", 0, found={}))
    assert "\x1b[?25h" in console.file.getvalue()


def test_lines_where_there_is_no_terminal_and_files_alone_when_quiet(tmp_path, capsys):
    for quiet in (True, False):
        hooks = list(default_hooks(tmp_path, TEACHERS, Budget(20, "train_steps"), 0, quiet=quiet))
        for hook in hooks:
            hook(event())
        assert bool(capsys.readouterr().out) is not quiet
        for hook in hooks:
            hook(event("end", found={}))


def test_a_report_makes_a_line_every_so_often_and_at_checkpoints():
    seen = []
    recipe = dataclasses.replace(smoke(), log_every=3)
    with Report(
        recipe, [lambda e: seen.append((e.kind, e.train_step, float(e.tallies["loss"].weight)))], Position(), 0.0
    ) as report:
        for train_step in range(1, 6):
            report.add(Position(train_step=train_step), tallies(), None)
        report.flush(None)
        report.flush(None)
    assert seen == [("log", 3, 6.0), ("log", 5, 4.0)]


def test_a_report_tells_hooks_of_an_exception():
    kinds = []
    with pytest.raises(ZeroDivisionError), Report(smoke(), [lambda e: kinds.append(e.kind)], Position(), 0.0):
        _ = 1 / 0
    assert kinds == ["failed"]


def test_late_gives_back_the_train_step_before_as_numpy():
    late = Late()
    one, two = (Position(train_step=n) for n in (1, 2))
    assert late.swap((one, tallies())) == []
    ((position, found),) = late.swap((two, tallies()))
    assert position is one
    assert isinstance(found["loss"].sum, np.ndarray)
    ((position, _),) = late.swap(None)
    assert position is two
    assert late.swap(None) == []
