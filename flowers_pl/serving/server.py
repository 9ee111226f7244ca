"""Run the service and the page until a signal ends them."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from flowers_pl.core.errors import FlowersError
from flowers_pl.core.screen import show
from flowers_pl.data.formats import Limits, set_limits
from flowers_pl.serving.access import Access, check_token
from flowers_pl.serving.connections import Connection
from flowers_pl.serving.engine import Engine
from flowers_pl.serving.guard import Guard, RequestLimits
from flowers_pl.serving.models import ServedModel
from flowers_pl.serving.page import add_page
from flowers_pl.serving.service import Loaded, make_service

log = logging.getLogger(__name__)
LAST_SECONDS = 30  # that requests under way may take after SIGTERM


@dataclass(frozen=True)
class Place:
    """Where a server listens, and to whom.

    Args:
        host: address or name.
        port: 0 for any that is free.
        token: that every request must show; None for none.
        names: further names by which the server is reached.
        certfile: certificate for https; None for http.
        keyfile: its key, where that is a file of its own.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    names: Sequence[str] = ()
    certfile: str | None = None
    keyfile: str | None = None


def serve(
    open_model: Callable[[], ServedModel], place: Place, limits: RequestLimits, photo_limits: Limits
) -> None:
    """Listen, load the model, print the address, and answer until SIGTERM or Ctrl-C.

    Requests under way are then finished, and the signal is raised again.

    Args:
        open_model: loads the model.
        place: where to listen.
        limits: of requests.
        photo_limits: of each picture.

    Raises:
        FlowersError: the address cannot be listened at, or the model cannot be loaded.
    """
    check_token(place.token, place.host)
    check_certificate(place)
    set_limits(photo_limits)
    loaded = Loaded()
    access = Access(place.host, place.token, place.names, secure=place.certfile is not None)
    app = Guard(add_page(make_service(loaded, limits), limits), access, limits)
    config = uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # or a client could choose the address that is counted for it
        ws="none",
        timeout_graceful_shutdown=LAST_SECONDS,
        ssl_certfile=place.certfile,
        ssl_keyfile=place.keyfile,
    )
    server, failures = uvicorn.Server(config), list[BaseException]()
    with _listen(place) as listener:
        address = _address(place, listener.getsockname()[1])

        def load() -> None:
            try:
                loaded.engine = Engine(open_model())
                show(address)
            except BaseException as error:  # raised again below
                failures.append(error)
                server.should_exit = True

        loading = threading.Thread(target=load, name="load", daemon=True)
        loading.start()
        try:
            server.run(sockets=[listener])
        finally:
            loading.join(LAST_SECONDS)
            if loaded.engine is not None:
                loaded.engine.close()
    if failures:
        raise failures[0]


def _listen(place: Place) -> socket.socket:
    """Open the socket, so that a mistake is one sentence.

    Raises:
        FlowersError: it cannot be opened.
    """
    try:
        found = socket.getaddrinfo(place.host.strip("[]"), place.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
        return socket.create_server(where[:2], family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise FlowersError(
            f"--host {place.host} --port {place.port}: cannot listen there ({reason}); choose another port,"
            " or 0 for any that is free."
        ) from error


def _address(place: Place, port: int) -> str:
    """Return the address to open: of this machine where all addresses are listened at."""
    scheme = "http" if place.certfile is None else "https"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(place.host, place.host).strip("[]")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def check_certificate(place: Place) -> None:
    """Refuse a certificate that https cannot be spoken with.

    Raises:
        FlowersError: names the option.
    """
    if place.keyfile is not None and place.certfile is None:
        raise FlowersError("--keyfile needs --certfile; give both.")
    for option, file in (("certfile", place.certfile), ("keyfile", place.keyfile)):
        if file is not None and not Path(file).is_file():
            raise FlowersError(f"--{option}: there is no file {file!r}; give a PEM file.")
    if place.certfile is not None:
        import ssl

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(place.certfile, place.keyfile)
        except (OSError, ssl.SSLError) as error:
            raise FlowersError(
                f"--certfile {place.certfile!r} cannot be used ({error}); give a PEM file with its key, or"
                " --keyfile too."
            ) from error
