"""`intaglio serve`: its options, what it needs, and the socket that it listens on."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.names import CHECKED_ENGINES, HARDWARE_ENGINES
from intaglio.runtime.folder_options import announce, folder_arguments, loaded
from intaglio.runtime.judge.defaults import HARDWARE_TOKENS
from intaglio.runtime.terminal import progress_line, say, warn

if TYPE_CHECKING:
    import socket

    from intaglio.runtime.chip import Chip
    from intaglio.runtime.text.chat import ChatTemplate

HOST, PORT = "127.0.0.1", 8000
USERS, QUEUE = 4, 64
LARGEST_BODY = 1 << 20
GRACE = 10
_CONNECTIONS = 1024
_PACKAGES = ("jinja2", "starlette", "uvicorn")
_LOCAL = ("127.", "::1", "localhost")


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    folder_arguments(parser)
    parser.add_argument(
        "--host", default=HOST, help=f"address to listen on; else {HOST}, for this machine alone"
    )
    parser.add_argument("--port", metavar="N", type=int, default=PORT, help="0: a free one")
    parser.add_argument("--engine", choices=CHECKED_ENGINES, default=CHECKED_ENGINES[0])
    parser.add_argument(
        "--users",
        metavar="N",
        type=int,
        help=f"requests that take turns; else {USERS}, on hardware 1",
    )
    parser.add_argument(
        "--queue", metavar="N", type=int, default=QUEUE, help=f"requests that wait; else {QUEUE}"
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=int, help="of an answer; else what the context holds"
    )
    parser.add_argument(
        "--max-body",
        metavar="BYTES",
        type=int,
        default=LARGEST_BODY,
        help=f"of a request; else {LARGEST_BODY}",
    )
    parser.add_argument(
        "--name", help="of the base to clients; else the folder's. Adapters have their own"
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="in Jinja; else chat_template.jinja or tokenizer_config.json beside the model",
    )
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=int,
        default=GRACE,
        help=f"to finish answers in, when the server is to end; else {GRACE}",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    _check(args)
    _check_installed()
    import uvicorn

    from intaglio.runtime.serve.app import App
    from intaglio.runtime.serve.engine import Engine
    from intaglio.runtime.serve.metrics import Metrics
    from intaglio.runtime.serve.models import Models
    from intaglio.runtime.text.session import open_session

    chip = loaded(args)
    on_hardware = args.engine in HARDWARE_ENGINES
    users = args.users if args.users is not None else 1 if on_hardware else USERS
    name = args.name or Path(args.out).resolve().name
    template = _template(args, chip)
    models = Models(chip, args.engine, name, template, args.max_tokens)
    for warning in chip.end_tokens.warnings:
        warn(warning)
    announce(args, chip, HARDWARE_TOKENS)
    metrics = Metrics()
    metrics.set("info", 1, model=name, engine=args.engine, target=chip.program.machine.name)
    with closing(_listening(args.host, args.port)) as listener:
        with progress_line() as progress:
            progress("loading the model")
            engine = Engine(chip, args.engine, users, args.queue, metrics)
            if not on_hardware:
                # Kernels are compiled when they are first used.
                list(open_session(chip).steps([0]))
        local = args.host.startswith(_LOCAL)
        app = App(models, engine, metrics, largest_body=args.max_body, only_local=local)
        config = uvicorn.Config(
            app.asgi(),
            log_level="warning",
            access_log=False,
            lifespan="on",
            http="h11",
            ws="none",
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=args.grace,
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        chat = "" if template is not None else "; no chat template: text completions only"
        say(f"serving {', '.join(models)} on http://{shown}:{port}/v1{chat}\n")
        if not local:
            warn("whoever reaches this address may use the model: there are no keys")
        if chip.edited:
            warn(f"edited since the compile: {', '.join(chip.edited)}")
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _check(args: argparse.Namespace) -> None:
    """Whether the numbers can be used.

    Raises:
        UserError: names the one that cannot.
    """
    for name, low, high in (
        ("port", 0, 65535),
        ("users", 1, 4096),
        ("queue", 0, 1 << 20),
        ("max_tokens", 1, 1 << 31),
        ("max_body", 1, 1 << 31),
        ("grace", 0, 1 << 20),
    ):
        value: int | None = getattr(args, name)
        if value is not None and not low <= value <= high:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {value}: not a number from {low} to {high}")


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"intaglio serve needs {' and '.join(missing)}, which is not installed",
            hint="pip install 'intaglio[serve]'",
        )


def _template(args: argparse.Namespace, chip: Chip) -> ChatTemplate | None:
    from intaglio.runtime.text.chat import template_beside, template_in

    if args.chat_template is not None:
        return template_in(Path(args.chat_template), chip.model)
    return template_beside(chip.model)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the address cannot be used.
    """
    # Not at the start of every other command.
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: {error}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        raise UserError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            hint="another --port, or 0 for a free one",
        ) from error
    return made
