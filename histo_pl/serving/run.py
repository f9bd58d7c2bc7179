"""Start of the server."""

import os
import socket
from ipaddress import ip_address
from pathlib import Path

from histo_pl.errors import UserError
from histo_pl.inference import Predictor
from histo_pl.interop.model_card import facts_of_card
from histo_pl.models.ensemble import load_original
from histo_pl.serving.limits import Limits
from histo_pl.signals import leave_stop_signals

TOKEN_VARIABLE = "HISTO_PL_TOKEN"  # an argument is seen by everybody on the machine
LEAST_TOKEN = 16  # characters
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
MOST_PORT = 65535
BACKLOG = 128  # connections that the system keeps waiting
GRACE = 10  # seconds for the requests under way when the server is stopped


def serve(
    checkpoint: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    limits: Limits | None = None,
) -> str:
    """Answer for uploaded tiles until the process is stopped.

    Args:
        checkpoint: A `best.ckpt`, a run's folder, `latest`, or the folder of a cross-validation.
        host: The address to listen on; any but this machine's own needs a token.
        port: The port; 0: a free one.
        token: What the API asks for; None: nothing.
        device: See `Predictor`.
        batch_size: See `Predictor`.
        limits: Of each request; None: the defaults.

    Returns:
        A farewell.

    Raises:
        UserError: An argument is not as expected, a package is missing, or the address cannot be listened on.
    """
    try:
        import uvicorn

        from histo_pl.serving.app import create_app
    except ModuleNotFoundError as error:
        raise UserError(
            f"The server needs FastAPI, uvicorn and python-multipart. Install them with pip install -e '.[serve]'. "
            f"Received: no module named {error.name}"
        ) from error
    token = token or os.environ.get(TOKEN_VARIABLE)
    _check_token(host, token)
    path, model = load_original(checkpoint)
    app = create_app(
        Predictor(model, device, batch_size),
        facts_of_card(path, model),
        limits,
        token,
        LOCAL_NAMES if _is_local(host) else (),
    )
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", timeout_graceful_shutdown=GRACE, server_header=False
    )
    with _listen(host, port) as listening:
        print(f"Model: {path}, trained on: {model.trained_on}", flush=True)
        print(f"Serving {_url(host, listening)} (Ctrl-C to stop)", flush=True)
        leave_stop_signals()
        uvicorn.Server(config).run(sockets=[listening])
    return "Stopped."


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_token(host: str, token: str | None) -> None:
    if token is None and not _is_local(host):
        raise UserError(
            f"Others could ask this server, and see what is sent to it. Expected --token, or {TOKEN_VARIABLE} in the "
            f"environment, with any host but this machine's own. Received: --host {host}"
        )
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"The token is too easy to guess. Expected at least {LEAST_TOKEN} printable ASCII characters, such as "
            f"those of python -c 'import secrets; print(secrets.token_urlsafe())'. Received: {len(token)} characters"
        )


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= MOST_PORT:
        raise UserError(f"The port is out of range. Expected 0 to {MOST_PORT}. Received: --port {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise UserError(
            f"This address cannot be listened on ({error}). Expected one of this machine and a free port, or --port 0. "
            f"Received: --host {host} --port {port}"
        ) from error
    return listening


def _url(host: str, listening: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
