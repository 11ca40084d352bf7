"""Students as teachers of rollouts: what they say of the tokens that the student drew."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mixdistill.data.corpus import Corpus
from mixdistill.data.placement import place, share
from mixdistill.errors import UserError
from mixdistill.generation.drawn import Drawn, Opinion
from mixdistill.generation.sampler import padded
from mixdistill.generation.teaching import ANY, Reference, Teaching
from mixdistill.mesh import Rules, shardings
from mixdistill.signals.vocabulary import vocabulary_pass
from mixdistill.students import flops
from mixdistill.students.student import Params, Student, batch_of, logits
from mixdistill.traces.encode import encode_prompt
from mixdistill.training.asks import read_trace
from mixdistill.training.processes import on_host
from mixdistill.training.workdir import check_run, open_trained

WIDTH = 32  # sequences are padded to a multiple of this, so that few shapes are compiled


class Known(NamedTuple):
    """A reference ready to be asked. `params` None: those of the student, as they are."""

    setting: Reference
    student: Student
    params: Params | None
    score: Callable[[Params, Int[Array, "B T"]], tuple[Array, Array, Array]]


class References:
    """One for each prompt's teacher: never a blend. They lie on the mesh as the student does."""

    def __init__(self, teaching: Teaching, corpus: Corpus, student: Student, mesh: Mesh, rules: Rules):
        check_references(teaching, corpus)
        if teaching.top_k > student.vocab_size:
            raise UserError(f"teaching top_k is {teaching.top_k}; the vocabulary has {student.vocab_size} tokens")
        self.corpus, self._mesh, self._rules = corpus, mesh, rules
        self.known = {
            name: _open(setting, corpus, student, mesh, rules, teaching.top_k)
            for name, setting in teaching.references.items()
        }

    def opinions(self, drawn: Drawn, params: Params) -> list[Opinion]:
        """What each completion's reference says of its tokens; `params` are the student's own."""
        names = np.array([self.name_of(int(trace_id)) for trace_id in drawn.trace_id])
        found: dict[int, Opinion] = {}
        for name in dict.fromkeys(names.tolist()):
            known, rows = self.known[name], np.flatnonzero(names == name)
            pairs = [(int(drawn.trace_id[row]), drawn.prompts[row]) for row in rows]
            prompts = [self.prompt(known, *pair) for pair in pairs]
            said = [drawn.completions[row].tokens.tolist() for row in rows]
            scored = self._score(known, params if known.params is None else known.params, prompts, said)
            found |= dict(zip(rows.tolist(), scored, strict=True))
        return [found[row] for row in range(len(names))]

    def cost(self, drawn: Drawn) -> float:
        """FLOPs of their opinions: a forward pass each, over a prompt as long as the student's."""
        students = [self.known[self.name_of(int(trace_id))].student for trace_id in drawn.trace_id]
        sizes = [len(p) + len(said.tokens) for p, said in zip(drawn.prompts, drawn.completions, strict=True)]
        return sum(flops.forward_of(one, size) for one, size in zip(students, sizes, strict=True))

    def name_of(self, trace_id: int) -> str:
        """Which reference answers for this trace's teacher."""
        teacher = self.corpus.teachers[self.corpus.teacher[trace_id]]
        return teacher if teacher in self.known else ANY

    def prompt(self, known: Known, trace_id: int, prompt: Sequence[int]) -> list[int]:
        """What the reference is given in place of the student's prompt: other words for the problem, the same steps."""
        trace, shards = read_trace(self.corpus, int(trace_id)), self.corpus.shards[0]
        if known.setting.context == "{prompt}":
            return list(prompt)
        asked = encode_prompt(shards.tokenizer, known.setting.asked(trace.trace), shards.template)
        return [*asked, *prompt[trace.num_prompt :]]

    def _score(self, known: Known, params: Params, prompts: list[list[int]], said: list[list[int]]) -> list[Opinion]:
        sequences = [[*before, *after] for before, after in zip(prompts, said, strict=True)]
        rows = padded(sequences, -(-max(map(len, sequences)) // WIDTH) * WIDTH)
        rows = np.pad(rows, ((0, self._extra(len(rows))), (0, 0)))
        index, count = share(self._mesh, self._rules, len(rows))
        own = rows[index * len(rows) // count : (index + 1) * len(rows) // count]
        made = on_host(known.score(params, place({"tokens": own}, self._mesh, self._rules)["tokens"]))
        spans = [slice(len(p) - 1, len(s) - 1) for p, s in zip(prompts, sequences, strict=True)]
        return [Opinion(*(array[row, span] for array in made)) for row, span in enumerate(spans)]

    def _extra(self, rows: int) -> int:
        """Rows to add: up to a power of two, and a multiple of the devices that share them."""
        parts = math.prod(self._mesh.shape[axis] for axis in self._rules.mesh_axes("batch"))
        return -(-(1 << (rows - 1).bit_length()) // parts) * parts - rows


def check_references(teaching: Teaching, corpus: Corpus) -> None:
    """Raises `UserError` for a teacher without a reference, a reference without a teacher, and a folder without a
    run: all that can be told without loading weights."""
    for name, setting in teaching.references.items():
        if name != ANY and name not in corpus.teachers:
            raise UserError(f"a reference for teacher {name!r}; known: {', '.join((*corpus.teachers, ANY))}")
        if setting.workdir is not None:
            check_run(Path(setting.workdir))
    for teacher, pool in zip(corpus.teachers, corpus.pools, strict=True):
        if len(pool) and not {teacher, ANY} & set(teaching.references):
            raise UserError(f"no reference answers for teacher {teacher!r}; give one for it, or one named {ANY!r}")


def _open(setting: Reference, corpus: Corpus, student: Student, mesh: Mesh, rules: Rules, top_k: int) -> Known:
    if setting.workdir is None:
        return Known(setting, student, None, jax.jit(_scorer(student, mesh, rules, top_k)))
    trained = open_trained(Path(setting.workdir))
    wanted = corpus.shards[0].manifest["tokenizer"]
    if trained.identity.tokenizer != wanted:
        raise UserError(
            f"the reference {setting.workdir} has tokenizer {trained.identity.tokenizer[:12]}, the shards "
            f"{corpus.shards[0].path} have {wanted[:12]}; their tokens mean different things"
        )
    params = jax.device_put(jax.device_get(trained.params), shardings(mesh, rules, trained.student.axes))
    return Known(setting, trained.student, params, jax.jit(_scorer(trained.student, mesh, rules, top_k)))


def _scorer(student: Student, mesh: Mesh, rules: Rules, top_k: int):
    split = {"mesh": mesh, "token_axes": rules.mesh_axes("batch")} if mesh.size > 1 else {}

    def most_likely(params: Params, hidden: Float[Array, "B T D"]) -> tuple[Array, Array]:
        def of_place(hidden: Float[Array, "B D"]) -> tuple[Array, Array]:
            values, ids = jax.lax.top_k(jax.nn.log_softmax(logits(student, params, hidden)), top_k)
            return values, ids

        values, ids = jax.lax.map(of_place, jnp.moveaxis(hidden, 1, 0))  # a place at a time: only [B, V] is held
        return jnp.moveaxis(values, 0, 1), jnp.moveaxis(ids, 0, 1)

    def score(params: Params, tokens: Int[Array, "B T"]) -> tuple[Array, Array, Array]:
        """Of each token after the first: its log-probability in nats, the `top_k` ids and their log-probabilities."""
        hidden = student.hidden(params, batch_of(tokens[:, :-1]))
        stats = vocabulary_pass(
            hidden,
            student.unembed(params),
            tokens[:, 1:, None],
            top_k=0,
            soft_cap=student.soft_cap,
            layout=student.unembed_layout,
            **split,
        )
        label = stats.logit[..., 0] - stats.lse
        if not top_k:
            return label, jnp.zeros((*label.shape, 0), jnp.int32), jnp.zeros((*label.shape, 0), jnp.float32)
        values, ids = most_likely(params, hidden)
        return label, ids.astype(jnp.int32), values

    return score
