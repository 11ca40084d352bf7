"""What is fuzzed, and how: name -> (target, strategy). A target raises only for what would be a bug.

`scripts/fuzz.py` runs many cases of each, `test_fuzz.py` a few, and the cases that once failed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from jinja2 import TemplateError

from mixdistill.errors import UserError
from mixdistill.generation.remote import Unusable, parse
from mixdistill.generation.server import Refused, Served, read_request
from mixdistill.recipe import set_path
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.students.tensor_files import tensor_files
from mixdistill.traces import manifest, readers, record
from mixdistill.traces.encode import encode_trace
from mixdistill.traces.record import to_bytes
from mixdistill.traces.render_template import render
from mixdistill.traces.segment import RULES, segment
from mixdistill.traces.spool import Spool
from mixdistill.traces.trace import Trace
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.training.history import read_ledger

Case = Any
Target = Callable[[Case, Path], None]


def mangled(*examples: bytes, pieces: tuple[bytes, ...] = ()) -> st.SearchStrategy[bytes]:
    """Valid examples with something changed, the grammar's pieces in any order, or noise."""
    edits = st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=4) | st.sampled_from([b"", *pieces])),
        max_size=6,
    )
    changed = st.builds(_edited, st.sampled_from(examples), edits)
    return changed | st.lists(st.sampled_from([b"", *pieces]), max_size=12).map(b"".join) | st.binary(max_size=64)


def _edited(data: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for where, removed, put in edits:
        place = int(where * len(data))
        data = data[:place] + put + data[place + removed :]
    return data


JSON = (b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"NaN", b"1e999", b"-", b"\\ud800", b"\xff", b"\n", b"0")
ROW = json.dumps({"prompt": "a 1", "completion": "b\n\nc", "teacher": "t", "answer": "2"}).encode()
MESSAGES = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}).encode()
OWN = json.dumps(CHAIN.trace(CHAIN.problems(0, "train", 1)[0], "F").to_json()).encode()


def file_of_rows(case: bytes, folder: Path) -> None:
    """Readers: every row comes out as a trace or as a bad row with its reason."""
    path = folder / "rows.jsonl"
    path.write_bytes(case)
    try:
        found = list(readers.read(path))
    except UserError:
        return
    assert all(isinstance(row, Trace | readers.BadRow) for row in found)
    for row in found:
        json.dumps(row.to_json() if isinstance(row, Trace) else row._asdict())


def steps(case: tuple[str, str], folder: Path) -> None:
    """Segmentation: the pieces are the text."""
    text, rule = case
    assert "".join(step.text for step in segment(text, rule)) == text


def template(case: bytes, folder: Path) -> None:
    """Chat templates: a text, or an error of the template's own, as `render_template.main` answers both."""
    values = {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True, "bos_token": "<s>"}
    source = case.decode("utf-8", "replace")
    try:
        assert isinstance(render(source, values), str)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError):
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


def setting(case: tuple[str, str], folder: Path) -> None:
    """`--set PATH=VALUE`: a recipe, or a refusal in words."""
    from experiments.base import smoke

    try:
        set_path(smoke(), *case)
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
    """What comes to `mixdistill serve`."""
    try:
        prompts, samples, _, _ = read_request(SERVED, case)
    except (Refused, UserError):
        return
    assert len(prompts) * samples <= SERVED.max_prompts


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


TEXTS = st.text(alphabet='Aab1.)\n #-!"<>/thinkswer{}\\$', max_size=120) | st.text(max_size=60)
TEMPLATE = b"{% for m in messages %}{{ m['role'] }}: {{ m.content | trim }}{% endfor %}{{ bos_token }}"
JINJA = (b"{{", b"}}", b"{%", b"%}", b"{#", b"#}", b" for m in messages ", b" if ", b" else ", b" endfor ", b" endif ",
         b"m.content", b"|", b"tojson", b"trim", b"set x = ", b"messages[0]", b".__class__", b"raise_exception('a')",
         b"'a'", b"1", b"+", b"(", b")", b"[", b"]", b"macro f()", b"endmacro")  # fmt: skip
RECORD = to_bytes(encode_trace(CHAIN.tokenizer(), CHAIN.trace(CHAIN.problems(0, "train", 1)[0], "F")))
TARGETS: dict[str, tuple[Target, st.SearchStrategy[Case]]] = {
    "readers": (file_of_rows, mangled(ROW + b"\n" + ROW, MESSAGES, OWN, b"[" + ROW + b"]", pieces=(*JSON, ROW))),
    "segmenter": (steps, st.tuples(TEXTS, st.sampled_from(sorted(RULES)))),
    "template": (template, mangled(TEMPLATE, pieces=JINJA)),
    "manifest": (a_manifest, mangled(MANIFEST, pieces=JSON)),
    "weights index": (weights_index, mangled(INDEX, pieces=(*JSON, b"../../x", b"/etc/passwd"))),
    "weights file": (weights_file, mangled(WEIGHTS, pieces=JSON)),
    "record": (a_record, mangled(RECORD, pieces=(b"MDT1", *JSON))),
    "--set": (
        setting,
        st.tuples(
            st.sampled_from(PATHS) | st.text(alphabet="stage.0source", max_size=20),
            st.sampled_from(VALUES) | st.text(max_size=12),
        ),
    ),
    "request": (request, mangled(REQUEST, pieces=JSON)),
    "answer": (answer, mangled(ANSWER, pieces=JSON)),
    "unfinished prepare": (unfinished, mangled(b"\x00" * 8, b"\x01\x02\x03\x04\x02\x00\x00\x00[]", pieces=JSON)),
    "ledger": (a_ledger, mangled(b'{"train_step": 1, "traces": [1]}\n' * 2, pieces=JSON)),
}
