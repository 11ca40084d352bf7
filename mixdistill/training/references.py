"""Trained students as teachers of rollouts: what they say of the tokens that the student drew."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from mixdistill.data.corpus import Corpus
from mixdistill.errors import UserError
from mixdistill.generation.rollouts import Drawn
from mixdistill.signals.vocabulary import vocabulary_pass
from mixdistill.students.student import batch_of
from mixdistill.training.workdir import Trained, open_trained

ANY = "*"  # the reference of prompts whose teacher has none of its own


class References:
    """Log-probabilities of drawn tokens under frozen students, one for each prompt's teacher: never a blend."""

    def __init__(self, workdirs: Mapping[str, str], corpus: Corpus):
        for name in workdirs:
            if name != ANY and name not in corpus.teachers:
                raise UserError(f"a reference for teacher {name!r}; known: {', '.join((*corpus.teachers, ANY))}")
        self._corpus = corpus
        self._trained = {name: open_trained(Path(path)) for name, path in workdirs.items()}
        wanted = corpus.shards[0].manifest["tokenizer"]
        for name, trained in self._trained.items():
            if trained.identity.tokenizer != wanted:
                raise UserError(
                    f"the reference {workdirs[name]} has tokenizer {trained.identity.tokenizer[:12]}, the shards "
                    f"{corpus.shards[0].path} have {wanted[:12]}; their tokens mean different things"
                )
        self._score = {name: jax.jit(_scorer(trained)) for name, trained in self._trained.items()}

    def logprobs(self, drawn: Drawn) -> list[np.ndarray] | None:
        """float32, one value a completion token, for each rollout; None without references. Raises `UserError` for a
        prompt whose teacher has no reference."""
        if not self._trained:
            return None
        names = [self._name(int(trace_id)) for trace_id in drawn.trace_id]
        width = max(len(p) + len(s.tokens) for p, s in zip(drawn.prompts, drawn.completions, strict=True))
        width = -(-width // 32) * 32  # few shapes are compiled
        rows = np.zeros((len(names), width), np.int32)
        for row, (prompt, said) in zip(rows, zip(drawn.prompts, drawn.completions, strict=True), strict=True):
            row[: len(prompt) + len(said.tokens)] = [*prompt, *said.tokens]
        scored = {name: np.asarray(self._score[name](self._trained[name].params, rows)) for name in set(names)}
        return [
            scored[name][row, len(prompt) - 1 : len(prompt) - 1 + len(said.tokens)]
            for row, (name, prompt, said) in enumerate(zip(names, drawn.prompts, drawn.completions, strict=True))
        ]

    def _name(self, trace_id: int) -> str:
        teacher = self._corpus.teachers[self._corpus.teacher[trace_id]]
        name = teacher if teacher in self._trained else ANY
        if name not in self._trained:
            raise UserError(f"no reference answers for teacher {teacher!r}; give one for it, or one named {ANY!r}")
        return name


def _scorer(trained: Trained):
    student = trained.student

    def score(params, tokens):
        """[B, T - 1]: log-probability of each token after the first, nats."""
        hidden = student.hidden(params, batch_of(tokens[:, :-1]))
        stats = vocabulary_pass(
            hidden,
            student.unembed(params),
            tokens[:, 1:, None],
            top_k=0,
            soft_cap=student.soft_cap,
            layout=student.unembed_layout,
        )
        return stats.logit[..., 0] - stats.lse

    return score
