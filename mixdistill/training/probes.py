"""Whether a prompt's teacher can be trusted with it: verified answers of its own (TGOPD-like, arXiv:2609.02998)."""

import numpy as np
from jax.sharding import Mesh

from mixdistill.data.placement import place, share
from mixdistill.generation.rollouts import Rollouts
from mixdistill.generation.sampler import generated, padded, sample
from mixdistill.mesh import Rules
from mixdistill.traces.record import EncodedTrace
from mixdistill.training.asks import Ask, prompt_of
from mixdistill.training.judging import judged, rollout_of
from mixdistill.training.processes import on_host
from mixdistill.training.references import Known, References


class Probes:
    """A frozen teacher answers a problem the same whenever it is asked, so each problem is probed once in a process."""

    def __init__(self, source: Rollouts, references: References, mesh: Mesh, rules: Rules):
        assert source.teaching
        assert source.verifier
        self._source, self._references, self._mesh, self._rules = source, references, mesh, rules
        self._count, self._verifier = source.teaching.probes, source.judges[source.verifier]
        self._least = source.teaching.trusted * source.teaching.probes - 1e-9
        self._right: dict[Ask, float] = {}

    def trusted(self, asks: list[Ask], traces: list[EncodedTrace]) -> np.ndarray:
        """bool [n]: enough of the probes of each prompt were found right; an unverified one was not."""
        unknown = [pair for pair in zip(asks, traces, strict=True) if pair[0] not in self._right]
        by_name: dict[str, list[tuple[Ask, EncodedTrace]]] = {}
        for ask, trace in dict(unknown).items():
            by_name.setdefault(self._references.name_of(ask.trace_id), []).append((ask, trace))
        for name, pairs in by_name.items():
            self._probe(self._references.known[name], pairs, len(asks))
        return np.array([self._right[ask] >= self._least for ask in asks])

    def _probe(self, known: Known, pairs: list[tuple[Ask, EncodedTrace]], num_prompts: int) -> None:
        # As many prompts in every call, so that one shape is compiled.
        some = [pairs[i % len(pairs)] for i in range(num_prompts) for _ in range(self._count)]
        prompts = [self._references.prompt(known, ask.trace_id, prompt_of(trace, ask)) for ask, trace in some]
        # A probe draws by the number of its problem, whatever else is in the batch.
        rows = [ask.trace_id * self._count + i % self._count for i, (ask, _) in enumerate(some)]
        said = self._complete(known, prompts, np.array(rows, np.int64).astype(np.uint32))
        shards = self._references.corpus.shards[0]
        rollouts = [rollout_of(ask, trace, one, shards.tokenizer) for (ask, trace), one in zip(some, said, strict=True)]
        right = judged({"probe": self._verifier}, rollouts)["probe"].reshape(num_prompts, self._count)
        self._right |= {some[i * self._count][0]: float(np.nansum(right[i])) for i in range(num_prompts)}

    def _complete(self, known: Known, prompts: list[list[int]], rows: np.ndarray):
        source, eos_id = self._source, self._references.corpus.shards[0].tokenizer.eos_id
        width = -(-max(map(len, prompts)) // 32) * 32
        index, count = share(self._mesh, self._rules, len(prompts))
        own = slice(index * len(prompts) // count, (index + 1) * len(prompts) // count)
        lengths = np.array(list(map(len, prompts)), np.int32)
        local = {"tokens": padded(prompts, width)[own], "lengths": lengths[own], "rows": rows[own]}
        asked = place(local, self._mesh, self._rules)
        drawing = {"max_new": source.max_new, "eos_id": eos_id, "policy": source.policy, "seed": source.seed}
        assert known.params is not None
        made = sample(known.student, known.params, asked["tokens"], asked["lengths"], rows=asked["rows"], **drawing)
        found = on_host(made)
        return [generated(found, row, eos_id) for row in range(len(prompts))]
