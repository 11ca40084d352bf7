"""What gates cost: whole train steps with and without them, alternating in one process.

    python scripts/bench/gates.py [--each] [--rows 22] [--length 192] [--vocab 32768] [--rounds 5] [--json FILE]

A decoder of 5 million parameters on random packed traces of four teachers. "open" gates compute everything and keep
every token, so that the difference to plain cross entropy is what the gates cost; "half" keeps about half of the
tokens, whose vocabulary gradients are then skipped. Seconds are user seconds of the process on one core; a ratio is the
median over rounds of one row's seconds over plain's in the same round. Aim: all three gates at most 1.10 open, below 1
at half. Up to 512 MiB of logits a CPU keeps them all, and closed gates save nothing; the default shape is above that.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

TEACHERS = ("a", "b", "c", "d")
MEAN_STEP, MEAN_TRACE = 16, 96  # tokens


def main() -> None:
    """Times all rows and prints them as markdown."""
    args = _arguments()
    # One core: the waiting of idle worker threads would count as user time. Before jax is imported.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["JAX_PLATFORMS"] = "cpu"
    from scripts.bench.vocabulary_pass import alternate, machine, user_seconds

    batch = make_batch(args.rows, args.length, args.vocab)
    chosen = {name: gates for name, gates in arms().items() if args.each or len(gates) != 1}
    rows = {name: Stepping(gates, batch, args.vocab) for name, gates in chosen.items()}
    seconds = alternate(rows, args.rounds, user_seconds)
    print(f"{machine('cpu')}; {time.strftime('%Y-%m-%d')}; {args.rounds} rounds")
    print(f"small decoder, {args.rows} rows of {args.length} tokens, vocabulary {args.vocab:,}\n")
    print("| gates | kept | seconds | ratio to plain |\n|---|---|---|---|")
    results = []
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["plain"], strict=True))
        results.append({"gates": name, "kept": rows[name].kept, "seconds": times, "ratio": ratio})
        print(f"| {name} | {rows[name].kept:.0%} | {statistics.median(times):.2f} | {ratio:.3f} |")
    if args.json:
        args.json.write_text(json.dumps({"command": sys.argv, "machine": machine("cpu"), "results": results}, indent=1))


def arms() -> dict[str, tuple[Any, ...]]:
    """Gates by row name."""
    from mixdistill.gates import global_confidence, rank_surprisal, step_confidence, teacher_weight, worst_token
    from mixdistill.signals.signal import use

    weight = use(teacher_weight, weights={"a": 1.0})
    rank, step = use(rank_surprisal, threshold=1e9), use(step_confidence, quantile=0.0)
    return {
        "plain": (),
        "worst_token": (use(worst_token, threshold=1e9),),
        "rank_surprisal": (rank,),
        "step_confidence": (step,),
        "global_confidence": (use(global_confidence, quantile=0.0),),
        "teacher_weight, rank_surprisal, step_confidence; open": (weight, rank, step),
        "teacher_weight, rank_surprisal, step_confidence; half": (weight, rank, use(step_confidence, quantile=0.5)),
    }


class Stepping:
    """A train step that goes on from where it was, so that its state can be donated."""

    def __init__(self, gates: tuple[Any, ...], batch: dict[str, Any], vocab: int):
        import jax
        import jax.numpy as jnp

        from mixdistill.losses import cross_entropy
        from mixdistill.objective import Objective, Term
        from mixdistill.optimizers import Budget, OptimizerConfig, make_optimizer
        from mixdistill.students.decoder import make_student
        from mixdistill.students.families import small
        from mixdistill.training.state import TrainState, initial_memory
        from mixdistill.training.step import make_train_step

        objective = Objective({"imitate": Term(cross_entropy, gates=gates)}).with_teachers(TEACHERS)
        student = make_student(small(vocab))
        optimizer = make_optimizer(OptimizerConfig(), student.axes, Budget(1000, "train_steps"))
        params = jax.jit(student.init, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0))
        self.state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), initial_memory([objective]))
        self.step = jax.jit(make_train_step(student, objective, optimizer), donate_argnums=0)
        self.batch, self.kept = batch, 0.0

    def __call__(self) -> None:
        """One train step, waited for."""
        self.state, tallies = self.step(self.state, self.batch)
        self.kept = float(tallies["kept"].mean())


def make_batch(rows: int, length: int, vocab: int) -> dict[str, Any]:
    """Random tokens in traces and steps of random lengths, every place used."""
    import numpy as np

    random = np.random.default_rng(0)
    shape = rows, length
    new_trace = random.random(shape) < 1 / MEAN_TRACE
    new_trace[:, 0] = True
    new_step = new_trace | (random.random(shape) < 1 / MEAN_STEP)
    segment = new_trace.cumsum(axis=1)
    starts = np.maximum.accumulate(np.where(new_trace, np.arange(length), 0), axis=1)
    return {
        "tokens": random.integers(0, vocab, shape, dtype=np.int32),
        "target": random.integers(0, vocab, shape, dtype=np.int32),
        "valid": np.ones(shape, bool),
        "content": np.ones(shape, bool),
        "segment_id": segment.astype(np.int32),
        "position": (np.arange(length) - starts).astype(np.int32),
        "step_id": new_step.cumsum(axis=1).astype(np.int32),
        "teacher_id": (segment % len(TEACHERS)).astype(np.int32),
        "trace_id": segment.astype(np.int32),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", action="store_true", help="time single gates too")
    parser.add_argument("--rows", type=int, default=22)
    parser.add_argument("--length", type=int, default=192, help="tokens a row")
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
