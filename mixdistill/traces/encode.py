"""Trace -> tokens, with the exact span of the prompt, of every reasoning step and of the answer.

Two rules decide what the tokens are and whose they are.

1. *Prompt and completion.* The prompt's tokens are those that generation will be given, so no token may straddle its
   end. Where the tokens of the whole text keep to that, they are used; otherwise the completion is encoded alone.
2. *Steps.* The completion is encoded whole, as the student would write it. A token belongs to the step that holds its
   first character that is not white space (" Next" after "Done. " opens the next step); a token of white space alone
   belongs to the step that holds its first character. The end token belongs to the last step.
"""

import re

import numpy as np

from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.templates import PLAIN, ChatTemplate
from mixdistill.traces.tokenizer import Encoding, Tokenizer
from mixdistill.traces.trace import Step, Trace


def encode_trace(tokenizer: Tokenizer, trace: Trace, template: ChatTemplate = PLAIN) -> EncodedTrace:
    """Prompt, completion and end token. The teacher's log-probabilities are kept when every step that has them has one
    for each of its tokens here, that is, when the teacher's tokenizer is this one. Raises `UserError` for broken
    Unicode."""
    prompt, tail = _prompt(tokenizer, trace.prompt, template)
    last, completion = _encode_after(tokenizer, tail, trace.text)
    prompt += last
    step_id = step_ids(trace.text, trace.steps, completion.offsets)
    tokens = np.array([*prompt, *completion.ids, tokenizer.eos_id], np.int32)
    ids = np.concatenate([np.zeros(len(prompt), np.int32), step_id, np.array([len(trace.steps)], np.int32)])
    logprobs = _logprobs(trace.steps, step_id, len(prompt))
    start, stop = answer_span(trace.text, trace.answer, completion.offsets)
    answer = (len(prompt) + start, len(prompt) + stop) if stop > start else (0, 0)
    return EncodedTrace(tokens, ids, len(prompt), logprobs, trace, answer)


def encode_prompt(tokenizer: Tokenizer, prompt: str, template: ChatTemplate = PLAIN) -> list[int]:
    """What generation is given: exactly the first `num_prompt` tokens of any trace with this prompt."""
    ids, tail = _prompt(tokenizer, prompt, template)
    return ids + tokenizer.encode(tail)


def step_ids(text: str, steps: tuple[Step, ...], offsets: list[tuple[int, int]]) -> np.ndarray:
    """int32 [tokens]: the step, from 1, of the token at each of `offsets` (characters of `text`); rule 2 above."""
    if not offsets:
        return np.zeros(0, np.int32)
    ends = np.cumsum([len(step.text) for step in steps])
    starts, stops = np.array(offsets).T
    owner = np.searchsorted(ends, starts, side="right")
    straddles = owner != np.searchsorted(ends, np.maximum(stops - 1, starts), side="right")
    for i in np.flatnonzero(straddles):
        token = text[starts[i] : stops[i]]
        if token.strip():
            owner[i] = np.searchsorted(ends, starts[i] + len(token) - len(token.lstrip()), side="right")
    return np.minimum(owner + 1, len(steps)).astype(np.int32)


def answer_span(text: str, answer: str, offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """Tokens [start, stop) of the last mention of `answer` in `text`, as a whole word or number; (0, 0) if none."""
    if not answer:
        return 0, 0
    # "5" is not mentioned in "15", "5.2", "1,005" or "x5".
    mentions = list(re.finditer(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?![.,]?\d)(?!\w)", text))
    if not mentions:
        return 0, 0
    first, last = mentions[-1].span()
    inside = [i for i, (start, stop) in enumerate(offsets) if start < last and stop > first]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _prompt(tokenizer: Tokenizer, prompt: str, template: ChatTemplate) -> tuple[list[int], str]:
    """The tokens up to the last control token before the completion, and the text after it (not yet encoded, because
    it may stand in one run with the completion)."""
    # A template that writes nothing in front leaves room for what the tokenizer itself puts there.
    ids = [] if template.before else list(tokenizer.prefix_ids)
    text = ""
    for piece in (*tokenizer.split_control(template.before), prompt, *tokenizer.split_control(template.after)):
        if isinstance(piece, str):
            text += piece
        else:
            ids += [*tokenizer.encode(text), piece]
            text = ""
    return ids, text


def _encode_after(tokenizer: Tokenizer, tail: str, text: str) -> tuple[list[int], Encoding]:
    """Tokens of `tail` as if alone, and of `text` after it; rule 1 above. Offsets are characters of `text`."""
    if not tail:
        return [], tokenizer.encode_with_offsets(text)
    alone, whole = tokenizer.encode(tail), tokenizer.encode_with_offsets(tail + text)
    end, border = len(alone), len(tail)
    before, after = whole.offsets[:end], whole.offsets[end:]
    straddles = any(stop > border for _, stop in before[-1:]) or any(start < border for start, _ in after[:1])
    if whole.ids[:end] != alone or straddles:
        return alone, tokenizer.encode_with_offsets(text)
    return alone, Encoding(whole.ids[end:], [(start - border, stop - border) for start, stop in after])


def _logprobs(steps: tuple[Step, ...], step_id: np.ndarray, num_prompt: int) -> np.ndarray | None:
    """float32 [n], NaN where not recorded; None when nothing is, or when the counts show another tokenizer."""
    if not any(step.token_logprobs for step in steps):
        return None
    values = np.full(num_prompt + len(step_id) + 1, np.nan, np.float32)
    for number, step in enumerate(steps, start=1):
        if not step.token_logprobs:
            continue
        (places,) = np.nonzero(step_id == number)
        has_end = number == len(steps) and len(step.token_logprobs) == len(places) + 1
        if not has_end and len(step.token_logprobs) != len(places):
            return None
        places = np.append(places, len(step_id)) if has_end else places
        values[num_prompt + places] = step.token_logprobs
    return values
