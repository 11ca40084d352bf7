"""One round of rollouts: prompts, whoever answers them, rewards, and what references say."""

import numpy as np
from jax.sharding import Mesh

from mixdistill.data.corpus import Corpus
from mixdistill.generation.drawn import Drawn
from mixdistill.generation.rewards import Rewards, weighted_sum
from mixdistill.generation.rollouts import Rollouts
from mixdistill.generation.sampler import Generated
from mixdistill.mesh import Rules
from mixdistill.students.student import Params, Student
from mixdistill.traces.record import EncodedTrace
from mixdistill.training.answering import Limits, Notes, by_sampler, by_server
from mixdistill.training.asks import Ask, prompt_of, read_trace, recorded
from mixdistill.training.judging import judged, rollout_of
from mixdistill.training.probes import Probes
from mixdistill.training.references import References


class Drawing:
    """Turns asks into completions with rewards. Nothing that it holds changes what it draws."""

    def __init__(self, source: Rollouts, corpus: Corpus, student: Student, itself: int, mesh: Mesh, rules: Rules):
        self._source, self._corpus, self._itself = source, corpus, itself
        tokenizer = corpus.shards[0].tokenizer
        limits = Limits(source.max_prompt, source.max_new, source.policy, tokenizer.eos_id)
        self._answer = (
            by_server(source.server, student.vocab_size, limits)
            if source.server
            else by_sampler(student, limits, mesh, rules)
        )
        teaching = source.teaching
        self._references = References(teaching, corpus, student, mesh, rules) if teaching else None
        probing = teaching and teaching.probes and self._references
        self._probes = Probes(source, self._references, mesh, rules) if probing and self._references else None

    def own(self, batch: int) -> bool:
        """Whether this batch holds the student's completions, and not the recorded ones (GKD's lambda)."""
        share = self._source.teaching.own_share if self._source.teaching else 1.0
        return bool(np.random.default_rng((self._source.seed, batch, 0)).random() < share)

    def round(self, params: Params, asks: list[Ask], number: tuple[int, int], train_step: int) -> tuple[Drawn, Notes]:
        """`samples` completions of each ask, and what is noted of the server. `number` is that of the batch and of the
        round in it."""
        traces = [read_trace(self._corpus, ask.trace_id) for ask in asks]
        prompts = [prompt_of(trace, ask) for trace, ask in zip(traces, asks, strict=True)]
        pairs = [pair for pair in zip(asks, traces, strict=True) for _ in range(self._source.samples)]
        prompts = [prompt for prompt in prompts for _ in range(self._source.samples)]
        trace_id = np.array([ask.trace_id for ask, _ in pairs], np.int32)
        distil = self._distil(asks, traces)
        if not self.own(number[0]):
            return self._recorded(pairs, prompts, trace_id, distil), {}
        seed = int(np.random.SeedSequence([self._source.seed, *number]).generate_state(1)[0]) >> 1
        answered = self._answer(params, prompts, self._most(pairs), seed, train_step)
        drawn = Drawn(
            trace_id,
            np.full(len(pairs), self._itself, np.int32),
            prompts,
            answered.completions,
            self._rewards(pairs, answered.completions),
            answered.drawn_at,
            distil,
            answered.num_faults,
        )
        return drawn, answered.notes

    def with_opinions(self, drawn: Drawn, params: Params) -> Drawn:
        """With what each prompt's reference says, if there are references."""
        if self._references is None:
            return drawn
        return drawn._replace(opinions=self._references.opinions(drawn, params))

    def cost_of_opinions(self, drawn: Drawn) -> float:
        """FLOPs of `with_opinions`."""
        return 0.0 if self._references is None else self._references.cost(drawn)

    def _distil(self, asks: list[Ask], traces: list[EncodedTrace]) -> np.ndarray:
        if self._probes is not None:
            followed = self._probes.trusted(asks, traces)
        else:
            followed = np.full(len(asks), self._references is not None)
        return np.repeat(followed.astype(np.float32), self._source.samples)

    def _most(self, pairs: list[tuple[Ask, EncodedTrace]]) -> np.ndarray:
        """Tokens of each completion at most. A step without thinking is as long as the recorded one: text does not say
        where steps end."""
        if self._source.instances != "steps":
            return np.full(len(pairs), self._source.max_new)
        spans = [recorded(trace, ask) for ask, trace in pairs]
        return np.minimum([span.stop - span.start for span in spans], self._source.max_new)

    def _rewards(self, pairs: list[tuple[Ask, EncodedTrace]], completions: list[Generated]) -> Rewards:
        tokenizer = self._corpus.shards[0].tokenizer
        rollouts = [rollout_of(*pair, said, tokenizer) for pair, said in zip(pairs, completions, strict=True)]
        return weighted_sum(judged(self._source.judges, rollouts), self._source.weights)

    def _recorded(self, pairs, prompts: list[list[int]], trace_id: np.ndarray, distil: np.ndarray) -> Drawn:
        """The traces' own completions in place of drawn ones; no judge is asked."""
        completions = [_as_drawn(trace, recorded(trace, ask), self._source.max_new) for ask, trace in pairs]
        nothing = np.zeros(len(pairs), np.float32)
        rewards = Rewards(nothing, dict.fromkeys(self._source.judges, nothing))
        teacher_id = self._corpus.teacher[trace_id]
        drawn_at = np.full(len(pairs), -1, np.int32)
        return Drawn(trace_id, teacher_id, prompts, completions, rewards, drawn_at, distil)


def _as_drawn(trace: EncodedTrace, span: slice, max_new: int) -> Generated:
    span = slice(span.start, min(span.stop, span.start + max_new))
    tokens = trace.tokens[span]
    logprobs = np.full(len(tokens), np.nan, np.float32) if trace.logprobs is None else trace.logprobs[span]
    return Generated(tokens, logprobs, span.stop == len(trace.tokens), np.zeros(0, np.float32))
