"""`mixdistill serve WORKDIR`: a trained student behind an OpenAI-compatible completion endpoint."""

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mixdistill.errors import UserError

if TYPE_CHECKING:
    from mixdistill.generation.server import Served


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("workdir", type=Path, help="of `mixdistill train`")
    parser.add_argument("--train-step", type=int, help="which checkpoint (default: the last)")
    parser.add_argument(
        "--follow", action="store_true", help="answer by the newest checkpoint, as the run that writes them goes on"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, loopback)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument("--name", help="the model's name in requests (default: the workdir's)")
    parser.add_argument(
        "--token-variable",
        default="MIXDISTILL_SERVE_TOKEN",
        metavar="NAME",
        help="environment variable with the bearer token; needed off loopback (default: %(default)s)",
    )
    parser.add_argument("--max-tokens", type=int, default=4096, help="prompt and completion (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; 0."""
    from mixdistill.generation.server import check_exposure, make_app

    token = os.environ.get(args.token_variable)
    check_exposure(args.host, token)
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise UserError("serving needs starlette and uvicorn: pip install 'mixdistill[serve]'") from None
    newest = Newest(args.workdir, args.name, args.max_tokens, args.train_step)
    with _listen(args.host, args.port) as listening:
        host, port = listening.getsockname()[:2]
        print(f"{newest.served.name} (weights {newest.served.version}) at http://{host}:{port}/v1", flush=True)
        current = newest if args.follow else lambda: newest.served
        config = uvicorn.Config(make_app(current, token=token), log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])
    return 0


class Newest:
    """What is served of a workdir: the checkpoint that was asked for, and when called, the newest there is by then."""

    def __init__(self, workdir: Path, name: str | None, max_tokens: int, train_step: int | None):
        self._workdir, self._max_tokens = workdir, max_tokens
        self._name = name or workdir.resolve().name
        self.served = self._open(train_step)

    def __call__(self) -> "Served":
        from mixdistill.training.checkpoint import saved_train_steps

        newest = saved_train_steps(self._workdir)[-1:]
        if newest and newest[0] > self._train_step:
            try:
                self.served = self._open(newest[0])
            except (OSError, ValueError) as error:  # a run keeps few checkpoints, and deletes while we read
                print(f"still weights {self.served.version}: {error}", file=sys.stderr, flush=True)
        return self.served

    def _open(self, train_step: int | None) -> "Served":
        from mixdistill.generation.server import Served
        from mixdistill.training.workdir import open_trained

        found = open_trained(self._workdir, train_step=train_step)
        self._train_step = found.train_step
        version = f"{found.identity.fingerprint[:12]}-{found.train_step}"
        limits = {"template": found.template, "max_tokens": self._max_tokens}
        return Served(found.student, found.params, found.tokenizer, self._name, version, **limits)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port} ({error.strerror}); give another --port") from None
