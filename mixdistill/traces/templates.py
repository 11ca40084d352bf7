"""Chat templates: what stands around the prompt. The template is run once, on a mark in place of the prompt, so it
never sees a trace's text and cannot change it; and no text can pass for a part of the template."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from mixdistill.errors import UserError
from mixdistill.traces import render_template
from mixdistill.traces.tokenizer import Tokenizer

MARK = "mixdistill-prompt-6f1d20"
SOURCE_CHARACTERS = 2**18
WALL_SECONDS = 2 * render_template.CPU_SECONDS  # a sleeping or starved child ends here


class ChatTemplate(NamedTuple):
    """The text before and after the prompt, control tokens by name; the completion follows, then the end token."""

    before: str = ""
    after: str = ""


PLAIN = ChatTemplate()  # prompt, then completion


def chat_template(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    """Runs the jinja `source` for one user turn and the opening of the answer. Raises `UserError` when it fails, takes
    too long, or does not write the prompt exactly once."""
    if len(source) > SOURCE_CHARACTERS:
        raise UserError(f"the chat template has {len(source)} characters; at most {SOURCE_CHARACTERS} are allowed")
    values = {
        "messages": [{"role": "user", "content": MARK}],
        "add_generation_prompt": True,
        "bos_token": tokenizer.bos,
        "eos_token": tokenizer.eos,
        "pad_token": tokenizer.pad,
        "tools": None,
    }
    text = _render({"source": source, "values": values})
    if text.count(MARK) != 1:
        raise UserError(f"the chat template writes the prompt {text.count(MARK)} times; it must do so exactly once")
    return ChatTemplate(*text.split(MARK))


def load_template(given: str, tokenizer: Tokenizer | None) -> ChatTemplate:
    """`given`: "plain", "tokenizer" (the one that came with it), or the path of a jinja file."""
    if given == "plain":
        return PLAIN
    if tokenizer is None:
        raise UserError(f"--template {given} needs the --tokenizer whose control tokens it writes")
    if given == "tokenizer":
        if not tokenizer.template:
            raise UserError("the tokenizer has no chat template; give a jinja file with --template, or plain")
        return chat_template(tokenizer.template, tokenizer)
    path = Path(given)
    if not path.is_file():
        raise UserError(f"no chat template {given!r}; known: plain, tokenizer, or the path of a jinja file")
    return chat_template(path.read_text(encoding="utf-8"), tokenizer)


def _render(request: dict) -> str:
    # -P: the script's own folder stays off the path, where its neighbours would hide modules of the same name.
    command = [sys.executable, "-P", render_template.__file__]
    try:
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"the chat template took more than {WALL_SECONDS} seconds") from None
    if done.returncode:
        raise UserError(f"the chat template was stopped: over {render_template.CPU_SECONDS} seconds, or out of memory")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise UserError(f"the chat template failed: {answer['error']}")
    return answer["text"]
