"""How many tokens a second the sampler decodes: with its cache, without one, and `transformers` on the same weights.

    python scripts/bench/sampler.py [--size tiny|small] [--torch-python PYTHON] [--rows 32] [--new 128] [--one-thread]
                                    [--no-recomputing]

PYTHON is that of an environment with torch and transformers, which are no dependencies of mixdistill; without it the
third line is left out (`scripts/make_parity_fixtures.py` makes such an environment). A student with random weights is
written as a checkpoint and loaded by both sides. Everything is greedy, in float32, on the CPU, and no row stops early;
all sides must say the same tokens. Each round runs every side once, in turns, so that all share what else the machine
does; a figure is the median over the rounds. A side uses as many cores as it likes, or one with `--one-thread`. CPU
seconds are those of its process. `--no-recomputing` leaves out the side without a cache: of a small student it takes
minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

INSIDE = "--inside"  # this process has torch, and answers requests on stdin
SIZES = ("tiny", "small")
VOCAB = 512
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def cached(folder: Path, prompts: list[list[int]], new: int) -> Callable[[], Any]:
    """The sampler as it is."""
    from mixdistill.students.weights import load_hf

    return _ours(*load_hf(folder), prompts, new)


def recomputing(folder: Path, prompts: list[list[int]], new: int) -> Callable[[], Any]:
    """The sampler, with a student that has no cache."""
    from mixdistill.students.weights import load_hf

    student, params = load_hf(folder)
    return _ours(student._replace(cache=None), params, prompts, new)


def _ours(student, params, prompts: list[list[int]], new: int) -> Callable[[], Any]:
    from mixdistill.generation.sampler import complete

    def run() -> list[list[int]]:
        made = complete(student, params, prompts, max_new=new, eos_id=-1, rows=len(prompts))
        return [completion.tokens.tolist() for completion in made]

    return run


def transformers(folder: Path, prompts: list[list[int]], new: int) -> Callable[[], Any]:
    """`generate` with its cache, in a process that has torch."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor(prompts)
    options = {"do_sample": False, "use_cache": True, "max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0}

    def run() -> list[list[int]]:
        with torch.inference_mode():
            made = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        return made[:, tokens.shape[1] :].tolist()

    return run


SIDES = {"cached": cached, "recomputing": recomputing, "transformers": transformers}


class Side:
    """One side in a process of its own, which makes its program first and then runs it whenever it is asked to."""

    def __init__(self, name: str, python: str, task: dict[str, Any], environment: dict[str, str]):
        self.name = name
        command = [python, __file__, INSIDE, json.dumps({**task, "side": name})]
        pipe, environment = subprocess.PIPE, {**os.environ, **environment}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.tokens = self._read()["tokens"]

    def measure(self) -> tuple[float, float]:
        """(seconds, CPU seconds) of one run."""
        assert self._process.stdin
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        found = self._read()
        return found["seconds"], found["cpu_seconds"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the side {self.name} ended (see above)")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def inside(task: dict[str, Any]) -> None:
    """The process of one side: one run to warm up, then one for every line on stdin."""
    run = SIDES[task["side"]](Path(task["folder"]), task["prompts"], task["new"])
    print(json.dumps({"tokens": run()}), flush=True)
    for _ in sys.stdin:
        clock, cpu = time.perf_counter(), time.process_time()
        run()
        seconds = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(seconds), flush=True)


def bench(folder: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """{side: {seconds, cpu_seconds}} of decoding rows x new tokens."""
    import jax
    import numpy as np

    from mixdistill.students import families
    from mixdistill.students.decoder import make_student
    from mixdistill.students.weights import save_hf

    student = make_student(getattr(families, args.size)(VOCAB))
    save_hf(student, student.init(jax.random.key(0)), folder / "student")
    prompts = np.random.default_rng(0).integers(0, VOCAB, (args.rows, args.prompt)).tolist()
    task = {"folder": str(folder / "student"), "prompts": prompts, "new": args.new}
    threads = ONE_THREAD if args.one_thread else {}
    own = ("cached",) if args.no_recomputing else ("cached", "recomputing")
    sides = [Side(name, sys.executable, task, threads) for name in own]
    sides += [Side("transformers", args.torch_python, task, threads)] if args.torch_python else []
    for side in sides:
        same = sum(a == b for a, b in zip(side.tokens, sides[0].tokens, strict=True))
        print(f"{side.name}: {same} of {args.rows} rows as the first side says them", file=sys.stderr)
    found = {side.name: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            found[side.name].append(side.measure())
    for side in sides:
        side.close()
    return {
        name: dict(zip(("seconds", "cpu_seconds"), map(statistics.median, zip(*times, strict=True)), strict=True))
        for name, times in found.items()
    }


def main() -> None:
    """Prints a table in markdown, and JSON to stdout or a file."""
    if sys.argv[1:2] == [INSIDE]:
        inside(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="a student of mixdistill.students.families")
    parser.add_argument("--torch-python", metavar="PYTHON")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--new", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-thread", action="store_true")
    parser.add_argument("--no-recomputing", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = bench(Path(folder), args)
    tokens, own = args.rows * args.new, found["cached"]
    print("| side | tokens / s | tokens / CPU s | cached is (time) | cached is (CPU time) |\n|---|---:|---:|---:|---:|")
    for name, times in found.items():
        rates = " | ".join(f"{tokens / times[unit]:,.0f}" for unit in ("seconds", "cpu_seconds"))
        ratios = " | ".join(f"{times[unit] / own[unit]:.2f} x" for unit in ("seconds", "cpu_seconds"))
        print(f"| {name} | {rates} | {ratios} |")
    settings = {name: getattr(args, name) for name in ("size", "rows", "prompt", "new", "rounds", "one_thread")}
    text = json.dumps({**settings, "sides": found})
    print(text) if args.json is None else args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
