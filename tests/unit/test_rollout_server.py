"""Rollouts from a server: what fails makes the batch smaller and is counted; what fails altogether changes nothing."""

import contextlib
import http.server
import json
import threading

import jax
import numpy as np
import pytest

from mixdistill.data.corpus import open_corpus
from mixdistill.errors import UserError
from mixdistill.generation.remote import Server
from mixdistill.generation.rollouts import Rollouts
from mixdistill.mesh import FSDP, make_mesh
from mixdistill.students import families
from mixdistill.students.decoder import make_student
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.answering import train_step_of
from mixdistill.training.rollout_pipeline import RolloutPipeline

EOS = CHAIN.tokenizer().eos_id


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with three tokens; `reply(number, answer) -> (status, body)` spoils it."""

    reply, seen, lock = None, 0, threading.Lock()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Scripted.lock:
            number, Scripted.seen = Scripted.seen, Scripted.seen + 1
        tokens = [asked["prompt"][1], asked["seed"] % 10 + 3, EOS]
        choice = {
            "finish_reason": "stop",
            "logprobs": {"tokens": [f"token_id:{t}" for t in tokens], "token_logprobs": [-0.5, -0.25, -0.125]},
        }
        status, body = Scripted.reply(number, {"choices": [choice], "system_fingerprint": "run-3"})
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def well(number, answer):
    return 200, json.dumps(answer).encode()


@pytest.fixture(scope="module")
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join(5)


def answers(rollouts):
    return [float(len(rollout.text)) for rollout in rollouts]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server") / "shards"
    write_world(CHAIN, folder, {"F": 12}, seed=0)
    return folder


def pipeline(corpus, url, **settings):
    quick = {"timeout": 2.0, "retries": 1, "backoff": 0.01, "concurrency": 1, "min_share": 0.5}
    source = Rollouts(
        shards=str(corpus),
        judges={"size": answers},
        weights={"size": 1.0},
        prompts=2,
        samples=2,
        max_prompt=8,
        max_new=4,
        server=Server(url, "any", **{**quick, **settings}),
    )
    student = make_student(families.tiny(CHAIN.tokenizer().vocab_size))
    mesh = make_mesh({}, jax.devices()[:1])
    return RolloutPipeline(source, open_corpus(source.asked), student, 1, mesh, FSDP)


@pytest.fixture(autouse=True)
def fresh():
    Scripted.seen, Scripted.reply = 0, staticmethod(well)


def test_a_batch_from_a_server(corpus, url):
    made = pipeline(corpus, url)
    batch = made.read({}, 5)
    assert batch["valid"].sum(1).tolist() == [3] * 4
    assert batch["teacher_logprob"][batch["valid"]].tolist() == [-0.5, -0.25, -0.125] * 4
    assert made.get_state()["versions"] == {"run-3": 4}  # recorded with every checkpoint
    assert made.tallies["rollout/failed"] == (0, 4)
    assert made.tallies["rollout/stale"] == (12, 12)  # drawn by the weights of train step 3
    assert made.tallies["rollout/age"] == (24, 12)
    assert made.read({}, 3) is not None
    assert made.tallies["rollout/stale"] == (0, 12)


@pytest.mark.parametrize(
    "bad",
    [
        lambda answer: (500, b""),
        lambda answer: (200, b"<html>"),
        lambda answer: (200, json.dumps(answer | {"system_fingerprint": "other-3"}).encode()),
        lambda answer: (200, json.dumps(answer | {"choices": []}).encode()),
    ],
    ids=["500", "garbage", "other weights", "empty"],
)
def test_a_completion_that_never_comes_is_left_out_and_counted(corpus, url, bad):
    Scripted.reply = staticmethod(lambda number, answer: bad(answer) if number in (1, 2) else well(number, answer))
    made = pipeline(corpus, url, version="run-3")
    batch = made.read({}, 3)
    assert Scripted.seen == 5  # the second prompt was asked twice
    assert batch["valid"].sum(1).tolist() == [3, 0, 3, 3]
    assert not batch["advantage"][1].any()
    assert made.tallies["rollout/failed"] == (1, 4)
    assert made.tallies["rollout/unverified"] == (0, 3)
    assert made.tallies["rollout/faults"] == (2, 1)
    assert sum(made.get_state()["faults"].values()) == 2
    assert made.num_targets == 9


def test_a_server_that_is_down_is_one_error_and_changes_nothing(corpus, url):
    made, undisturbed = pipeline(corpus, url), pipeline(corpus, url)
    first = made.read({}, 0)
    Scripted.reply = staticmethod(lambda number, answer: (500, b""))
    before = made.get_state()
    with pytest.raises(UserError, match="completed 0 of 4 prompts"):
        made.read({}, 1)
    assert made.get_state() == before
    Scripted.reply = staticmethod(well)
    for expected in (first, made.read({}, 1)):
        found = undisturbed.read({}, 0)
        for name, array in expected.items():
            np.testing.assert_array_equal(array, found[name], err_msg=name)


@pytest.mark.parametrize(
    ("version", "train_step"), [("abc-12", 12), ("abc", -1), (None, -1), ("", -1), ("a-x", -1), ("-7", 7), ("a-²", -1)]
)
def test_the_train_step_in_a_version(version, train_step):
    assert train_step_of(version) == train_step
