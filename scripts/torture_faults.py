"""The other faults of the torture bench: disks, bits, clocks, servers; each on real files, in its own process."""

import dataclasses
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scripts.torture import Bench

MEBIBYTE = 2**20


def run_all(bench: "Bench", flips: int) -> None:
    """One row of the table for each kind of fault."""
    wanted = bench.reference(1)
    for what, fault in (("slow disk", _slow_disk), ("clock jumps", _clock_jumps)):
        workdir = bench.scratch / what.replace(" ", "-")
        _child(_faulty, fault, bench.shards, workdir).wait_for_end()
        _compare(bench, what, workdir, wanted)
    _disk_full(bench, wanted)
    _read_only(bench)
    _hung_server(bench)
    _flipped(bench, "bit flips in shards", _flip_shards, bench.shards, flips)
    _flipped(bench, "bit flips in the newest checkpoint", _flip_checkpoint, bench.scratch / "whole-1", flips)


def _child(work, *args):
    from scripts.torture import _child as child

    return child(work, *args)


def _compare(bench: "Bench", what: str, workdir: Path, wanted, note: str = "") -> None:
    ended = type(wanted).of(workdir)  # the bench's own class: as a program it is another than when it is imported
    steps, records = ended.lost(wanted)
    bench.add(
        what, 1, int(ended == wanted), steps, records, f"{note}end {'' if ended == wanted else 'not '}bit-identical"
    )


def _faulty(mark, fault, shards: Path, workdir: Path) -> None:
    """A whole run under a fault."""
    from scripts.torture import _train

    fault()
    _train(mark, shards, workdir, 0, 1, 0)


def _slow_disk() -> None:
    """Everything that makes a file durable or visible takes long."""
    import os

    for name in ("rename", "replace", "fsync"):
        work = getattr(os, name)
        setattr(os, name, lambda *args, _work=work, **knobs: (time.sleep(0.3), _work(*args, **knobs))[1])


def _clock_jumps() -> None:
    """The wall clock jumps by hours, back and forth, at every look."""
    real, rng = time.time, random.Random(0)
    time.time = lambda: real() + rng.choice((-7200, -3600, 0, 3600, 86400))


def _disk_full(bench: "Bench", wanted) -> None:
    disk = bench.scratch / "small-disk"
    disk.mkdir(exist_ok=True)
    if not _mounted(disk, "size=24m"):
        bench.rows.append(("disk full (tmpfs)", 0, 0, 0, 0, "not possible here: tmpfs cannot be mounted"))
        return
    try:
        code = _child(_until_full, bench.shards, disk / "work").reap()
        from mixdistill.training.checkpoint import saved_train_steps

        kept = saved_train_steps(disk / "work")
        for ballast in disk.glob("ballast*"):
            ballast.unlink()
        _child(_faulty, lambda: None, bench.shards, disk / "work").wait_for_end()
        note = f"stopped in words (exit {code}), checkpoints {kept} whole, then went on: "
        _compare(bench, "disk full (tmpfs)", disk / "work", wanted, note)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def _until_full(mark, shards: Path, workdir: Path) -> None:
    """Fills the disk after train step 9; what follows has to end in a `UserError`."""
    from mixdistill.training import hooks

    real = hooks.json_lines

    def filling(*args):
        write = real(*args)

        def hook(event) -> None:
            if event.kind == "train_step" and event.train_step == 9:
                _fill(workdir.parent)
            write(event)

        return hook

    hooks.json_lines = filling
    _refused(mark, shards, workdir)


def _fill(disk: Path) -> None:
    for size in (MEBIBYTE, 4096, 1):
        for number in range(10**6):
            try:
                (disk / f"ballast-{size}-{number}").write_bytes(bytes(size))
            except OSError:
                break


def _read_only(bench: "Bench") -> None:
    disk = bench.scratch / "read-only"
    disk.mkdir(exist_ok=True)
    if not _mounted(disk, "ro"):
        bench.rows.append(("read-only folder", 0, 0, 0, 0, "not possible here"))
        return
    try:
        code = _child(_refused, bench.shards, disk / "work").reap()
        bench.add("read-only folder", 1, int(code == 2), note="refused before anything is computed")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def _refused(mark, shards: Path, workdir: Path) -> None:
    from mixdistill.errors import UserError

    try:
        _faulty(mark, lambda: None, shards, workdir)
    except UserError as error:
        print(f"  said: {error}", flush=True)
        sys.exit(2)


def _mounted(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _hung_server(bench: "Bench") -> None:
    """A server that takes requests and never answers: a bounded wait, or a signal that does not wait at all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.perf_counter()
        child = _child(_asking, bench.shards, bench.scratch / "hung", port, 1.0)
        code = child.reap()
        seconds = time.perf_counter() - began
        bench.add("hung rollout server", 1, int(code == 2), note=f"ended in words after {seconds:.0f} s")
        child = _child(_asking, bench.shards, bench.scratch / "hung-signal", port, 600.0)
        while child.watch(1) not in ("rollouts", None):
            pass
        time.sleep(1)
        began = time.perf_counter()
        child.kill(signal.SIGTERM)
        code, seconds = child.reap(), time.perf_counter() - began
        from mixdistill.training.checkpoint import saved_train_steps

        saved = saved_train_steps(bench.scratch / "hung-signal")
        good = code == 0 and saved == [2] and seconds < 10
        bench.add(
            "SIGTERM while the server hangs", 1, int(good), note=f"checkpoint {saved}, gone after {seconds:.1f} s"
        )


def _asking(mark, shards: Path, workdir: Path, port: int, timeout: float) -> None:
    import jax

    from mixdistill.errors import UserError
    from mixdistill.generation.remote import Server
    from mixdistill.training.loop import run
    from mixdistill.training.rollout_pipeline import RolloutPipeline
    from scripts.torture import _marked
    from scripts.torture_recipe import recipe

    made = recipe(shards)
    server = Server(f"http://127.0.0.1:{port}/v1", "m", timeout=timeout, retries=0)
    first = dataclasses.replace(made.stages[0], num_train_steps=2)
    last = dataclasses.replace(made.stages[2], source=dataclasses.replace(made.stages[2].source, server=server))
    RolloutPipeline._draw = _marked(mark, "rollouts", RolloutPipeline._draw)
    try:
        run(dataclasses.replace(made, stages=(first, last)), workdir, devices=jax.devices()[:1], quiet=True)
    except UserError as error:
        print(f"  said: {error}", flush=True)
        sys.exit(2)


def _flipped(bench: "Bench", what: str, work, folder: Path, flips: int) -> None:
    """Rows of what became of each flip, as a child prints them."""
    out = bench.scratch / f"{work.__name__}.txt"
    child = _child(work, folder, bench.scratch / work.__name__, out, flips, bench.rng.randrange(2**31))
    code = child.reap()
    became = Counter(out.read_text().split("\n")[:-1]) if out.exists() else Counter()
    good = sum(count for name, count in became.items() if name != "changed in silence")
    note = ", ".join(f"{name} {count}" for name, count in became.most_common())
    bench.add(what, flips, good if code == 0 else min(good, flips - 1), note=note)


def _flip_shards(mark, folder: Path, scratch: Path, out: Path, flips: int, seed: int) -> None:
    """Opens and reads everything that training would, after every flip."""
    from mixdistill.data.corpus import open_corpus
    from mixdistill.data.mixture import Mixture
    from mixdistill.data.packing import Place
    from mixdistill.data.rows import read_rows
    from mixdistill.errors import UserError
    from mixdistill.traces.tokenizer import content_ids

    rng, whole = random.Random(seed), None

    def everything() -> tuple[dict, int]:
        corpus = open_corpus(Mixture(shards=str(scratch), rows=8, length=48))
        content = content_ids(corpus.shards[0].tokenizer)
        rows = [(Place(trace, 0, 0),) for trace in range(len(corpus.teacher)) if corpus.footprint[trace] <= 48]
        return read_rows(corpus, content, rows, 48), len(corpus.damage.traces)

    for _ in range(flips + 1):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(folder, scratch)
        if whole is not None:
            _flip(scratch, rng)
        try:
            found, lost = everything()
        except UserError:
            _note(out, "refused at the start")
            continue
        if whole is None:
            whole = found
            continue
        missing = found["segment_id"].max(1) == 0
        same = all(
            np.array_equal(found[name][~missing], whole[name][~missing], equal_nan=found[name].dtype.kind == "f")
            for name in whole
        )
        right = same and missing.sum() == lost
        _note(out, "changed in silence" if not right else "traces left out and named" if lost else "harmless")


def _flip_checkpoint(mark, workdir: Path, scratch: Path, out: Path, flips: int, seed: int) -> None:
    """Reads the newest checkpoint after every flip in it; what is read must be what was saved, or be refused."""
    from mixdistill.training.checkpoint import FOLDER, Checkpoints, Damaged, saved_train_steps

    rng, newest = random.Random(seed), saved_train_steps(workdir)[-1]
    source = workdir / FOLDER / str(newest)
    for _ in range(flips):
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / FOLDER).mkdir(parents=True)
        shutil.copytree(source, scratch / FOLDER / str(newest))
        _flip(scratch / FOLDER / str(newest), rng)
        try:
            with Checkpoints(scratch, keep=None) as checkpoints:
                if newest not in checkpoints.all():
                    _note(out, "not taken for a checkpoint")
                    continue
                checkpoints.verify(newest)
            _note(out, "harmless: every checksum holds")
        except Damaged:
            _note(out, "found damaged")


def _flip(folder: Path, rng: random.Random) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = rng.choices(files, [file.stat().st_size for file in files])[0]
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _note(out: Path, what: str) -> None:
    with out.open("a") as file:
        file.write(f"{what}\n")
