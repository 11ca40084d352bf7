"""What the ledger costs: scoring whole traces against the bare forward and vocabulary pass on the same packed batches.

    python scripts/bench/scoring.py [--traces 256] [--rounds 5] [--json FILE]

A decoder of 5 million parameters on random traces of 64 to 512 tokens. "bare" runs the compiled program alone on
batches that were packed beforehand; "scored" reads, packs, runs, copies back and writes the block. Seconds are user
seconds on one core; the ratio is the median over rounds of bare over scored in the same round: the share of the bare
speed that is left. Aim: at least 0.9.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Times both and prints them as markdown."""
    args = _arguments()
    # One core: the waiting of idle worker threads would count as user time. Before jax is imported.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["JAX_PLATFORMS"] = "cpu"
    from scripts.bench.vocabulary_pass import alternate, machine, user_seconds

    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(Path(folder), args.traces)
        seconds = alternate(rows, args.rounds, user_seconds)
    ratio = statistics.median(b / s for b, s in zip(seconds["bare"], seconds["scored"], strict=True))
    print(f"{machine('cpu')}; {time.strftime('%Y-%m-%d')}; {args.rounds} rounds, {args.traces} traces\n")
    print("| | seconds |\n|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {statistics.median(times):.2f} |")
    print(f"\nscored at {ratio:.3f} of the bare speed")
    if args.json:
        found = {"command": sys.argv, "machine": machine("cpu"), "seconds": seconds, "ratio": ratio}
        args.json.write_text(json.dumps(found, indent=1))


def make_rows(folder: Path, num_traces: int) -> dict:
    """name -> function without arguments."""
    import jax
    import numpy as np

    from mixdistill.data.ledger import blocks, write_block
    from mixdistill.data.sequences import batches
    from mixdistill.generation.contexts import full
    from mixdistill.generation.scoring import BATCH_TOKENS, Runner
    from mixdistill.students.decoder import make_student
    from mixdistill.students.families import small
    from mixdistill.traces.prepare import prepare_traces
    from mixdistill.traces.tokenizer import word_level
    from mixdistill.traces.trace import Step, Trace

    random, words = np.random.default_rng(0), [f"w{i}" for i in range(8000)]
    texts = [" ".join(random.choice(words, int(random.integers(64, 512)))) for _ in range(num_traces)]
    traces = [Trace(f"p{i}", "w1 w2", (Step(text),), "", "t") for i, text in enumerate(texts)]
    shards = prepare_traces(traces, folder / "shards", tokenizer=word_level(words))
    student = make_student(small(shards.tokenizer.vocab_size))
    runner = Runner(student, jax.jit(student.init)(jax.random.key(0)), BATCH_TOKENS, jax.devices()[:1])
    context = full()
    packed = [b for b, _ in batches([context.sequences(shards[i])[0] for i in range(len(shards))], BATCH_TOKENS)]

    def bare() -> None:
        jax.block_until_ready([runner._forward(context, batch) for batch in packed])

    def scored() -> None:
        for block in blocks(folder, shards, context.name):
            write_block(block.path, *runner(context, [shards[i] for i in range(block.first, block.stop)]), {})

    return {"bare": bare, "scored": scored}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
