"""Completions, with their log-probabilities, from an OpenAI-compatible server (vLLM, SGLang, `mixdistill serve`).

Prompts travel as token ids and completions come back as token ids, so nothing depends on how a server joins text. What
a server fails at is retried a bounded number of times and then counted: the batch gets smaller, or, when too little is
left of it, there is one clear error. Only the configured address is ever contacted.
"""

import dataclasses
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from mixdistill.errors import UserError
from mixdistill.generation.in_threads import in_threads
from mixdistill.generation.policy import Policy
from mixdistill.generation.sampler import Generated

RETRIED = (429, 500, 502, 503, 504)
MAX_ANSWER_BYTES = 2**26  # thousands of times what a completion with log-probabilities takes


@dataclasses.dataclass(frozen=True)
class Server:
    """Where completions come from and how patiently they are asked for. Raises `UserError` for an address that is none.

    `token_variable` names the environment variable that holds the bearer token: the token itself stands in no recipe.
    """

    url: str  # of the API, such as http://127.0.0.1:8000/v1
    model: str
    version: str | None = None  # of the weights: answers of others are refused and counted; None: any will do
    token_variable: str | None = None
    concurrency: int = 16  # requests under way at once
    timeout: float = 120.0  # seconds for one answer; nor is one waited for longer where the server asks for a pause
    retries: int = 4  # of one request
    backoff: float = 0.5  # seconds before the first retry, doubled each time; up to as much again is added at random
    min_share: float = 0.5  # of the completions asked for; with fewer there is an error

    def __post_init__(self):
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UserError(f"server url {self.url!r}: give http(s)://host:port/v1, without user or password")
        for name in ("concurrency", "timeout"):
            if getattr(self, name) <= 0:
                raise UserError(f"server {name} is {getattr(self, name)}; it must be positive")
        for name in ("retries", "backoff"):
            if getattr(self, name) < 0:
                raise UserError(f"server {name} is {getattr(self, name)}; it is 0 or more")


class Answers(NamedTuple):
    """One entry for each prompt and sample, in order; None where the server failed for good."""

    completions: list[Generated | None]
    versions: list[str | None]  # of the weights, as the server names them
    failures: Counter[str]  # reasons, of requests that failed for good
    faults: Counter[str]  # reasons, of every attempt that failed, those that were repeated with success among them


class Unusable(Exception):
    """An answer that cannot be used; the message is a reason to count."""

    def __init__(self, reason: str, *, retried: bool = True, pause: float = 0.0):
        """`pause`: seconds that the server wants to be left alone."""
        super().__init__(reason)
        self.retried, self.pause = retried, pause


def complete_remotely(
    server: Server,
    prompts: Sequence[Sequence[int]],
    *,
    max_new: int | Sequence[int],
    eos_id: int,
    vocab_size: int,
    policy: Policy = Policy(),
    seed: int = 0,
) -> Answers:
    """A completion for each prompt (token ids), of at most `max_new` tokens, or so many for each. Raises `UserError`
    when fewer than the server's `min_share` of them came back."""
    pool, faults = _connections(server), Counter()
    most = [max_new] * len(prompts) if isinstance(max_new, int) else list(map(int, max_new))
    bodies = [_body(server, prompt, most[i], policy, seed + i) for i, prompt in enumerate(prompts)]
    results = []
    for result, reasons in in_threads(
        lambda body: _ask(server, pool, body, eos_id, vocab_size), bodies, server.concurrency
    ):
        results.append(result)
        faults.update(reasons)
    pool.clear()
    failures = Counter(result for result in results if isinstance(result, str))
    good = [result for result in results if not isinstance(result, str)]
    if len(good) < server.min_share * len(prompts):
        reasons = "; ".join(f"{count} x {reason}" for reason, count in failures.most_common(3))
        raise UserError(
            f"{server.url} completed {len(good)} of {len(prompts)} prompts ({reasons}); is it up, and is it right?"
        )
    came = [None if isinstance(result, str) else result for result in results]
    completions = [None if one is None else one[0] for one in came]
    return Answers(completions, [None if one is None else one[1] for one in came], failures, faults)


def _connections(server: Server):
    import urllib3

    # What is repeated, and when, is decided in `_ask` alone; another address was never configured, so none is followed.
    return urllib3.PoolManager(maxsize=server.concurrency, retries=False, timeout=server.timeout)


def _body(server: Server, prompt: Sequence[int], max_new: int, policy: Policy, seed: int) -> dict[str, Any]:
    body = {
        "model": server.model,
        "prompt": list(map(int, prompt)),
        "max_tokens": max_new,
        "temperature": policy.temperature,
        "seed": seed % 2**31,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
    }
    # top_k and min_p are extensions that vLLM and SGLang share; a server that has none would ignore them silently.
    optional = {"top_p": policy.top_p, "top_k": policy.top_k, "min_p": policy.min_p}
    return body | {name: value for name, value in optional.items() if value is not None}


def _ask(
    server: Server, pool: Any, body: dict, eos_id: int, vocab_size: int
) -> tuple[tuple[Generated, str] | str, list[str]]:
    """The completion and the weights' version, or the last reason why there is none; and the reason of every fault."""
    reasons: list[str] = []
    for number in range(server.retries + 1):
        try:
            found = parse(_post(server, pool, body), eos_id, server.version)
            _check_tokens(found[0].tokens, body["max_tokens"], vocab_size)
            return found, reasons
        except Unusable as error:
            reasons.append(str(error))
            if not error.retried:
                break
            if number < server.retries:
                time.sleep(_pause(server, number, error.pause))
    return reasons[-1], reasons


def _pause(server: Server, number: int, wanted: float) -> float:
    """Seconds before retry `number` (from 0): doubled each time, with jitter, or as long as the server wants."""
    return min(max(server.backoff * (2**number + random.random()), wanted), server.timeout)


def _post(server: Server, pool: Any, body: dict) -> bytes:
    """The body of an answer with status 200. Raises `Unusable`."""
    import urllib3

    headers = {"Content-Type": "application/json"}
    if server.token_variable:
        headers["Authorization"] = f"Bearer {os.environ.get(server.token_variable, '')}"
    url, until = f"{server.url.rstrip('/')}/completions", time.monotonic() + server.timeout
    try:
        with pool.request("POST", url, body=json.dumps(body), headers=headers, preload_content=False) as answer:
            if answer.status != 200:
                wanted = answer.headers.get("Retry-After", "")
                pause = float(wanted) if wanted.isascii() and wanted.isdigit() else 0.0
                raise Unusable(f"HTTP {answer.status}", retried=answer.status in RETRIED, pause=pause)
            return _read(answer, until)
    except urllib3.exceptions.NewConnectionError:  # a TimeoutError, too
        raise Unusable("no connection") from None
    except urllib3.exceptions.TimeoutError:
        raise Unusable("no answer in time") from None
    except urllib3.exceptions.HTTPError as error:
        raise Unusable(f"no answer ({type(error).__name__})") from None


def _read(answer: Any, until: float) -> bytes:
    """All of it: a server that sends byte after byte resets a socket's timeout each time."""
    parts, size = [], 0
    while part := answer.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise Unusable("the answer is too large")
        if time.monotonic() > until:
            raise Unusable("no answer in time")
    return b"".join(parts)


def _check_tokens(tokens: np.ndarray, max_new: int, vocab_size: int) -> None:
    if len(tokens) > max_new:
        raise Unusable("the answer is longer than was asked for")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise Unusable("the answer has tokens that the student does not know")


def parse(answer: bytes, eos_id: int, version: str | None = None) -> tuple[Generated, str]:
    """The completion in a server's answer and the version of its weights. Raises `Unusable`."""
    try:
        found = json.loads(answer)
        choice = found["choices"][0]
        names, logprobs = choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"]
        said = str(found.get("system_fingerprint") or found.get("model") or "")
        ended = choice["finish_reason"] == "stop"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Unusable("the answer is not a completion with log-probabilities") from None
    if version is not None and said != version:
        raise Unusable("the answer is of other weights")
    try:
        tokens = np.array(
            [int(name.removeprefix("token_id:")) for name in names if name.startswith("token_id:")], np.int32
        )
        values = np.array(logprobs, np.float64)
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise Unusable("the answer's tokens are of another form") from None
    if len(tokens) != len(names) or values.shape != tokens.shape or not len(tokens):
        raise Unusable("the server does not return token ids (return_tokens_as_token_ids)")
    if not ((values > -1e30) & (values <= 1e-3)).all():  # float32 has to hold them
        raise Unusable("the answer's log-probabilities are not finite")
    if ended and tokens[-1] != eos_id:  # most servers leave the end token out, and its log-probability with it
        ended = False
    return Generated(tokens, values.astype(np.float32), ended, np.zeros(0, np.float32)), said
