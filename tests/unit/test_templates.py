import time

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from mixdistill.errors import UserError
from mixdistill.traces.templates import PLAIN, ChatTemplate, chat_template, load_template
from mixdistill.traces.tokenizer import Tokenizer

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    inner = Inner(models.WordLevel({"?": 0}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(inner, template=CHATML)


def test_chatml(tokenizer):
    expected = ChatTemplate("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert chat_template(CHATML, tokenizer) == expected
    assert load_template("tokenizer", tokenizer) == expected


def test_from_a_file_and_plain(tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_text("Q: {{ messages[0]['content'] }} A:{{ eos_token }}{{ bos_token }}")
    assert load_template(str(tmp_path / "t.jinja"), tokenizer) == ChatTemplate("Q: ", " A:<|im_end|>")
    assert load_template("plain", None) == PLAIN


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].content }} {{ messages[0].content }}", "2 times"),
        ("{{ 1 }}", "0 times"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}{{ messages[0].content }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError"),
        ("{{ 'a' * 10**10 }}", "memory"),
        ("{{ 'a' * 10**6 }}", "1000000 characters"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("x" * 2**18 + "x", "262145 characters"),
    ],
)
def test_bad_templates(tokenizer, source, message):
    with pytest.raises(UserError, match=message):
        chat_template(source, tokenizer)


def test_endless_template_is_stopped(tokenizer, monkeypatch):
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr("mixdistill.traces.templates.WALL_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"more than 0\.5 seconds"):
        chat_template(loop, tokenizer)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("given", "message"), [("tokenizer", "has no chat template"), ("chatml", "known: plain")])
def test_template_that_is_not_there(given, message):
    inner = Inner(models.WordLevel({"?": 0, "</s>": 1}, unk_token="?"))
    with pytest.raises(UserError, match=message):
        load_template(given, Tokenizer(inner))
