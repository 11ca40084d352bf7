"""`mixdistill serve WORKDIR`: a trained student behind an OpenAI-compatible completion endpoint."""

import argparse
import os
import socket
from pathlib import Path

from mixdistill.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("workdir", type=Path, help="of `mixdistill train`")
    parser.add_argument("--train-step", type=int, help="which checkpoint (default: the last)")
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
    from mixdistill.generation.server import Served, check_exposure, make_app
    from mixdistill.training.workdir import open_trained

    token = os.environ.get(args.token_variable)
    check_exposure(args.host, token)
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise UserError("serving needs starlette and uvicorn: pip install 'mixdistill[serve]'") from None
    trained = open_trained(args.workdir, train_step=args.train_step)
    served = Served(
        trained.student,
        trained.params,
        trained.tokenizer,
        args.name or args.workdir.resolve().name,
        f"{trained.identity.fingerprint[:12]}-{trained.train_step}",
        trained.template,
        max_tokens=args.max_tokens,
    )
    with _listen(args.host, args.port) as listening:
        host, port = listening.getsockname()[:2]
        print(f"{served.name} (weights {served.version}) at http://{host}:{port}/v1", flush=True)
        config = uvicorn.Config(make_app(served, token=token), log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port} ({error.strerror}); give another --port") from None
