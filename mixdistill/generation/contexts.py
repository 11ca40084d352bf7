"""Contexts: what a completion, or its prompt, is scored after. Each costs a forward of its own.

name      scored       after                                      fields
full      completion   its prompt                                 label_logprob rank entropy confidence top1_logprob
topk-K    completion   its prompt                                 topk_id topk_logprob (K numbers a token)
                                                                  topk_tail_logprob
alone     completion   the start token: IFD's denominator         label_logprob
local-W   completion   the W reasoning steps before its own       label_logprob (LALP)
prompt    prompt       the start token: r-IFD's denominator       label_logprob
reverse   prompt       the completion and a question: r-IFD       label_logprob
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mixdistill.data.sequences import Scored
from mixdistill.errors import UserError
from mixdistill.traces.record import EncodedTrace

ASK = "Which instruction does this text answer?\n\n{}\n\nInstruction: "  # around a completion, for r-IFD


@dataclasses.dataclass(frozen=True)
class Context:
    """What is run for each trace, and what is kept of it. `sequences` gives, for one trace, the sequences whose scored
    tokens, one after the other, are its entries in the ledger; the cost is one column a token of each."""

    name: str
    sequences: Callable[[EncodedTrace], list[Scored]]
    top_k: int = 0  # keep ids and log-probabilities of so many tokens
    label_only: bool = True


def full() -> Context:
    """The completion after its prompt."""
    return Context("full", lambda t: [Scored(t.tokens, t.num_prompt)], label_only=False)


def topk(count: int) -> Context:
    """As `full`; the `count` most likely tokens and their log-probabilities."""
    if count < 1:
        raise UserError(f"the {count} most likely tokens; it takes at least 1")
    return Context(f"topk-{count}", lambda t: [Scored(t.tokens, t.num_prompt)], top_k=count)


def alone(start: Sequence[int]) -> Context:
    """The completion after the start tokens alone."""
    return Context("alone", lambda t: [_after(start, t.tokens[t.num_prompt :])])


def local(window: int) -> Context:
    """Each reasoning step after the `window` steps before it; the prompt counts as the step before the first."""
    if window < 1:
        raise UserError(f"a local context of {window} steps; it needs at least 1")
    return Context(f"local-{window}", lambda t: list(_windows(t, window)))


def prompt(start: Sequence[int], encode: Callable[[str], Sequence[int]]) -> Context:
    """The prompt's text after the start tokens alone."""
    return Context("prompt", lambda t: [_after(start, encode(t.trace.prompt))])


def reverse(start: Sequence[int], encode: Callable[[str], Sequence[int]]) -> Context:
    """The prompt's text after the completion's, with a question between them."""
    return Context("reverse", lambda t: [_after([*start, *encode(ASK.format(t.trace.text))], encode(t.trace.prompt))])


def _after(before: Sequence[int], tokens: Sequence[int] | np.ndarray) -> Scored:
    return Scored(np.array([*before, *tokens], np.int32), len(before))


def _windows(trace: EncodedTrace, window: int) -> Iterator[Scored]:
    step_id = trace.step_id
    for step in range(1, int(step_id.max(initial=0)) + 1):
        own = np.flatnonzero(step_id == step)
        if len(own):
            first = int(np.searchsorted(step_id, max(step - window, 0)))
            yield Scored(trace.tokens[first : own[-1] + 1], int(own[0]) - first)
