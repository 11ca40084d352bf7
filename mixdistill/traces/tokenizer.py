"""Tokenizers: any tokenizer.json, trained ones, and a word-level one for small worlds.

The text of a trace is data. A control token's name that stands in it ("<|im_end|>", "</s>") is encoded as ordinary
text, so no teacher can end a turn. Added tokens that are no control tokens, such as <think> in reasoning models,
are used as the tokenizer's makers intended.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mixdistill.errors import UserError, unknown

END_NAMES = (
    "<eos>",
    "<|eos|>",
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 - DeepSeek writes it with these characters
)
PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|endoftext|>", "<|finetune_right_pad_id|>")
CONFIG = "tokenizer_config.json"

# Words that carry no content: two fillers and the ten epistemic markers ("maybe" and "check" are among both).
FILLERS = frozenset(
    ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check")
)

# Qwen2's split: words with one leading mark, single digits, punctuation with its line ends, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"


class Encoding(NamedTuple):
    """Tokens of one text and the characters [start, stop) that each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """A `tokenizers.Tokenizer` that adds nothing, cuts nothing and takes no control token from the text."""

    def __init__(
        self, inner: tokenizers.Tokenizer, *, eos: str | None = None, pad: str | None = None, template: str = ""
    ):
        """`eos`, `pad`: names of the end and padding tokens; by default the first known name that the vocabulary has.
        `template`: the chat template that came with it, "" if none. Raises `UserError` when there is no end token."""
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self.inner, self.template = inner, template
        end = _first(inner, [eos] if eos else END_NAMES)
        if end is None:
            raise _no_end_token(inner, eos)
        padding = _first(inner, [pad] if pad else PAD_NAMES) or end
        (self.eos, self.eos_id), (self.pad, self.pad_id) = end, padding

    @staticmethod
    def load(path: Path | str, *, eos: str | None = None) -> "Tokenizer":
        """Reads a tokenizer.json or a folder that holds one; takes end token, padding and chat template from a
        tokenizer_config.json beside it, if there is one. Raises `UserError` when it is missing or not readable."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"no tokenizer at {path}; give a tokenizer.json, or make one with `mixdistill tokenizer train`"
            )
        try:
            inner = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise UserError(f"{file} is not a tokenizer.json: {error}") from None
        config = _config(file.with_name(CONFIG))
        template = config.get("chat_template")
        names = {key: _name(config.get(f"{key}_token")) for key in ("eos", "pad")}
        return Tokenizer(
            inner, eos=eos or names["eos"], pad=names["pad"], template=template if isinstance(template, str) else ""
        )

    def save(self, path: Path | str) -> None:
        """Writes tokenizer.json to a folder, with a tokenizer_config.json that names its control tokens; or, where
        `path` ends in .json, that one file."""
        path = Path(path)
        if path.suffix == ".json":
            path.write_bytes(self.to_bytes())
            return
        (path / "tokenizer.json").write_bytes(self.to_bytes())
        config = {"eos_token": self.eos, "pad_token": self.pad}
        config |= {"chat_template": self.template} if self.template else {}
        (path / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def to_bytes(self) -> bytes:
        """The tokenizer.json."""
        return self.inner.to_str().encode()

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of the canonical tokenizer.json with the names of end and padding: equal hashes, equal tokens."""
        whole = {"tokenizer": json.loads(self.inner.to_str()), "eos": self.eos, "pad": self.pad}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def vocab_size(self) -> int:
        """The largest id plus one: what a student's embedding needs."""
        return max(self.inner.get_vocab().values()) + 1

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Control tokens: those that never come from text."""
        added = self.inner.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special) | {self.eos_id, self.pad_id}

    @functools.cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before every text (Llama: the begin token); mostly nothing."""
        encoding = self.inner.encode("0", add_special_tokens=True)
        added = sum(1 for _ in itertools.takewhile(bool, encoding.special_tokens_mask))
        return tuple(encoding.ids[:added])

    @property
    def bos(self) -> str:
        """The name of `prefix_ids`, "" when there are none."""
        return "".join(self.inner.id_to_token(token) or "" for token in self.prefix_ids)

    @functools.cached_property
    def unk_id(self) -> int | None:
        """The token for what the vocabulary cannot say; None for byte-level tokenizers, which can say everything."""
        name = getattr(self.inner.model, "unk_token", None)
        return self.inner.token_to_id(name) if name else json.loads(self.inner.to_str())["model"].get("unk_id")

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`; nothing is added. Raises `UserError` for text with broken Unicode (lone surrogates)."""
        return self.encode_with_offsets(text).ids

    def encode_with_offsets(self, text: str) -> Encoding:
        """`encode`, and where each token stands in `text` (characters)."""
        try:
            encoding = self.inner.encode(text, add_special_tokens=False)
        except TypeError:
            raise UserError("the text is not valid Unicode (it holds a lone surrogate)") from None
        ids = encoding.ids
        if not self.special_ids.isdisjoint(ids):
            # Only vocabularies of whole words or pieces come here: they look a control token's name up like any word.
            ids = [self._as_data(i) for i in ids]
        return Encoding(ids, encoding.offsets)

    def _as_data(self, token: int) -> int:
        if token not in self.special_ids or token == self.unk_id:
            return token
        if self.unk_id is None:
            raise UserError(
                f"the text holds the control token {self.inner.id_to_token(token)!r} and cannot be spelt otherwise"
            )
        return self.unk_id

    def split_control(self, text: str) -> list[int | str]:
        """The control tokens named in `text` (a chat template's, never a trace's), and the text between them."""
        if not text:
            return []
        encoding, pieces, end = self._with_control.encode(text, add_special_tokens=False), [], 0
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self.special_ids:
                pieces += [text[end:start], token]
                end = stop
        return [piece for piece in (*pieces, text[end:]) if piece != ""]

    @functools.cached_property
    def _with_control(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.inner.to_str())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without control tokens."""
        return self.inner.decode(list(map(int, ids)), skip_special_tokens=True)

    def __getstate__(self) -> dict[str, Any]:
        # The library's own pickling forgets encode_special_tokens.
        return {"json": self.inner.to_str(), "eos": self.eos, "pad": self.pad, "template": self.template}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state.pop("json")), **state)

    def __repr__(self) -> str:
        return f"Tokenizer({self.hash[:12]}: {self.vocab_size} tokens, ends with {self.eos!r})"


def content_ids(tokenizer: Tokenizer) -> np.ndarray:
    """bool [V]: tokens that carry content: they hold a letter or digit and are neither control tokens nor fillers."""
    ids = range(tokenizer.vocab_size)
    texts = tokenizer.inner.decode_batch([[i] for i in ids], skip_special_tokens=False)
    return np.array([i not in tokenizer.special_ids and _has_content(text) for i, text in zip(ids, texts, strict=True)])


def _has_content(text: str) -> bool:
    letters = "".join(c for c in text if c.isalnum())
    return bool(letters) and letters.casefold() not in FILLERS


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with Qwen2's word split; the same texts give the same tokenizer. Raises `UserError` when
    `vocab_size` has no room for the 256 bytes and the two control tokens."""
    smallest = 256 + 2
    if vocab_size < smallest:
        raise UserError(f"--vocab-size {vocab_size} is too small; byte-level BPE needs at least {smallest}")
    inner = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((text for text in texts if _is_unicode(text)), trainer)
    return Tokenizer(inner, eos=EOS, pad=PAD)


def word_level(words: Iterable[str]) -> Tokenizer:
    """One token a word of white-space separated text; ids 0, 1, 2 are <pad>, <eos>, <unk>, then the words in order."""
    names = dict.fromkeys((PAD, EOS, UNK, *words))
    inner = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([PAD, EOS, UNK])
    return Tokenizer(inner, eos=EOS, pad=PAD)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first(inner: tokenizers.Tokenizer, names: Sequence[str]) -> tuple[str, int] | None:
    """The first of `names` that the vocabulary has, with its id."""
    ids = ((name, inner.token_to_id(name)) for name in names)
    return next(((name, token) for name, token in ids if token is not None), None)


def _name(token: Any) -> str | None:
    """tokenizer_config.json names a token by a string or by {"content": ...}."""
    return token.get("content") if isinstance(token, dict) else token


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return config if isinstance(config, dict) else {}


def _no_end_token(inner: tokenizers.Tokenizer, given: str | None) -> UserError:
    special = [token.content for token in inner.get_added_tokens_decoder().values() if token.special]
    if given is not None:
        return unknown("end token", given, special)
    return UserError(
        f"the tokenizer has no end token that we know ({', '.join(END_NAMES)}); name one of its own with --eos: "
        f"{', '.join(special) or 'it has no control tokens'}"
    )
