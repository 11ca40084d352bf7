"""A minimal OpenAI-compatible completion server over the in-tree sampler: POST /v1/completions, GET /v1/models.

For trying a student out and for rollouts from another process; requests are answered one after another, each as one
batch. It listens on loopback; elsewhere every request needs the bearer token. Requests are bounded in every direction.
"""

import asyncio
import hmac
import ipaddress
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mixdistill.errors import UserError
from mixdistill.generation.policy import Policy
from mixdistill.generation.sampler import Generated, complete
from mixdistill.students.student import Params, Student
from mixdistill.traces.encode import encode_prompt
from mixdistill.traces.templates import PLAIN, ChatTemplate
from mixdistill.traces.tokenizer import Tokenizer

if TYPE_CHECKING:
    from starlette.applications import Starlette

MAX_BODY_BYTES = 2**22


class Served(NamedTuple):
    """What is served. `version` names the weights in every answer."""

    student: Student
    params: Params
    tokenizer: Tokenizer
    name: str
    version: str
    template: ChatTemplate = PLAIN
    max_prompts: int = 256  # times samples, of one request
    max_tokens: int = 4096  # prompt and completion together


class Refused(Exception):
    """The request is not served; the message goes to the client."""


def check_exposure(host: str, token: str | None) -> None:
    """Raises `UserError` if `host` is reachable from elsewhere and there is no token."""
    if host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not token:
        raise UserError(f"serving on {host} needs a token: set the environment variable that --token-variable names")


def make_app(current: Callable[[], Served], *, token: str | None = None) -> "Starlette":
    """The ASGI application. Every request is answered by what `current` gives when its turn comes."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    lock = threading.Lock()  # the device does one thing at a time

    def answer(body: bytes) -> dict[str, Any]:
        with lock:
            served = current()
            prompts, samples, settings, wanted = read_request(served, body)
            repeated = [prompt for prompt in prompts for _ in range(samples)]
            found = complete(served.student, served.params, repeated, eos_id=served.tokenizer.eos_id, **settings)
        choices = [_choice(served.tokenizer, index, one, wanted) for index, one in enumerate(found)]
        return {
            "object": "text_completion",
            "model": served.name,
            "system_fingerprint": served.version,
            "choices": choices,
            "usage": {
                "prompt_tokens": sum(map(len, prompts)),
                "completion_tokens": sum(len(one.tokens) for one in found),
            },
        }

    def error(status: int, message: str) -> JSONResponse:
        return JSONResponse({"error": {"message": message}}, status)

    def allowed(request: Request) -> bool:
        given = request.headers.get("authorization", "")
        return token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    async def completions(request: Request) -> JSONResponse:
        if not allowed(request):
            return error(401, "this server needs its bearer token")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return error(413, f"a request has at most {MAX_BODY_BYTES} bytes")
        try:
            return JSONResponse(await asyncio.to_thread(answer, body))
        except (Refused, UserError) as refusal:
            return error(400, str(refusal))

    async def models(request: Request) -> JSONResponse:
        if not allowed(request):
            return error(401, "this server needs its bearer token")
        return JSONResponse({"object": "list", "data": [{"id": current().name, "object": "model"}]})

    return Starlette(routes=[Route("/v1/completions", completions, methods=["POST"]), Route("/v1/models", models)])


def read_request(served: Served, body: bytes) -> tuple[list[list[int]], int, dict[str, Any], bool]:
    """Prompts as token ids, samples of each, settings for `complete`, and whether tokens are wanted as ids. Raises
    `Refused`."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("the body is not JSON") from None
    if not isinstance(found, dict):
        raise Refused("the body is not a JSON object")
    if found.get("model", served.name) != served.name:
        raise Refused(f"no model {found['model']!r:.80}; this server has {served.name!r}")
    if found.get("stream") or found.get("stop"):
        raise Refused("stream and stop are not supported")
    prompts = _prompts(served, found.get("prompt"))
    samples = _number(found, "n", 1, 1, served.max_prompts, int)
    if len(prompts) * samples > served.max_prompts:
        raise Refused(f"{len(prompts)} prompts x {samples} samples; at most {served.max_prompts} a request")
    longest = max(map(len, prompts))
    max_new = _number(found, "max_tokens", 16, 1, served.max_tokens, int)
    if longest + max_new > served.max_tokens:
        raise Refused(f"{longest} prompt tokens and max_tokens {max_new}; together at most {served.max_tokens}")
    policy = Policy(
        temperature=_number(found, "temperature", 1.0, 0.0, 100.0, float),
        top_p=_optional(found, "top_p", float),
        top_k=_optional(found, "top_k", int),
        min_p=_optional(found, "min_p", float),
    )
    settings = {"max_new": max_new, "policy": policy, "seed": _number(found, "seed", 0, 0, 2**31 - 1, int)}
    return prompts, samples, settings, bool(found.get("return_tokens_as_token_ids"))


def _prompts(served: Served, given: Any) -> list[list[int]]:
    """A text, token ids, or a list of either."""
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    prompts = []
    for prompt in several:
        if isinstance(prompt, str) and prompt:
            prompt = encode_prompt(served.tokenizer, prompt, served.template)
        if not (isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt)):
            raise Refused("prompt is a text or a list of token ids, or a list of those; none may be empty")
        if not all(0 <= token < served.student.vocab_size for token in prompt):
            raise Refused(f"prompt has token ids outside 0..{served.student.vocab_size - 1}")
        if len(prompt) >= served.max_tokens:
            raise Refused(f"a prompt has {len(prompt)} tokens; fewer than {served.max_tokens} are served")
        prompts.append(prompt)
    return prompts


def _number(found: dict, name: str, default: Any, low: Any, high: Any, kind: type) -> Any:
    value = found.get(name, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int if kind is int else (int, float))
        or not low <= value <= high
    ):
        raise Refused(f"{name} is a number from {low} to {high}")
    return kind(value)


def _optional(found: dict, name: str, kind: type) -> Any:
    return None if found.get(name) is None else _number(found, name, None, -1e9, 1e9, kind)


def _choice(tokenizer: Tokenizer, index: int, one: Generated, as_ids: bool) -> dict[str, Any]:
    tokens = one.tokens.tolist()
    text = tokenizer.decode(tokens[:-1] if one.ended else tokens)
    names = [f"token_id:{token}" for token in tokens] if as_ids else [tokenizer.decode([token]) for token in tokens]
    return {
        "index": index,
        "text": text,
        "finish_reason": "stop" if one.ended else "length",
        "logprobs": {"tokens": names, "token_logprobs": [float(value) for value in one.logprobs]},
    }
