"""Whole train steps against google-tunix's `PeftTrainer` and TRL's `SFTTrainer`: CPU seconds per trained token.

    MIXDISTILL_DATA=... python scripts/bench/train_step.py [--rounds 5] [--steps 3] [--environments FOLDER]

Three tables at equal shapes (8 rows x 256, V=8192, d=256, 4 layers, float32, AdamW), each side in a process and an
environment of its own, which this script makes once (2.5 GB), on one core, in turns:

    full      every token is trained on: what the train step costs
    ragged    recorded solutions of GSM8K, completions trained on, as users would run it: ours packs rows, tunix's
              examples pad to the length, TRL pads to the longest of a batch
    gated     ragged, with the half of the tokens that the student is less sure of closed: ours by a gate, the others by
              a loss as one would write it

A turn is a few train steps; a figure is the median over rounds, the first of which (compilation) is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHAPES = {"rows": 8, "length": 256, "vocab": 8192, "embed": 256, "mlp": 1024, "layers": 4, "heads": 4, "kv_heads": 2}
SHAPES |= {"head_dim": 64}
TABLES = {"full": ("full", False), "ragged": ("ragged", False), "gated": ("ragged", True)}
# torch first: its CPU build is found for Python 3.11 alone, and trl would bring another.
PEERS = {
    "tunix": (sys.executable, (("google-tunix==0.1.7",),)),
    "trl": (
        "python3.11",
        (("torch==2.13.0",), ("trl==1.16.0", "transformers==5.23.0", "datasets==5.2.0", "accelerate==1.15.0")),
    ),
}
TRACES = ("gsm8k_human/train.jsonl.gz",)


def main() -> None:
    """Prints the tables as markdown."""
    args = _arguments()
    pythons = {"ours": sys.executable} | {name: environment(name, args.environments) for name in args.peers}
    with tempfile.TemporaryDirectory() as folder:
        task = {**SHAPES, "steps": args.steps, **write_data(Path(folder))}
        print(f"{time.strftime('%Y-%m-%d')}; {args.rounds} rounds of {args.steps} train steps; one core", flush=True)
        results = {}
        for table in args.tables:
            data, gated = TABLES[table]
            sides = {
                name: Side(name, python, {**task, "data": data, "gated": gated}) for name, python in pythons.items()
            }
            results[table] = alternate(sides, args.rounds)
            print("\n".join(markdown(table, results[table])), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"command": sys.argv, "results": results}, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="train steps a turn")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--tables", nargs="*", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--environments", type=Path, default=Path("build/bench"), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def environment(name: str, folder: Path) -> str:
    """The Python of an environment that holds a peer; made if it is not there."""
    python, packages = PEERS[name]
    home = folder / name
    if not (home / "made").exists():
        print(f"making {home}: {packages}", file=sys.stderr)
        subprocess.run([python, "-m", "venv", home], check=True)
        for group in packages:
            subprocess.run([home / "bin" / "python", "-m", "pip", "install", "-q", *group], check=True)
        (home / "made").touch()
    return str((home / "bin" / "python").absolute())


def write_data(folder: Path) -> dict[str, str]:
    """Random full rows, and recorded traces as shards and as padded token ids."""
    import numpy as np

    from experiments.development_data import development_data
    from mixdistill.traces.prepare import Settings, prepare

    length, rows = SHAPES["length"], SHAPES["rows"]
    np.save(folder / "full.npy", np.random.default_rng(0).integers(2, SHAPES["vocab"], (64, rows, length), np.int32))
    files = [development_data() / name for name in TRACES]
    shards = prepare(files, folder / "shards", vocab_size=SHAPES["vocab"], settings=Settings(grade=False))
    records = [shards[index] for index in range(len(shards.index))]
    records = [record for record in records if len(record.tokens) <= length]
    tokens = np.zeros((len(records), length), np.int32)
    for row, record in zip(tokens, records, strict=True):
        row[: len(record.tokens)] = record.tokens
    prompts = np.array([record.num_prompt for record in records])
    lengths = np.array([len(record.tokens) for record in records])
    np.savez(folder / "ragged.npz", tokens=tokens, prompts=prompts, lengths=lengths)
    return {"full": str(folder / "full.npy"), "ragged": str(folder / "ragged.npz"), "shards": str(folder / "shards")}


class Side:
    """One side's process."""

    def __init__(self, name: str, python: str, task: dict[str, Any]):
        script = Path(__file__).with_name(f"train_step_{name}.py")
        # One core: idle worker threads that spin would count.
        core = {max(os.sched_getaffinity(0))}
        self._process = subprocess.Popen(
            [python, str(script), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if name != "ours" else None,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            preexec_fn=lambda: os.sched_setaffinity(0, core),
        )
        self._read()

    def turn(self) -> dict[str, float]:
        """A few train steps."""
        assert self._process.stdin
        print("go", file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, float]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("turn "):
                return json.loads(line.removeprefix("turn "))
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")


def alternate(sides: dict[str, Side], rounds: int) -> dict[str, list[dict[str, float]]]:
    """What every side measured in every round but the first."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            turn = side.turn()
            if number:
                found[name].append(turn)
    for side in sides.values():
        side.close()
    return found


def markdown(table: str, turns: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """CPU time a trained token, ours over each, and peaks of memory."""
    cost = {name: [turn["cpu"] / turn["tokens"] for turn in taken] for name, taken in turns.items()}
    yield f"\n### {table}\n\n| side | CPU ms a trained token | ours / this | peak MiB |\n|---|---|---|---|"
    for name, values in cost.items():
        ratio = statistics.median(own / other for own, other in zip(cost["ours"], values, strict=True))
        peak = max(turn["peak_mib"] for turn in turns[name])
        yield f"| {name} | {1000 * statistics.median(values):.3f} | {ratio:.2f} | {peak:,.0f} |"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
