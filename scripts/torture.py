"""The torture bench: a run is killed at random instants and resumed, again and again, and must end as if never touched.

    python scripts/torture.py --kills 100 [--two 10] [--seed 0] [--faults] [--flips 200]

A tiny run of three stages (one teacher; all of them with a gate, a router and held-out problems; the student's own
rollouts) on shards that `prepare` makes. Kills are SIGKILL or SIGTERM at a random moment after a random mark: prepare,
start, compile, step, save, evaluation, rollouts. Whenever a run gets to its end, its parameters, optimiser, memory,
ledger and metrics are compared with those of a run that nobody touched, bit for bit, and a new run begins. `--two`
kills runs of two processes: one of them is killed, the other has lost its partner. `--faults` goes through the other
faults of docs/reliability.md. Exit code 1 if anything was lost.
"""

import argparse
import collections
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
MARKS_A_RUN = 60  # about so many until the end: the number of the mark to kill at is drawn from half of them
HANG_SECONDS = 300


def main(argv: list[str] | None = None) -> int:
    """0 when every kill and fault was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--two", type=int, default=0, metavar="N", help="kills of runs of two processes")
    parser.add_argument("--minutes", type=float, default=60.0, help="then no kill any more, only the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--flips", type=int, default=200, help="bits to flip in shards and checkpoints (with --faults)")
    parser.add_argument("--scratch", type=Path, help="folder to work in (default: a temporary one)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args.scratch or Path(temporary), random.Random(args.seed))
        if args.kills:
            bench.torture(args.kills, 1, args.minutes)
        if args.two:
            bench.torture(args.two, 2, args.minutes)
        if args.faults:
            from scripts import torture_faults

            torture_faults.run_all(bench, args.flips)
        bench.print()
    return 0 if bench.survived else 1


class Bench:
    """What was done, and what came of it."""

    def __init__(self, scratch: Path, rng: random.Random):
        self.scratch, self.rng = scratch, rng
        self.rows: list[tuple[str, int, int, int, int, str]] = []  # what, injected, survived, lost steps, records, note
        self.survived = True
        scratch.mkdir(parents=True, exist_ok=True)
        self.sources = scratch / "sources"
        _write_sources(self.sources)
        self.shards = scratch / "shards"

    def add(self, what: str, injected: int, survived: int, steps: int = 0, records: int = 0, note: str = "") -> None:
        """One line of the table."""
        self.rows.append((what, injected, survived, steps, records, note))
        self.survived &= injected == survived and not steps and not records
        print(f"  {what}: {survived} of {injected} survived {note}", flush=True)

    def reference(self, processes: int) -> "Ended":
        """The run that nobody touches."""
        if not self.shards.exists():
            _child(_prepare, self.sources, self.shards).wait_for_end()
        workdir = self.scratch / f"whole-{processes}"
        if not workdir.exists():
            for one in _run(self.shards, workdir, processes):
                one.wait_for_end()
        return Ended.of(workdir)

    def torture(self, kills: int, processes: int, minutes: float) -> None:
        """Kills runs so many times; adds a row for each phase, and one for SIGTERM."""
        wanted = self.reference(processes)
        killed, ends, slow, same = collections.Counter(), 0, 0.0, 0
        lost_steps = lost_records = 0
        round_number, deadline = 0, time.monotonic() + 60 * minutes
        while True:
            if time.monotonic() > deadline:
                kills = sum(killed.values())
            workdir = self.scratch / f"run-{processes}-{round_number}"
            if sum(killed.values()) < kills and processes == 1 and self.rng.random() < 0.3:
                killed["prepare"] += self._kill_prepare()
            number = self.rng.choice((signal.SIGKILL, signal.SIGTERM)) if sum(killed.values()) < kills else None
            phase, seconds = self._once(workdir, processes, number)
            if phase is not None:
                killed[phase] += 1
                print(f"  {sum(killed.values())}: {phase}", flush=True)
                slow = max(slow, seconds)
                continue
            ended = Ended.of(workdir)
            ends, same = ends + 1, same + (ended == wanted)
            steps, records = ended.lost(wanted)
            lost_steps, lost_records = lost_steps + steps, lost_records + records
            if ended != wanted:
                print(f"  {workdir} differs: {ended.difference(wanted)}", flush=True)
            else:
                shutil.rmtree(workdir)
            round_number += 1
            if sum(killed.values()) >= kills:
                break
        total, label = sum(killed.values()), "two processes: " if processes == 2 else ""
        for phase, count in sorted(killed.items()):
            self.rows.append((f"{label}killed in {phase}", count, count if same == ends else 0, 0, 0, ""))
        note = f"{same} of {ends} ends bit-identical; longest from SIGTERM to the exit {slow:.1f} s"
        self.add(f"{label}all kills", total, total if same == ends else 0, lost_steps, lost_records, note)

    def _once(self, workdir: Path, processes: int, number: int | None) -> tuple[str | None, float]:
        """Runs until the end (None) or until killed: the phase, and how long a SIGTERM took."""
        children = _run(self.shards, workdir, processes)
        victim = self.rng.choice(children)
        marks = self.rng.randrange(MARKS_A_RUN // 2) if number else 10**9
        phase = victim.watch(marks)
        if phase is None or number is None:
            for child in children:
                child.wait_for_end()
            return None, 0.0
        time.sleep(self.rng.random() * 0.2)
        began = time.perf_counter()
        victim.kill(number)
        victim.reap()
        seconds = time.perf_counter() - began if number == signal.SIGTERM else 0.0
        for child in children:  # a partner that is left alone is ended, as a scheduler would
            if child is not victim:
                child.give_up(0 if number == signal.SIGTERM else 5)
        return f"{phase} by {signal.Signals(number).name}", seconds

    def _kill_prepare(self) -> int:
        """Kills preparing once, lets it go on, and compares the bytes. How often it was killed."""
        out = self.scratch / "prepared"
        child = _child(_prepare, self.sources, out)
        child.watch(1)
        time.sleep(self.rng.random() * 0.5)
        child.kill(self.rng.choice((signal.SIGKILL, signal.SIGTERM)))
        killed = child.reap() != 0
        if not out.exists():
            _child(_prepare, self.sources, out).wait_for_end()
        from mixdistill.traces.shards import Shards

        assert Shards.open(out, "full").fingerprint == Shards.open(self.shards).fingerprint, "prepare lost something"
        for path in (*self.scratch.glob(".prepared*"), out):
            shutil.rmtree(path)
        return int(killed)

    def print(self) -> None:
        """The table, as markdown."""
        print("\n| fault | injected | survived | lost train steps | lost or repeated records | note |")
        print("|---|---|---|---|---|---|")
        for row in self.rows:
            print("| " + " | ".join(map(str, row)) + " |")


class Ended:
    """What a run left: all that must be equal."""

    def __init__(self, checksums: dict, position: dict, ledger: list, metrics: list):
        self.checksums, self.position, self.ledger, self.metrics = checksums, position, ledger, metrics

    @staticmethod
    def of(workdir: Path) -> "Ended":
        from mixdistill.training.checkpoint import FOLDER, saved_train_steps
        from mixdistill.training.history import LEDGER, read_ledger
        from mixdistill.training.hooks import METRICS_FILE, read_metrics

        last = saved_train_steps(workdir)[-1]
        about = json.loads((workdir / FOLDER / str(last) / "about" / "metadata").read_text())
        position = {name: value for name, value in about["position"].items() if name != "seconds"}
        metrics = [_without_clocks(line) for line in read_metrics(workdir / METRICS_FILE)]
        return Ended(about["checksums"], position, list(read_ledger(workdir / LEDGER)), metrics)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ended) and vars(self) == vars(other)

    def lost(self, wanted: "Ended") -> tuple[int, int]:
        """Train steps that are missing or too many, and records trained on too seldom or too often."""
        counts = []
        for one in (self, wanted):
            batches = [line for line in one.ledger if "event" not in line]
            steps = collections.Counter(line["train_step"] for line in batches)
            counts.append((steps, collections.Counter(t for line in batches for t in line["traces"])))
        return tuple(((a - b) + (b - a)).total() for a, b in zip(*counts, strict=True))  # pyright: ignore[reportReturnType]

    def difference(self, wanted: "Ended") -> str:
        """Names of what differs, and the first lines that do."""
        found = [name for name in vars(self) if vars(self)[name] != vars(wanted)[name]]
        pairs = {name: zip(vars(self)[name], vars(wanted)[name], strict=False) for name in ("ledger", "metrics")}
        lines = [f"{name}: {next((p for p in both if p[0] != p[1]), 'one is longer')}" for name, both in pairs.items()]
        places = [k for k in self.position if self.position[k] != wanted.position.get(k)]
        return f"{', '.join(found)} {places} {'; '.join(lines)}"[:3000]


def _without_clocks(line: dict) -> dict:
    """What does not depend on how fast this machine is."""
    timed = ("seconds", "per_second")
    plain = {name: value for name, value in line.items() if name not in ("seconds", "clock", "spent")}
    return {
        name: {k: v for k, v in value.items() if not k.endswith(timed)} if isinstance(value, dict) else value
        for name, value in plain.items()
    }


class Child:
    """A forked process that tells its phases through a pipe."""

    def __init__(self, pid: int, pipe: int):
        self.pid, self._pipe, self._rest, self.last, self.code = pid, pipe, b"", "begin", None

    def watch(self, marks: int) -> str | None:
        """Waits for so many marks; the phase then, None if it ended before."""
        for _ in range(marks):
            if not (mark := self._mark()):
                return None
            self.last = mark
        return self.last

    def _mark(self) -> str:
        while b"\n" not in self._rest:
            if not select.select([self._pipe], [], [], HANG_SECONDS)[0]:
                self.kill(signal.SIGKILL)
                raise TimeoutError(f"nothing for {HANG_SECONDS} s after {self.last}")
            if not (more := os.read(self._pipe, 4096)):
                return ""
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def kill(self, number: int) -> None:
        """Sends a signal; it may have ended by itself."""
        if self.code is None:
            os.kill(self.pid, number)

    def reap(self) -> int:
        """Waits for the exit; its code, negative for a signal."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pipe)
        return self.code

    def wait_for_end(self) -> None:
        """Reads marks until it ends, which it has to do well."""
        while self._mark():
            pass
        if code := self.reap():
            raise RuntimeError(f"a process ended with {code}")

    def give_up(self, seconds: float) -> None:
        """Waits a little, then kills."""
        deadline = time.monotonic() + (seconds or 60)
        while time.monotonic() < deadline and self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                os.close(self._pipe)
                return
            time.sleep(0.05)
        self.kill(signal.SIGKILL)
        self.reap()


def _child(work, *args) -> Child:
    """`work(mark, *args)` in a fork of this process, in which jax is imported and has not begun yet."""
    import mixdistill.traces.prepare
    import mixdistill.training.loop  # noqa: F401 - once, here, not in each of a hundred children

    sys.stdout.flush()
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        return Child(pid, reading)
    os.close(reading)
    code = 1
    try:
        work(lambda phase: os.write(writing, f"{phase}\n".encode()), *args)
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:  # noqa: BLE001 - the child of a fork must not go on with its parent's work
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _prepare(mark, sources: Path, out: Path) -> None:
    from mixdistill.commands import prepare as command  # its SIGTERM handler is part of what is tried
    from mixdistill.traces import prepare
    from mixdistill.traces.worlds.chain import CHAIN

    tokenizer = out.parent / "tokenizer"
    if not tokenizer.exists():
        tokenizer.mkdir()
        CHAIN.tokenizer().save(tokenizer)
    mark("prepare")
    prepare.Encode.__call__ = _marked(mark, "prepare", prepare.Encode.__call__)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = [str(sources), "--out", str(out), "--tokenizer", str(tokenizer), "--workers", "1", "--segment", "auto"]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    command.run(parser.parse_args([*args, "--no-grade"]))


def _run(shards: Path, workdir: Path, processes: int) -> list[Child]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [_child(_train, shards, workdir, process, processes, port) for process in range(processes)]


def _train(mark, shards: Path, workdir: Path, process: int, processes: int, port: int) -> None:
    import jax

    cache = workdir.parent / f"compiled-{processes}"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if processes > 1:
        os.environ.pop("XLA_FLAGS", None)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=processes, process_id=process)
    from mixdistill.training import held_out, loop
    from mixdistill.training.checkpoint import Checkpoints
    from mixdistill.training.rollout_pipeline import RolloutPipeline
    from scripts.torture_recipe import recipe

    for owner, name, phase in (
        (loop, "compiled", "compile"),
        (held_out.Exam, "__call__", "evaluation"),
        (RolloutPipeline, "_draw", "rollouts"),
        (Checkpoints, "save", "save"),
    ):
        setattr(owner, name, _marked(mark, phase, getattr(owner, name)))
    mark("start")
    devices = None if processes > 1 else jax.devices()[:1]
    loop.run(recipe(shards, processes), workdir, hooks=[lambda e: e.kind == "train_step" and mark("step")],
             devices=devices, quiet=True)  # fmt: skip


def _marked(mark, phase: str, work):
    def marked(*args, **knobs):
        mark(phase)
        return work(*args, **knobs)

    return marked


def _write_sources(folder: Path) -> None:
    """Traces of three teachers as JSON lines."""
    from mixdistill.traces.worlds.chain import CHAIN

    if folder.exists():
        return
    folder.mkdir(parents=True)
    for teacher in ("B", "F", "H"):
        traces = [CHAIN.trace(problem, teacher) for problem in CHAIN.problems(0, "train", 400, stream=teacher)]
        lines = [json.dumps({"prompt": t.prompt, "completion": t.text, "teacher": teacher}) for t in traces]
        (folder / f"{teacher}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
