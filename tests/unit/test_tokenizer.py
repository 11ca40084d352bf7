import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Inner

from mixdistill.errors import UserError
from mixdistill.traces.tokenizer import Tokenizer, content_ids, train_bpe, word_level

TEXTS = ["maybe we check 12 + 30 = 42", "Wait, hmm. the answer is seven", "actually the answer might be x_1"] * 4
BPE = train_bpe(TEXTS, 400)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_bpe_returns_every_text(text):
    assert BPE.decode(BPE.encode(text)) == text


@given(st.text(st.sampled_from("<eospad> ")))
def test_no_text_becomes_a_control_token(text):
    assert BPE.special_ids.isdisjoint(BPE.encode(text))


def test_lone_surrogate_is_the_users_error():
    with pytest.raises(UserError, match="surrogate"):
        BPE.encode("a\ud800")


def test_training_is_the_same_in_another_process():
    code = f"from mixdistill.traces.tokenizer import train_bpe; print(train_bpe({TEXTS!r}, 400).hash)"
    hashes = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    }
    assert hashes == {BPE.hash}


def test_too_small_a_vocabulary():
    with pytest.raises(UserError, match="at least 258"):
        train_bpe(TEXTS, 257)


@pytest.mark.parametrize("tokenizer", [BPE, word_level(["a", "b"])], ids=["bpe", "words"])
def test_saved_and_pickled_are_equal(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    tokenizer.save(tmp_path / "alone.json")
    others = Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "alone.json"), pickle.loads(pickle.dumps(tokenizer))
    for other in others:
        assert other.hash == tokenizer.hash
        assert other.encode("a <eos> b") == tokenizer.encode("a <eos> b")
        assert (other.eos_id, other.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)


def foreign(*special: str) -> Inner:
    """A tokenizer of somebody else, with the settings that must not reach us: padding and truncation."""
    inner = Inner(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(special))
    inner.enable_truncation(2)
    inner.enable_padding(length=8)
    return inner


def test_neither_cuts_nor_pads():
    assert Tokenizer(foreign("</s>")).encode("a b a b") == [1, 2, 1, 2]


def test_config_beside_it_names_the_end_token(tmp_path):
    foreign("</s>", "<done>").save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).eos == "</s>"
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<done>"}, "chat_template": "x"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos, tokenizer.template) == ("<done>", "x")
    assert tokenizer.hash != Tokenizer.load(tmp_path, eos="</s>").hash
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).hash == tokenizer.hash


@pytest.mark.parametrize(
    ("special", "eos", "message"),
    [(("<x>",), None, "--eos: <x>"), (("</s>",), "</z>", "did you mean '</s>'")],
)
def test_end_token_that_is_not_there(special, eos, message):
    with pytest.raises(UserError, match=message):
        Tokenizer(foreign(*special), eos=eos)


@pytest.mark.parametrize(("text", "message"), [(None, "no tokenizer at"), ("{}", "is not a tokenizer.json")])
def test_bad_file(tmp_path, text, message):
    path = tmp_path / "tokenizer.json"
    if text:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(path)


def test_begin_token_of_the_tokenizer_itself():
    inner = foreign("</s>", "<s>")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 4), ("</s>", 3)])
    tokenizer = Tokenizer(inner)
    assert (tokenizer.prefix_ids, tokenizer.bos) == ((4,), "<s>")
    assert tokenizer.encode("a") == [1]


def test_control_tokens_of_a_template_are_found_with_the_space_that_they_eat():
    inner = foreign("</s>")
    inner.add_special_tokens([AddedToken("<|end|>", rstrip=True)])
    pieces = Tokenizer(inner).split_control("a<|end|>\nb</s>")
    assert pieces == ["a", 4, "b", 3]


def test_vocab_size_is_past_the_largest_id():
    assert Tokenizer(foreign("</s>")).vocab_size == 4


def test_content_tokens():
    words = "7 x seven Maybe check wait, = ( hmm Check."
    tokenizer = word_level(words.split())
    content = content_ids(tokenizer)
    assert content.dtype == np.bool_
    assert content.shape == (tokenizer.vocab_size,)
    assert [tokenizer.inner.id_to_token(int(i)) for i in np.flatnonzero(content)] == ["7", "x", "seven"]


def test_content_tokens_of_byte_pieces():
    content = content_ids(BPE)
    assert content[BPE.encode(" answer")].all()
    assert not content[BPE.encode(" maybe")].any()
    assert not content[BPE.encode(" +")].any()
    assert not content[BPE.eos_id]
