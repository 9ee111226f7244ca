"""A server on this machine for the tests, with a model whose answers differ from picture to picture."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import torch
import uvicorn
from PIL import Image

from flowers_pl.data.decoding import load_photo
from flowers_pl.data.drawings import KINDS, draw_flower
from flowers_pl.explain.activation_maps import class_activation_maps
from flowers_pl.network.mobilenet import start_from_nothing
from flowers_pl.network.novelty import Novelty
from flowers_pl.runs.judgement import Judgement
from flowers_pl.serving.access import Access
from flowers_pl.serving.connections import Connection
from flowers_pl.serving.engine import Engine
from flowers_pl.serving.guard import Guard, RequestLimits
from flowers_pl.serving.models import ServedModel
from flowers_pl.serving.page import add_page
from flowers_pl.serving.service import Loaded, make_service
from flowers_pl.training.classifier import FlowerClassifier

SIZE = 32
LIMITS = RequestLimits()
TOKEN = "a-token-of-the-tests-0123456789"


def encoded(picture: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """The bytes of a picture's file."""
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return stream.getvalue()


def drawing(seed: int, kind: str = "rose", size: int = 64) -> bytes:
    """The bytes of a drawing as PNG."""
    return encoded(draw_flower(kind, seed, size))


def parts(*pictures: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Parts of a form, as httpx takes them."""
    return [("files", (f"{number}.png", data)) for number, data in enumerate(pictures)]


def classifier(size: int = SIZE) -> FlowerClassifier:
    """A model with a novelty score, untrained but with measured batch norm."""
    model = FlowerClassifier(weights=None)
    model.build(["daisy", "rose", "tulip"], image_size=size)
    drawings = torch.stack(
        [load_photo(draw_flower(kind, seed, 48), size) for kind in KINDS for seed in range(12)]
    )
    start_from_nothing(model.network, drawings)
    with torch.no_grad():
        features = model.eval().network.features(drawings)
    model.novelty = Novelty.fit(features[::2], features[1::2])
    return model


def served(model: FlowerClassifier) -> ServedModel:
    """The model as it is served, computed plainly."""

    @torch.inference_mode()
    def compute(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features = model.network.features(photos)
        assert model.novelty is not None
        return model.network.head(features).softmax(1), model.novelty(features)

    return ServedModel(
        "test-run",
        model.classes,
        SIZE,
        Judgement(0.9, "50 drawings"),
        16,
        compute,
        lambda photos, targets: class_activation_maps(model, photos, targets),
    )


@contextmanager
def running(
    model: ServedModel | None,
    limits: RequestLimits = LIMITS,
    token: str | None = None,
    host: str = "127.0.0.1",
    page: bool = False,
    **client: Any,
) -> Iterator[httpx.Client]:
    """Yield a client of a server in this process; with `model` None it is loading for ever."""
    loaded = Loaded()
    loaded.engine = None if model is None else Engine(model, threads=2)
    service = make_service(loaded, limits)
    app = Guard(add_page(service, limits) if page else service, Access(host, token), limits)
    config = uvicorn.Config(app, port=0, http=Connection, log_config=None, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, **client) as session:
            yield session
    finally:
        server.should_exit = True
        thread.join()
        if loaded.engine is not None:
            loaded.engine.close()


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a process of `python -m flowers_pl serve` and the address that it prints."""
    command = [sys.executable, "-m", "flowers_pl", "serve", "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http"), process.communicate()
        yield process, address
    finally:
        process.kill()
        process.communicate()


def without(model: ServedModel, **changes: Any) -> ServedModel:
    """The model with other fields."""
    return replace(model, **changes)


def refused(answer: httpx.Response, status: int) -> str:
    """The sentence of a refusal, which has every header that protects."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    protected(answer)
    return answer.json()["error"]


def protected(answer: httpx.Response) -> None:
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers.get_list("x-frame-options") == ["DENY"]
