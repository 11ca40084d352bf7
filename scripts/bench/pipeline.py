"""How many tokens a second one core reads, mixes, packs and batches: mixdistill against bare grain, in turns.

    python scripts/bench/pipeline.py [SHARDS] [--rows 16] [--length 1024] [--rounds 7] [--json FILE]

Without SHARDS: synthetic traces of eight teachers. The bare chains are `MapDataset.mix` of one shuffled, repeated
source a teacher, reading threads, `FirstFitPackIterDataset`, `batch`, on the same shards: once with the tokens alone,
once with the fields of a training batch. Seconds are CPU seconds of the process, so other programs and waiting do not
count; tokens are those in the batches, without padding. Each round measures every chain once.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import numpy as np

from mixdistill.data.corpus import Corpus, open_corpus
from mixdistill.data.mixture import Mixture
from mixdistill.data.pipeline import NUM_THREADS, Pipeline
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import write_shards
from mixdistill.traces.tokenizer import content_ids, word_level
from mixdistill.traces.trace import Step, Trace


class Pool:
    """The eligible traces of one teacher as a grain source, decoded."""

    def __init__(self, corpus: Corpus, teacher_id: int, fields: Callable[[int, int], dict[str, np.ndarray]]):
        self.ids, self.corpus, self.teacher_id, self.fields = corpus.pools[teacher_id], corpus, teacher_id, fields

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.fields(int(self.ids[index]), self.teacher_id)


def tokens_alone(corpus: Corpus) -> Callable[[int, int], dict[str, np.ndarray]]:
    """The least that a packed batch can hold."""

    def fields(trace_id: int, teacher_id: int) -> dict[str, np.ndarray]:
        folder, index = corpus.locate(trace_id)
        return {"tokens": corpus.shards[folder].arrays(index).tokens[:-1]}

    return fields


def training_fields(corpus: Corpus) -> Callable[[int, int], dict[str, np.ndarray]]:
    """What a training batch of mixdistill holds besides segments and positions."""
    content = content_ids(corpus.shards[0].tokenizer)

    def fields(trace_id: int, teacher_id: int) -> dict[str, np.ndarray]:
        folder, index = corpus.locate(trace_id)
        trace = corpus.shards[folder].arrays(index)
        size = len(trace.tokens) - 1
        valid = np.arange(1, size + 1) >= trace.num_prompt
        return {
            "tokens": trace.tokens[:-1],
            "target": trace.tokens[1:],
            "valid": valid,
            "step_id": trace.step_id[1:],
            "content": content[trace.tokens[1:]] & valid,
            "teacher_id": np.full(size, teacher_id, np.int32),
            "trace_id": np.full(size, trace_id, np.int32),
            "teacher_logprob": np.full(size, np.nan, np.float32) if trace.logprobs is None else trace.logprobs[1:],
        }

    return fields


def bare(corpus: Corpus, mixture: Mixture, make_fields: Callable) -> Iterator[np.ndarray]:
    """Batches of the bare chain; segment ids."""
    fields = make_fields(corpus)
    present = [k for k, pool in enumerate(corpus.pools) if len(pool)]
    sources = [grain.MapDataset.source(Pool(corpus, k, fields)).seed(k).shuffle().repeat() for k in present]
    mixed = grain.MapDataset.mix(sources, weights=[len(corpus.pools[k]) for k in present])
    rows = mixed.to_iter_dataset(grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=128))
    lengths = dict.fromkeys(fields(int(corpus.pools[present[0]][0]), present[0]), mixture.length)
    packed = grain.experimental.FirstFitPackIterDataset(rows, length_struct=lengths, num_packing_bins=mixture.rows)
    return (batch["tokens_segment_ids"] for batch in packed.batch(mixture.rows))


def measure(segments: Iterator[np.ndarray], num_batches: int) -> tuple[float, float]:
    """(tokens a CPU second, fill)."""
    fills, start = [], time.process_time()
    for _ in range(num_batches):
        batch = next(segments)
        fills.append((batch > 0).mean())
    seconds = time.process_time() - start
    return sum(fills) * batch.size / seconds, float(np.mean(fills))


def synthetic(folder: Path, num_traces: int = 4000) -> Path:
    """Shards of traces whose lengths spread as recorded ones do: most 100 to 400 tokens, some 1000."""
    rng, tokenizer = np.random.default_rng(0), word_level([f"w{i}" for i in range(1000)])

    def traces() -> Iterator[EncodedTrace]:
        for i in range(num_traces):
            size = int(np.clip(rng.lognormal(5.3, 0.45), 20, 1000))
            tokens = rng.integers(3, 1003, size, dtype=np.int32)
            step_id = np.maximum(np.arange(size, dtype=np.int32) // 25 - 1, 0)
            num_prompt = int((step_id == 0).sum())
            trace = Trace(f"p{i}", "", (Step("w0 " * size),), "", f"teacher-{i % 8}")
            yield EncodedTrace(tokens, step_id, num_prompt, None, trace)

    write_shards(traces(), folder / "shards", tokenizer=tokenizer)
    return folder / "shards"


def run(shards: Path, rows: int, length: int, rounds: int, num_batches: int) -> dict[str, dict[str, float]]:
    """{chain: {tokens_per_core_second, fill}}, medians over the rounds."""
    mixture = Mixture(shards=str(shards), rows=rows, length=length)
    corpus = open_corpus(mixture)
    with_pipeline = Pipeline(corpus, mixture, 0, 1, 2)
    chains = {
        "mixdistill": (batch["segment_id"] for batch in with_pipeline),
        "bare grain, the same fields": bare(corpus, mixture, training_fields),
        "bare grain, tokens alone": bare(corpus, mixture, tokens_alone),
    }
    for chain in chains.values():
        measure(chain, 3)  # opens files, fills buffers
    found = {name: [] for name in chains}
    for _ in range(rounds):
        for name, chain in chains.items():
            found[name].append(measure(chain, num_batches))
    with_pipeline.close()
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in found.items()
    }
    return {name: {"tokens_per_core_second": rate, "fill": fill} for name, (rate, fill) in medians.items()}


def main() -> None:
    """Prints a table in markdown, and JSON to stdout or a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=40, help="in each measurement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = args.shards or synthetic(Path(folder))
        table = run(shards, args.rows, args.length, args.rounds, args.batches)
    own = table["mixdistill"]["tokens_per_core_second"]
    print("| chain | tokens / s a core | fill | mixdistill is |\n|---|---:|---:|---:|")
    for name, row in table.items():
        ratio = own / row["tokens_per_core_second"]
        print(f"| {name} | {row['tokens_per_core_second']:,.0f} | {row['fill']:.3f} | {ratio:.2f} x |")
    text = json.dumps({"rows": args.rows, "length": args.length, "chains": table})
    print(text) if args.json is None else args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
