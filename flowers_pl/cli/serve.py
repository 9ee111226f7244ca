"""`serve`: a page for people and a service for programs."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from flowers_pl.cli.options import run_function
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.names import RUNS
from flowers_pl.data.formats import Limits
from flowers_pl.training.checkpoint_files import newest_best, read_checkpoint

TOKEN = "FLOWERS_PL_TOKEN"
PACKAGES = ("fastapi", "fastapi_offline", "gradio", "python_multipart", "uvicorn")


def serve(
    ckpt_path: str | None = None,
    exported: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    names: list[str] | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    max_bytes: int = 64 * 2**20,
    max_pixels: int = Limits.max_pixels,
    max_files: int = 64,
    max_requests: int = 64,
) -> None:
    """Show a page and answer requests until SIGTERM or Ctrl-C.

    Args:
        ckpt_path: the checkpoint; null for the newest best.ckpt.
        exported: a .onnx, .pt2 or .pte that export wrote, in place of a checkpoint; only the .onnx of
            --format web has heat maps.
        host: the address to listen at; any but this machine's own needs a token.
        port: the port; 0 for any that is free.
        token: what every request must show, at least 16 characters; better given as FLOWERS_PL_TOKEN in the
            environment, which other users of the machine cannot see.
        names: further names by which the server is reached, such as that of a proxy before it.
        certfile: a certificate as a PEM file, for https.
        keyfile: its key, where the PEM file has none.
        max_bytes: most bytes that a request may have.
        max_pixels: most pixels that a picture may have; a JPEG of up to 12 times as many is read at a reduced
            scale.
        max_files: most pictures that a request may have.
        max_requests: most classifications under way at a time; half as many from one address.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise FlowersError(f"{missing[0]} must be installed for this; run: pip install 'flowers_pl[serve]'.")
    if ckpt_path is not None and exported is not None:
        raise FlowersError("--exported takes the place of --ckpt_path; give one of them.")
    for option, given, least in (
        ("port", port, 0),
        ("max_bytes", max_bytes, 1),
        ("max_pixels", max_pixels, 1),
        ("max_files", max_files, 1),
        ("max_requests", max_requests, 1),
    ):
        if given < least:
            raise FlowersError(f"--{option} must be at least {least}, not {given}.")
    if port > 65535:
        raise FlowersError(f"--port must be at most 65535, not {port}.")
    token = token if token is not None else os.environ.get(TOKEN) or None

    from flowers_pl.serving.access import check_token

    check_token(token, host)  # before what takes seconds
    if exported is None:
        path = Path(ckpt_path) if ckpt_path else newest_best(RUNS)
        read_checkpoint(path)
    else:
        path = Path(exported)
    from flowers_pl.serving import models, server
    from flowers_pl.serving.guard import RequestLimits

    open_model = models.open_checkpoint if exported is None else models.open_exported
    server.serve(
        lambda: open_model(path),
        server.Place(host, port, token, names or [], certfile, keyfile),
        RequestLimits(max_bytes, max_files, max_requests),
        Limits(max_pixels=max_pixels, max_bytes=max_bytes),
    )


def run(args: list[str]) -> None:
    """Run the subcommand."""
    run_function(serve, args)
