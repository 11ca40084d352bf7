"""Completions over HTTP: our server answers like the sampler; a faulty one costs retries, then counted failures."""

import contextlib
import http.server
import json
import threading
import time

import jax
import numpy as np
import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.errors import UserError
from mixdistill.generation.policy import Policy
from mixdistill.generation.remote import Server, Unusable, complete_remotely, parse
from mixdistill.generation.sampler import complete
from mixdistill.generation.server import Refused, Served, check_exposure, make_app, read_request
from mixdistill.students import families
from mixdistill.students.decoder import make_student
from mixdistill.traces.tokenizer import word_level

TOKENIZER = word_level([*"0123456789=:", "x", "y"])
EOS = TOKENIZER.eos_id
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8]]


@pytest.fixture(scope="module")
def served():
    student = make_student(families.tiny(TOKENIZER.vocab_size))
    params = student.init(jax.random.key(3))
    return Served(student, params, TOKENIZER, "tiny", "step-7", max_prompts=8, max_tokens=64)


@contextlib.contextmanager
def listening(app):
    """A real uvicorn on a free port of loopback."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(200):
        if server.started:
            break
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def url(served):
    with listening(make_app(lambda: served)) as address:
        yield address


def ask(url, body, **headers):
    answer = urllib3.request("POST", f"{url}/completions", json=body, headers=headers, timeout=30)
    return answer.status, answer.json()


def test_the_server_says_what_the_sampler_says(served, url):
    policy = Policy(temperature=1.3, top_k=6)
    answers = complete_remotely(
        Server(url, "tiny"), PROMPTS, max_new=6, eos_id=EOS, vocab_size=TOKENIZER.vocab_size, policy=policy, seed=11
    )
    assert answers.versions == ["step-7"] * 3
    assert not answers.failures
    for i, (prompt, got) in enumerate(zip(PROMPTS, answers.completions, strict=True)):
        alone = complete(served.student, served.params, [prompt], max_new=6, eos_id=EOS, policy=policy, seed=11 + i)[0]
        np.testing.assert_array_equal(got.tokens, alone.tokens)
        np.testing.assert_allclose(got.logprobs, alone.logprobs, atol=1e-6)
        assert got.ended == alone.ended


def test_text_prompts_and_several_samples(url):
    status, answer = ask(url, {"prompt": ["1 2 :", "x ="], "n": 2, "max_tokens": 3, "temperature": 1.0})
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(isinstance(choice["text"], str) for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] <= 12
    models = urllib3.request("GET", f"{url}/models").json()
    assert [model["id"] for model in models["data"]] == ["tiny"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "JSON"),
        (b"[1]", "object"),
        (b'{"prompt": ""}', "empty"),
        (b'{"prompt": [99999]}', "outside"),
        (b'{"prompt": [[1], [true]]}', "token ids"),
        (b'{"prompt": [1], "n": 100}', "n is a number"),
        (b'{"prompt": [[1],[1],[1]], "n": 5}', "at most 8"),
        (b'{"prompt": [1], "max_tokens": 64}', "together"),
        (b'{"prompt": [1], "temperature": "hot"}', "temperature"),
        (b'{"prompt": [1], "temperature": NaN}', "temperature"),
        (b'{"prompt": [1], "model": "other"}', "no model"),
        (b'{"prompt": [1], "stream": true}', "stream"),
    ],
)
def test_bounded_requests(served, body, word):
    with pytest.raises(Refused, match=word):
        read_request(served, body)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)
    )
)
def test_no_request_breaks_the_server(served, value):
    for name in ("prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "seed", "model"):
        body = json.dumps({"prompt": [1], name: value}).encode()
        with contextlib.suppress(Refused, UserError):
            read_request(served, body)


def test_off_loopback_a_token_is_needed(served):
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(host, None)
    for host in ("0.0.0.0", "example", "192.168.1.2"):
        with pytest.raises(UserError, match="token"):
            check_exposure(host, None)
        check_exposure(host, "secret")
    with listening(make_app(lambda: served, token="secret")) as address:
        assert ask(address, {"prompt": [1]})[0] == 401
        assert ask(address, {"prompt": [1]}, Authorization="Bearer wrong")[0] == 401
        assert ask(address, {"prompt": [1], "max_tokens": 1}, Authorization="Bearer secret")[0] == 200


def answer_of(tokens, logprobs=None, fingerprint="step-7", finish="stop"):
    names = [f"token_id:{token}" for token in tokens]
    logprobs = [-0.5] * len(tokens) if logprobs is None else logprobs
    choice = {"logprobs": {"tokens": names, "token_logprobs": logprobs}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "system_fingerprint": fingerprint}).encode()


class Faulty(http.server.BaseHTTPRequestHandler):
    """Answers by `script`, a list of (status, body) that the test sets; the last one again and again."""

    script, seen = [], 0

    def do_POST(self):
        cls = type(self)
        status, body = cls.script[min(cls.seen, len(cls.script) - 1)]
        cls.seen += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        if status == 0:  # hangs
            time.sleep(1.5)
            return
        if status == 1:  # a byte now and then
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(20):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "86400")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def faulty():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Faulty.seen = 0

    def script(*steps, **settings):
        Faulty.script = list(steps)
        quick = {"timeout": 0.5, "retries": 2, "backoff": 0.01, "concurrency": 1}
        return Server(f"http://127.0.0.1:{server.server_port}/v1", "tiny", **{**quick, **settings})

    yield script
    server.shutdown()
    server.server_close()
    thread.join(5)


GOOD = (200, answer_of([4, EOS]))


@pytest.mark.parametrize(
    "first", [(500, b""), (429, b""), (503, b"x"), (200, b"<html>"), (200, b'{"choices": []}')], ids=str
)
def test_a_passing_fault_costs_a_retry(faulty, first):
    answers = complete_remotely(faulty(first, GOOD), [[1]], max_new=2, eos_id=EOS, vocab_size=TOKENIZER.vocab_size)
    assert answers.completions[0].tokens.tolist() == [4, EOS]
    assert Faulty.seen == 2
    assert answers.faults.total() == 1
    assert not answers.failures


@pytest.mark.parametrize(
    ("step", "reason", "asked"),
    [
        ((500, b""), "HTTP 500|no answer", 3),
        ((0, b""), "no answer in time", 3),
        ((1, b""), "no answer in time", 3),
        ((200, b"garbage"), "not a completion", 3),
        ((200, answer_of([4], fingerprint="step-6")), "other weights", 3),
        ((200, answer_of([4], [float("nan")])), "not finite", 3),
        ((200, answer_of([4, 4, 4])), "longer than was asked", 3),
        ((200, answer_of([4000])), "does not know", 3),
        ((200, answer_of([-1])), "does not know", 3),
        ((404, b""), "HTTP 404", 1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_lasting_fault_is_one_clear_error(faulty, step, reason, asked):
    with pytest.raises(UserError, match=reason):
        complete_remotely(faulty(step, version="step-7"), [[1]], max_new=2, eos_id=EOS, vocab_size=TOKENIZER.vocab_size)
    assert Faulty.seen == asked


def test_what_fails_for_good_makes_the_batch_smaller(faulty):
    server = faulty(GOOD, (404, b""), GOOD)
    answers = complete_remotely(server, [[1], [2], [3]], max_new=2, eos_id=EOS, vocab_size=TOKENIZER.vocab_size)
    assert [one is None for one in answers.completions] == [False, True, False]
    assert answers.failures == answers.faults == {"HTTP 404": 1}


def test_redirects_are_not_followed(faulty):
    with pytest.raises(UserError, match=r"30[127]|no answer"):
        complete_remotely(faulty((307, b"")), [[1]], max_new=2, eos_id=EOS, vocab_size=TOKENIZER.vocab_size)


def test_no_server_at_all():
    server = Server("http://127.0.0.1:9/v1", "tiny", retries=1, backoff=0.01)
    with pytest.raises(UserError, match=r"completed 0 of 1 prompts .1 x no connection"):
        complete_remotely(server, [[1]], max_new=2, eos_id=EOS, vocab_size=TOKENIZER.vocab_size)


@given(
    st.binary(max_size=60)
    | st.builds(answer_of, st.lists(st.integers(), max_size=3), st.lists(st.floats(), max_size=3))
)
def test_no_answer_breaks_the_client(answer):
    with contextlib.suppress(Unusable):
        found, _ = parse(answer, EOS)
        assert len(found.tokens) == len(found.logprobs) > 0


@pytest.mark.parametrize("url", ["ftp://a/v1", "localhost:80", "http://u:p@host/v1", ""])
def test_bad_addresses(url):
    with pytest.raises(UserError, match="url"):
        Server(url, "tiny")
