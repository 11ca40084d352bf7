"""What is fuzzed, and how: name -> Target. A target raises only for what would be a bug.

`scripts/fuzz.py` runs many cases of each, `test_fuzz.py` a few, and the cases that once failed.
"""

import asyncio
import functools
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import zstandard
from jinja2 import TemplateError

from mixdistill.errors import UserError
from mixdistill.generation import server
from mixdistill.generation.remote import Unusable, parse
from mixdistill.generation.sampler import Generated
from mixdistill.generation.server import Refused, Served, read_request
from mixdistill.recipe import set_all
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.students.tensor_files import tensor_files
from mixdistill.traces import manifest, readers, record
from mixdistill.traces.encode import encode_trace
from mixdistill.traces.readers.row import Raw
from mixdistill.traces.record import to_bytes
from mixdistill.traces.render_template import render
from mixdistill.traces.segment import RULES, segment
from mixdistill.traces.spool import Spool
from mixdistill.traces.trace import Trace
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.training.history import read_ledger
from tests.unit.test_readers import GOLDEN


class Target(NamedTuple):
    """`run` is given a case and a folder to write in; cases are mutations of `corpus` and `pieces` of its grammar."""

    run: Callable[[bytes, Path], None]
    corpus: tuple[bytes, ...]
    pieces: tuple[bytes, ...] = ()


JSON = (b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"NaN", b"1e999", b"-", b"\\ud800", b"\xff", b"\n", b"0")
OWN = json.dumps(CHAIN.trace(CHAIN.problems(0, "train", 1)[0], "F").to_json()).encode()
ROWS = [(name, json.dumps(row).encode()) for name, row, _ in GOLDEN] + [("mixdistill", OWN)]


def _found(rows: list) -> None:
    assert all(isinstance(row, Trace | readers.BadRow) for row in rows)
    for row in rows:
        json.dumps(row.to_json() if isinstance(row, Trace) else row._asdict())


def row_of(name: str, case: bytes, folder: Path) -> None:
    """A reader: whatever JSON the row is, it comes out as a trace or as a bad row with its reason."""
    try:
        row = json.loads(case)
    except (ValueError, RecursionError):
        return
    if isinstance(row, dict):
        readers.FORMATS[name].matches(row)
    found = list(readers._read([Raw(1, row)], readers.FORMATS[name].drafts, Path("rows.jsonl"), "t"))
    assert found  # nothing is dropped
    _found(found)


def file_of_rows(case: bytes, folder: Path) -> None:
    """Files of any container: every row comes out, or the file's damage does."""
    path = folder / "rows"
    path.write_bytes(case)
    try:
        found = list(readers.read(path))
    except UserError:
        return
    _found(found)


def _files() -> tuple[bytes, ...]:
    """Two rows in every container."""
    rows = [{"prompt": "a 1", "completion": "b\n\nc", "teacher": "t", "answer": "2"}] * 2
    lines, table = "".join(json.dumps(row) + "\n" for row in rows).encode(), pyarrow.Table.from_pylist(rows)
    parquet, stream, feather = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    for sink, writer in ((stream, pyarrow.ipc.new_stream), (feather, pyarrow.ipc.new_file)):
        with writer(sink, table.schema) as out:
            out.write_table(table)
    packed = [gzip.compress(lines, mtime=0), zstandard.compress(lines)]
    text = [
        lines,
        json.dumps(rows).encode(),
        json.dumps(rows, indent=1).encode(),
        json.dumps({"data": rows}, indent=1).encode(),
    ]
    return (*text, *packed, parquet.getvalue(), stream.getvalue(), feather.getvalue())


def steps(case: bytes, folder: Path) -> None:
    """Segmentation: the pieces are the text. The first byte chooses the rule."""
    text, rules = case[1:].decode("utf-8", "surrogateescape"), sorted(RULES)
    rule = rules[case[0] % len(rules)] if case else rules[0]
    assert "".join(step.text for step in segment(text, rule)) == text


def template(case: bytes, folder: Path) -> None:
    """Chat templates: a text, or an error of the template's own, as `render_template.main` answers both."""
    values = {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True, "bos_token": "<s>"}
    source = case.decode("utf-8", "replace")
    try:
        assert isinstance(render(source, values), str)
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
        MemoryError,
    ):
        return
    except (AssertionError, SyntaxError):  # of jinja2's own compiler, for impossible templates
        return


def a_manifest(case: bytes, folder: Path) -> None:
    """Manifests: read and checked, or refused."""
    (folder / manifest.MANIFEST).write_bytes(case)
    try:
        found = manifest.read(folder)
        manifest.verify(folder, found, "fast")
        manifest.damaged(folder, found)
    except UserError:
        return


MANIFEST = json.dumps(
    {
        "schema": 1, "tokenizer": "a" * 64, "vocab_size": 9, "num_traces": 1, "num_tokens": 3, "teachers": {"t": {}},
        "folds": [""], "verdicts": ["correct"], "shards": {"traces-00000.array_record": 1},
        "files": {"index.npz": {"bytes": 3, "sha256": "b" * 64}},
    }
).encode()  # fmt: skip


def weights_index(case: bytes, folder: Path) -> None:
    """The index of published weights."""
    (folder / "model.safetensors.index.json").write_bytes(case)
    try:
        tensor_files(folder)
    except UserError:
        return


def weights_file(case: bytes, folder: Path) -> None:
    """A file of published weights."""
    own = folder / "own"
    own.mkdir(exist_ok=True)
    (own / "model.safetensors").write_bytes(case)
    try:
        tensor_files(own)
    except UserError:
        return


INDEX = json.dumps({"metadata": {}, "weight_map": {"a.weight": "model-00001.safetensors"}}).encode()
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)


def a_record(case: bytes, folder: Path) -> None:
    """A record of a shard, as training and as everything else reads it."""
    for read in (record.arrays, record.from_bytes):
        try:
            read(case)
        except UserError:
            continue


@functools.cache
def _recipe():
    from experiments.base import smoke

    return smoke()


def setting(case: bytes, folder: Path) -> None:
    """`--set PATH=VALUE`: a recipe, or a refusal in words."""
    try:
        set_all(_recipe(), [case.decode("utf-8", "surrogateescape")])
    except UserError:
        return


PATHS = (
    "seed", "name", "mesh.fsdp", "stages.0.source.weights.F", "stages.0.source.shards", "stages.0.num_tokens", "stages",
    "stages.0.objective.terms.imitate.coef", "optimizer.frozen", "optimizer.learning_rate", "student.layers", "student",
    "rules.axes.batch", "guard.alarms.0.limit", "guard.probation", "stages.0.source.pack_by", "stages.9.x", "tokenizer",
)  # fmt: skip
VALUES = (
    "1",
    "-1",
    "1e999",
    "nan",
    "None",
    "true",
    "(",
    "[1,",
    "['a']",
    "{}",
    "a,b",
    "__import__('os')",
    "9" * 5000,
    "'",
)
SERVED = Served(make_student(tiny(32)), {}, CHAIN.tokenizer(), "m", "v", max_prompts=4, max_tokens=64)


def request(case: bytes, folder: Path) -> None:
    """The body of what comes to `mixdistill serve`."""
    try:
        prompts, samples, _, _ = read_request(SERVED, case)
    except (Refused, UserError):
        return
    assert len(prompts) * samples <= SERVED.max_prompts


def http(case: bytes, folder: Path) -> None:
    """A whole request: "METHOD PATH", headers, an empty line, the body in pieces; the student itself is not asked."""
    head, _, body = case.partition(b"\n\n")
    line, *headers = head.split(b"\n")
    method, _, path = line.decode("latin-1").partition(" ")
    pairs = [tuple(part.strip() for part in header.lower().split(b":", 1)) for header in headers if b":" in header]
    parts = [body[place : place + 64] for place in range(0, len(body), 64)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    status = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            status.append(message["status"])

    scope = {
        "type": "http", "http_version": "1.1", "scheme": "http", "method": method, "path": path, "root_path": "",
        "query_string": b"", "headers": pairs, "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 9),
    }  # fmt: skip
    with mock.patch.object(server, "complete", _complete):
        _loop().run_until_complete(_app()(scope, receive, send))
    assert len(status) == 1
    assert status[0] in (200, 400, 401, 404, 405, 413)
    if status[0] == 200:
        assert (b"authorization", b"Bearer s3cret".lower()) in [(name, value.lower()) for name, value in pairs]


@functools.cache
def _app():
    return server.make_app(lambda: SERVED, token="s3cret")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _complete(student, params, prompts, *, max_new, **settings) -> list[Generated]:
    return [Generated(np.ones(1, np.int32), np.zeros(1, np.float32), True, np.zeros(0, np.float32)) for _ in prompts]


def answer(case: bytes, folder: Path) -> None:
    """What a rollout server answers."""
    try:
        parse(case, 1, None)
    except Unusable:
        return


REQUEST = json.dumps({"model": "m", "prompt": [1, 2], "max_tokens": 4, "temperature": 0.5, "seed": 3, "n": 1}).encode()
ANSWER = json.dumps(
    {
        "model": "m",
        "choices": [{"finish_reason": "stop", "logprobs": {"tokens": ["token_id:1"], "token_logprobs": [-0.5]}}],
    }
).encode()


def unfinished(case: bytes, folder: Path) -> None:
    """The results of an interrupted prepare: those that are whole are believed, the rest is not."""
    own = folder / ".s.unfinished"
    own.mkdir(exist_ok=True)
    with Spool(folder / "s", {}) as spool:
        (own / "results").write_bytes(case)
        list(spool.done())


def a_ledger(case: bytes, folder: Path) -> None:
    """ledger.jsonl after a crash."""
    path = folder / "ledger.jsonl"
    path.write_bytes(case)
    assert all(isinstance(line["train_step"], int) for line in read_ledger(path))


def _requests() -> tuple[bytes, ...]:
    allowed = b"authorization: Bearer s3cret\ncontent-type: application/json\n\n"
    return (b"POST /v1/completions\n" + allowed + REQUEST, b"GET /v1/models\n" + allowed, b"POST /v1/completions\n\n{}")


TEXT = b"<think>\nOkay, so x = 2.\n\nWait, 1. Let me check: $a$\n- one\n```\nb\n\nc\n```\n</think>\n\n\\boxed{2}</s>"
MARKS = (b"\n", b"\n\n", b"<think>", b"</think>", b"\\boxed{", b"}", b"```", b"$$", b"1. ", b"- ", b". ", b"Wait, ",
         b"\xe2\x80\xa8", b"\xc2\x85", b"\r", b"\x1e", b"\xed\xa0\x80", b" ", b"Step 2: ", b"**")  # fmt: skip
TEMPLATE = b"{% for m in messages %}{{ m['role'] }}: {{ m.content | trim }}{% endfor %}{{ bos_token }}"
TOOLS = b"{%- if add_generation_prompt -%}{{ messages[0]['content'].split('x')[-1] | tojson }}{%- endif -%}"
JINJA = (b"{{", b"}}", b"{%", b"%}", b"{#", b"#}", b" for m in messages ", b" if ", b" else ", b" endfor ", b" endif ",
         b"m.content", b"|", b"tojson", b"trim", b"set x = ", b"messages[0]", b".__class__", b"raise_exception('a')",
         b"'a'", b"1", b"+", b"(", b")", b"[", b"]", b"macro f()", b"endmacro", b"break", b"namespace(a=1)",
         b".format(", b"|attr('__init__')", b"loop.index", b"['a'", b"~", b"is defined", b"include 'x'",
         b"import 'x' as y")  # fmt: skip
RECORD = to_bytes(encode_trace(CHAIN.tokenizer(), CHAIN.trace(CHAIN.problems(0, "train", 1)[0], "F")))
SETTINGS = tuple(f"{path}={value}".encode() for path, value in zip(PATHS, VALUES * 2, strict=False))
TARGETS: dict[str, Target] = {
    **{
        f"reader: {name}": Target(functools.partial(row_of, name), tuple(row for one, row in ROWS if one == name), JSON)
        for name in readers.FORMATS
    },
    "reader: files": Target(file_of_rows, _files(), (*JSON, ROWS[0][1], b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1")),
    "segmenter": Target(steps, tuple(bytes([rule]) + TEXT for rule in range(len(RULES))), MARKS),
    "chat template": Target(template, (TEMPLATE, TOOLS), JINJA),
    "manifest": Target(a_manifest, (MANIFEST,), JSON),
    "weights index": Target(weights_index, (INDEX,), (*JSON, b"../../x", b"/etc/passwd")),
    "weights file": Target(weights_file, (WEIGHTS,), JSON),
    "record": Target(a_record, (RECORD,), (b"MDT1", *JSON)),
    "--set": Target(
        setting, SETTINGS, (*(path.encode() for path in PATHS), *(one.encode() for one in VALUES), b"=", b".")
    ),
    "request": Target(request, (REQUEST,), JSON),
    "HTTP": Target(http, _requests(), (*JSON, b"POST ", b"GET ", b"/v1/completions", b"/v1/models", b": ", b"\n\n")),
    "answer of a server": Target(answer, (ANSWER,), JSON),
    "unfinished prepare": Target(unfinished, (bytes(8), b"\x01\x02\x03\x04\x02\x00\x00\x00[]"), JSON),
    "ledger": Target(a_ledger, (b'{"train_step": 1, "traces": [1]}\n' * 2,), JSON),
}
