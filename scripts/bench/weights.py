"""Host memory of import and export beside what has to stay: a checkpoint of several files, copied, loaded, and written
by `mixdistill export` from a run's checkpoint.

    python scripts/bench/weights.py [--embed 768] [--layers 10] [--folder FOLDER]

Each in a process of its own: the peak of resident memory (VmHWM) over what was resident after the same was done with a
checkpoint of a few kilobytes, less the parameters that `load` leaves in memory; against the largest file. The allocator
gives what is freed back at once (MALLOC_MMAP_THRESHOLD_), so that memory that is in use is counted, and not tens of
megabytes that glibc keeps for later.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FIXTURE = Path(__file__).resolve().parents[2] / "tests" / "parity" / "fixtures" / "llama"
HOW = ("copy", "load", "export")


def main() -> None:
    """Prints a table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embed", type=int, default=768)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="for the checkpoints (default: a temporary one)")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        how, *paths = args.measure
        print(json.dumps(measure(how, *map(Path, paths))))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(
            "| what | largest file, MB | files | peak beside what stays, MB | peak / largest file |\n"
            "|---|---|---|---|---|"
        )
        for how, found in figures(Path(folder), args.embed, args.layers).items():
            largest, peak = found["largest"] / 1e6, found["peak"] / 1e6
            print(f"| {how} | {largest:,.0f} | {found['files']} | {peak:,.0f} | {peak / largest:.2f} |")


def figures(folder: Path, embed: int, layers: int) -> dict[str, dict[str, int]]:
    """{how: {"peak", "largest", "files"}}, bytes."""
    for name, sizes in (("small", {}), ("large", {"embed": embed, "mlp": embed * 11 // 3, "layers": layers})):
        make(folder / name, sizes)
    files = [path.stat().st_size for path in (folder / "large" / "given").glob("*.safetensors")]
    found = {}
    for how in HOW:
        words = [sys.executable, __file__, "--measure", how, *(folder / name for name in ("small", "large", "out"))]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=_environment())
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        found[how] = {"peak": json.loads(done.stdout.splitlines()[-1]), "largest": max(files), "files": len(files)}
    return found


def make(folder: Path, sizes: dict[str, int]) -> None:
    """A published checkpoint with a parameter a file, and a run that starts from it and was stopped at once."""
    import jax
    import numpy as np

    from mixdistill.data.mixture import Mixture
    from mixdistill.losses import cross_entropy
    from mixdistill.objective import Objective, Term
    from mixdistill.optimizers import OptimizerConfig
    from mixdistill.recipe import Recipe, Stage
    from mixdistill.students.decoder import make_student
    from mixdistill.students.weights import read_config, save_hf
    from mixdistill.traces.worlds.chain import CHAIN
    from mixdistill.traces.worlds.write import write_world
    from mixdistill.training import workdir
    from mixdistill.training.checkpoint import Checkpoint, Checkpoints
    from mixdistill.training.job import build
    from mixdistill.training.position import Position

    config = dataclasses.replace(read_config(FIXTURE), vocab_size=512, **sizes)
    shapes = jax.eval_shape(make_student(config).init, jax.random.key(0))
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda x: 0.02 * draw(x.shape, np.float32), shapes)
    save_hf(make_student(config), params, folder / "given", shard_bytes=1)
    write_world(CHAIN, folder / "shards", {"F": 20})
    objective = Objective({"imitate": Term(cross_entropy)})
    stage = Stage("only", 1, Mixture(shards=str(folder / "shards"), rows=8, length=24), objective)
    optimizer = OptimizerConfig(moments="factored")
    job = build(
        Recipe(name="w", student=config, start=str(folder / "given"), stages=(stage,), optimizer=optimizer),
        jax.devices()[:1],
    )
    workdir.make(folder / "run")
    workdir.write_about(folder / "run", job.identity, job.shards)
    with Checkpoints(folder / "run", keep=1) as checkpoints:
        checkpoints.save(1, Checkpoint(job.initial_state(), Position(train_step=1).to_json(), job.identity))


def measure(how: str, small: Path, large: Path, out: Path) -> int:
    """Bytes at the peak beside what stays."""
    do(how, small, out / f"{how}-small")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM anew from what is resident now
    before = _peak()
    kept = do(how, large, out / f"{how}-large")
    return _peak() - before - kept


def do(how: str, given: Path, out: Path) -> int:
    """What stays of it in memory, bytes."""
    import jax

    from mixdistill.students.weights import copy_hf, load_hf
    from mixdistill.training.export import export

    if how == "copy":
        copy_hf(given / "given", out, "float32")
    elif how == "export":
        export(given / "run", out, shard_bytes=1)
    else:
        _, params = load_hf(given / "given")
        return sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(params)))
    return 0


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root, "MALLOC_MMAP_THRESHOLD_": str(2**18)}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
