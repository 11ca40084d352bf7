"""What a student can be asked about recorded traces: problems, or the next step after those before it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mixdistill.data.corpus import Corpus
from mixdistill.errors import UserError
from mixdistill.generation.rollouts import Rollouts
from mixdistill.traces.record import EncodedTrace


class Ask(NamedTuple):
    """A recorded trace's problem (step 0), or its step after those before it."""

    trace_id: int
    step: int


def find_asks(source: Rollouts, corpus: Corpus) -> list[Ask]:
    """All that can be asked: problems once each, whoever solved them; or of each trace every step but the last, which
    gives the answer (SRL's N - 1 instances of N steps, arXiv:2510.25992). Raises `UserError` when nothing fits."""
    pool = np.sort(np.concatenate([*corpus.pools, np.zeros(0, np.int64)])).astype(int)
    asks = list(_problems(pool, corpus) if source.instances == "problems" else _steps(pool, corpus, source.max_prompt))
    num_prompt = np.concatenate([shards.index["num_prompt"] for shards in corpus.shards])
    asks = [ask for ask in asks if num_prompt[ask.trace_id] <= source.max_prompt]
    if not asks:
        raise UserError(
            f"{', '.join(source.asked.folders)} hold no {source.instances} to ask for whose prompt fits in "
            f"max_prompt={source.max_prompt} tokens"
        )
    return asks


def read_trace(corpus: Corpus, trace_id: int) -> EncodedTrace:
    """The trace of this number."""
    folder, index = corpus.locate(trace_id)
    return corpus.shards[folder][index]


def prompt_of(trace: EncodedTrace, ask: Ask) -> list[int]:
    """Tokens that the student is given: the problem, and the steps before the one that is asked for."""
    end = trace.num_prompt if ask.step == 0 else int(np.searchsorted(trace.step_id, ask.step))
    return trace.tokens[:end].tolist()


def recorded(trace: EncodedTrace, ask: Ask) -> slice:
    """The tokens that the recorded trace has in answer."""
    if ask.step == 0:
        return slice(trace.num_prompt, len(trace.tokens))
    first, last = (int(np.searchsorted(trace.step_id, step)) for step in (ask.step, ask.step + 1))
    return slice(first, last)


def _problems(pool: np.ndarray, corpus: Corpus) -> Iterator[Ask]:
    seen = set()
    for trace_id in map(int, pool):
        folder, index = corpus.locate(trace_id)
        problem = (folder, int(corpus.shards[folder].index["problem"][index]))
        if problem not in seen:
            seen.add(problem)
            yield Ask(trace_id, 0)


def _steps(pool: np.ndarray, corpus: Corpus, max_prompt: int) -> Iterator[Ask]:
    for trace_id in map(int, pool):
        folder, index = corpus.locate(trace_id)
        step_id = corpus.shards[folder].arrays(index).step_id
        first = np.searchsorted(step_id, np.arange(1, step_id[-1]))
        yield from (Ask(trace_id, step) for step, start in enumerate(first, start=1) if start <= max_prompt)
