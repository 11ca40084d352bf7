"""Does the student's tokenizer fit what the teachers write? Unknown tokens, control tokens written out as text, think
tags cut in pieces, tokens per character."""

import re
from typing import NamedTuple

from mixdistill.traces.tokenizer import Tokenizer

THINK_TAGS = ("<think>", "</think>")
# What chat templates put between turns. In the text of a trace it is a template's leftover.
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<[｜][^<>\s]{1,40}[｜]>")  # noqa: RUF001


class TokenizerFit(NamedTuple):
    """What is true of a tokenizer, whatever the traces."""

    eos: str
    split_think_tags: tuple[str, ...]  # those that it cuts into several tokens
    unknown: str | None  # the token that it writes for what it cannot say, None: it can say everything


def tokenizer_fit(tokenizer: Tokenizer) -> TokenizerFit:
    """Reads the tokenizer alone."""
    split = tuple(tag for tag in THINK_TAGS if len(tokenizer.encode(tag)) != 1)
    unknown = None if tokenizer.unk_id is None else tokenizer.inner.id_to_token(tokenizer.unk_id)
    return TokenizerFit(tokenizer.eos, split, unknown)


def control_tokens_in(text: str) -> list[str]:
    """Chat-template tokens that stand in a completion as text, each once, in order."""
    return list(dict.fromkeys(_CONTROL.findall(text)))
