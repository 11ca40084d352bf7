"""What must hold of every encoded trace, for any text, cut into steps anywhere."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixdistill.traces.encode import encode_prompt, encode_trace
from mixdistill.traces.templates import PLAIN, ChatTemplate
from mixdistill.traces.tokenizer import train_bpe
from mixdistill.traces.trace import Step, Trace

BPE = train_bpe(["So we add. Then 12 + 30 = 42.\n\nThe answer is 42. Wait, <eos>\n\n"] * 8, 400)
# Half natural text, whose words are single tokens, so that borders of prompt and steps fall inside tokens.
WORDS = st.sampled_from(
    ["So", " we", " add", ".", " Then", " ", "12", " +", " =", ".\n\n", "\n", "The", " answer", "<eos>"]
)
TEXT = st.one_of(
    st.lists(WORDS, max_size=12).map("".join), st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)


@st.composite
def cut(draw, most: int = 4) -> list[str]:
    """A text, cut anywhere."""
    text = draw(TEXT)
    cuts = [0, *sorted(draw(st.lists(st.integers(0, len(text)), max_size=most))), len(text)]
    return [text[i:j] for i, j in itertools.pairwise(cuts)]


PIECES = cut()
TEMPLATES = st.sampled_from([PLAIN, ChatTemplate("Q<pad>", "\n<eos>A:"), ChatTemplate("<pad>", "\n")])


@given(PIECES, TEMPLATES)
def test_spans(pieces: list[str], template: ChatTemplate):
    prompt, *pieces = [*pieces, ""]
    trace = Trace("p", prompt, tuple(map(Step, pieces)), "", "t")
    tokens, step_id, num_prompt, _, _, _ = encode_trace(BPE, trace, template)
    completion = tokens[num_prompt:-1]
    assert tokens[:num_prompt].tolist() == encode_prompt(BPE, prompt, template)
    assert BPE.decode(completion) == trace.text
    assert BPE.special_ids.isdisjoint(completion.tolist())
    assert tokens[-1] == BPE.eos_id
    assert not step_id[:num_prompt].any()
    assert step_id[-1] == len(pieces)
    assert (np.diff(step_id) >= 0).all()
    assert step_id[num_prompt:].min() >= 1


@given(PIECES)
def test_every_visible_character_is_in_its_step_unless_a_token_straddles(pieces: list[str]):
    """The slow reading of the rule, character by character."""
    text, owner = "".join(pieces), [i for i, piece in enumerate(pieces, start=1) for _ in piece]
    encoded = encode_trace(BPE, Trace("p", "", tuple(map(Step, pieces)), "", "t"))
    for (start, stop), step in zip(BPE.encode_with_offsets(text).offsets, encoded.step_id, strict=False):
        visible = [i for i in range(start, stop) if not text[i].isspace()]
        assert step == owner[visible[0] if visible else start]


@given(PIECES, st.integers(0, 50))
def test_answer_tokens_spell_the_answer(pieces: list[str], number: int):
    answer = str(number)
    trace = Trace("p", "q", (*map(Step, pieces), Step(f" so {answer}."), Step(" Done")), answer, "t")
    encoded = encode_trace(BPE, trace)
    start, stop = encoded.answer
    assert start >= encoded.num_prompt
    assert BPE.decode(encoded.tokens[start:stop]) == answer


def test_empty_completion_has_only_its_end():
    encoded = encode_trace(BPE, Trace("p", "q", (), "", "t"))
    assert encoded.step_id.tolist() == [0, 0]
    assert encoded.tokens[-1] == BPE.eos_id
