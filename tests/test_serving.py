"""`serving`: what is answered, by an engine that computes the pictures of many requests together."""

from __future__ import annotations

import base64
import csv
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from serving import SIZE, classifier, drawing, encoded, parts, running, served, without

import flowers_pl
from flowers_pl import FlowerClassifier, export_onnx, main
from flowers_pl.runs.judgement import judgement_of
from flowers_pl.serving import engine as engine_module
from flowers_pl.serving.engine import FAILED, Engine
from flowers_pl.serving.models import ServedModel, open_checkpoint, open_exported

RUN = Path(__file__).parent / "data" / "run-0.1.0"
KEYS = ["file", "label", "probabilities", "unlike", "unknown", "heatmap", "error"]
ROSE, TULIP = drawing(1), drawing(2, "tulip", 48)


@pytest.fixture(scope="module")
def model() -> FlowerClassifier:
    return classifier()


@pytest.fixture(scope="module")
def plain(model: FlowerClassifier) -> ServedModel:
    return served(model)


@pytest.fixture(scope="module")
def client(plain: ServedModel) -> Iterator[httpx.Client]:
    with running(plain) as session:
        yield session


# ---------------------------------------------------------------- the engine


def test_pictures_get_the_answers_of_the_model(model: FlowerClassifier, plain: ServedModel) -> None:
    pictures = [drawing(seed, kind) for kind in ("daisy", "rose") for seed in range(20)]
    engine = Engine(plain, threads=2)
    answers = [one.result() for one in [engine.submit(picture) for picture in pictures]]
    engine.close()
    scores = model.unlikeness(pictures)
    assert scores is not None
    for answer, expected, score in zip(answers, model.classify(pictures), scores, strict=True):
        assert answer.probabilities == pytest.approx(expected, abs=1e-5)
        assert list(answer.probabilities) == list(expected)  # descending
        assert answer.unlike == pytest.approx(score, rel=1e-4)
        assert (answer.label, answer.unknown) == (next(iter(expected)), score > 1)


def test_what_waits_is_computed_together_and_a_lone_picture_at_once(plain: ServedModel) -> None:
    sizes: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def compute(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        sizes.append(len(photos))
        begun.set()
        assert go_on.wait(20)
        return plain.compute(photos)

    engine = Engine(without(plain, compute=compute, part=4), threads=1)
    waiting = [engine.submit(ROSE)]
    assert begun.wait(20)
    waiting += [engine.submit(ROSE) for _ in range(10)]
    go_on.set()
    assert {one.result().label for one in waiting} == {waiting[0].result().label}
    engine.close()
    assert sizes == [1, 4, 4, 2]


def test_while_others_are_computed_pictures_wait_a_moment_for_more(
    plain: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def compute(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        sizes.append(len(photos))
        if len(sizes) == 1:  # the second thread goes on meanwhile
            begun.set()
            assert go_on.wait(20)
        return plain.compute(photos)

    monkeypatch.setattr(engine_module, "GATHER", 60.0)
    engine = Engine(without(plain, compute=compute, part=3), threads=2)
    waiting = [engine.submit(ROSE)]
    assert begun.wait(20)
    for _ in range(3):
        waiting.append(engine.submit(ROSE))
        time.sleep(0.02)
    assert [one.result(20).label for one in waiting[1:]] == [waiting[1].result().label] * 3
    monkeypatch.setattr(engine_module, "GATHER", 0.01)
    waiting.append(engine.submit(ROSE))  # no others come, and it does not wait for them for long
    assert waiting[4].result(20).label == waiting[1].result().label
    assert not waiting[0].done()
    go_on.set()
    engine.close()
    assert sizes == [1, 3, 1]


def test_a_closed_engine_answers_what_waits_and_takes_no_more(plain: ServedModel) -> None:
    engine = Engine(plain, threads=2)
    waiting = [engine.submit(ROSE) for _ in range(50)]
    engine.close()
    assert all(one.done() and one.result().label for one in waiting)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(ROSE)


def test_the_unforeseen_costs_one_picture_its_answer(
    plain: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def compute(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if (photos.flatten(1) == 255).all(1).any():
            raise ValueError("white")
        return plain.compute(photos)

    engine = Engine(without(plain, compute=compute), threads=1)
    white = encoded(Image.new("RGB", (SIZE, SIZE), "white"))
    waiting = [engine.submit(data) for data in (ROSE, white, TULIP)]
    errors = [one.result().error for one in waiting]
    engine.close()
    assert errors == [None, FAILED, None]
    assert "could not be classified" in caplog.text


# ---------------------------------------------------------------- the service


def test_answers_are_in_the_order_sent_and_say_what_cannot_be_read(
    client: httpx.Client, model: FlowerClassifier
) -> None:
    names = ["a.png", "Rosé 玫瑰.png", "words.txt"]
    files = [("files", (name, one)) for name, one in zip(names, [TULIP, ROSE, b"words"], strict=True)]
    answer = client.post("/classify", files=files)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [list(one) for one in results] == [KEYS] * 3
    assert [one["file"] for one in results] == names
    for one, picture in zip(results[:2], (TULIP, ROSE), strict=True):
        assert one["probabilities"] == pytest.approx(model.classify(picture), abs=1e-5)
        assert one["label"] == next(iter(model.classify(picture)))
        assert one["unlike"] == pytest.approx(model.unlikeness(picture), rel=1e-4)
        assert one["unknown"] is (one["unlike"] > 1)
        assert one["error"] is one["heatmap"] is None
    assert results[2] == dict.fromkeys(KEYS) | {
        "file": "words.txt",
        "probabilities": {},
        "error": "not a picture in a known format",
    }


def test_422_where_no_picture_can_be_read(client: httpx.Client) -> None:
    answer = client.post("/classify", files=parts(b"words", b""))
    assert answer.status_code == 422
    assert [one["error"] for one in answer.json()["results"]] == [
        "not a picture in a known format",
        "empty file",
    ]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"content": ROSE}, "is not a multipart form"),
        ({"data": {"files": "/etc/passwd"}}, "is not a multipart form"),
        ({"files": {"photos": ("a.png", ROSE)}}, "no file in a part called 'files'"),
        ({"json": {"files": [{"path": "/etc/passwd"}]}}, "is not a multipart form"),
        ({"files": parts(ROSE), "params": {"heatmap": "perhaps"}}, "heatmap must be true or false"),
    ],
)
def test_what_is_no_form_of_files_is_one_sentence(
    client: httpx.Client, request_: dict[str, object], said: str
) -> None:
    answer = client.post("/classify", **request_)  # type: ignore[arg-type]
    assert (answer.status_code, list(answer.json())) == (422, ["error"])
    assert said in answer.json()["error"]


def test_the_heat_map_is_that_of_the_predicted_class(client: httpx.Client, plain: ServedModel) -> None:
    from matplotlib import colormaps

    answer = client.post("/classify", params={"heatmap": "true"}, files=parts(ROSE, b"words", TULIP))
    rose, words, _ = answer.json()["results"]
    assert words["heatmap"] is None
    with Image.open(io.BytesIO(base64.b64decode(rose["heatmap"]))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (SIZE, SIZE))
        pixels = np.asarray(picture)
    assert plain.explain is not None
    photos = flowers_pl.load_photo(ROSE, SIZE)[None]
    (heat,) = plain.explain(photos, [plain.classes.index(rose["label"])])
    assert np.array_equal(pixels, colormaps["turbo"](heat, bytes=True)[..., :3])


def test_a_model_without_novelty_or_maps_answers_null(plain: ServedModel) -> None:
    bare = without(plain, compute=lambda photos: (plain.compute(photos)[0], None), explain=None)
    with running(bare) as client:
        (one,) = client.post("/classify?heatmap=true", files=parts(ROSE)).json()["results"]
    assert one["label"] is not None
    assert [one[key] for key in ("unlike", "unknown", "heatmap", "error")] == [None] * 4


def test_requests_at_the_same_time_each_get_their_own_answers(
    client: httpx.Client, model: FlowerClassifier
) -> None:
    pictures = [drawing(seed, kind, 40 + seed) for kind in ("daisy", "tulip") for seed in range(12)]
    expected = model.classify(pictures)

    def ask(number: int) -> bool:
        index = number % len(pictures)
        (one,) = client.post("/classify", files=parts(pictures[index])).json()["results"]
        return one["probabilities"] == pytest.approx(expected[index], abs=1e-5)

    with ThreadPoolExecutor(12) as clients:
        assert all(clients.map(ask, range(120)))


def test_health_and_model(client: httpx.Client, plain: ServedModel) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/model").json() == {
        "name": "test-run",
        "classes": plain.classes,
        "image_size": SIZE,
        "accuracy": 0.9,
        "judged_on": "50 drawings",
        "version": flowers_pl.__version__,
    }


def test_503_while_the_model_is_being_loaded() -> None:
    with running(None) as client:
        assert (client.get("/health").status_code, client.get("/health").json()["status"]) == (503, "loading")
        for answer in (client.get("/model"), client.post("/classify", files=parts(ROSE))):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "being loaded" in answer.json()["error"]


def test_the_openapi_description_says_what_is_sent_and_answered(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/classify", "/health", "/model"}
    form = paths["/classify"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["files"]
    assert set(paths["/classify"]["post"]["responses"]) == {"200", "413", "422", "429", "503"}


def test_the_docs_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text.replace(str(client.base_url), "")
    assert "https://" not in page.text
    for file in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/static-offline-docs/{file}" in page.text
        assert client.get(f"/static-offline-docs/{file}").status_code == 200


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("judges", ["as it is", "with mirror images and a temperature"])
def test_a_checkpoint_answers_as_predict_does(judges: str, tmp_path: Path) -> None:
    table, photos, ckpt = tmp_path / "predictions.csv", RUN / "drawings", tmp_path / "best.ckpt"
    state = torch.load(RUN / "best.ckpt", weights_only=True)
    if judges != "as it is":
        state["hyper_parameters"]["flip_test"] = True
        state["flowers_pl"]["temperature"] = {"value": 2.5, "photos": 9}
    torch.save(state, ckpt)
    assert main(["predict", f"--ckpt_path={ckpt}", f"--data.predict_root={photos}", f"--out={table}"]) == 0
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    engine = Engine(open_checkpoint(ckpt), threads=2)
    answers = [one.result() for one in [engine.submit((photos / row["path"]).read_bytes()) for row in rows]]
    engine.close()
    for row, answer in zip(rows, answers, strict=True):
        assert answer.label == row["label"]
        for name, share in answer.probabilities.items():
            assert share == pytest.approx(float(row[name]), abs=2e-6), row["path"]
    plain = FlowerClassifier.load(RUN / "best.ckpt").classify(photos / rows[0]["path"])
    assert (answers[0].probabilities == pytest.approx(plain, abs=0.01)) == (judges == "as it is")


@pytest.mark.release
def test_an_exported_file_answers_without_maps(model: FlowerClassifier, tmp_path: Path) -> None:
    export_onnx(model, tmp_path / "final.onnx")
    opened = open_exported(tmp_path / "final.onnx")
    assert (opened.name, opened.classes, opened.explain) == ("final", model.classes, None)
    engine = Engine(opened, threads=2)
    answer = engine.submit(ROSE, heat=True).result()
    engine.close()
    assert answer.probabilities == pytest.approx(model.classify(ROSE), abs=1e-4)
    assert (answer.unlike, answer.unknown, answer.heat) == (None, None, None)


def test_how_good_a_model_is_comes_from_the_measurement_of_its_weights(tmp_path: Path) -> None:
    assert judgement_of(tmp_path, {"step": 5}) == (None, None)
    found = {"step": 5, "accuracy": 0.75, "photos": 1200, "judged": "validation images"}
    exports = {"step": 5, "files": {}, "results": {k: v for k, v in found.items() if k != "step"}}
    (tmp_path / "exports.json").write_text(json.dumps(exports))
    assert judgement_of(tmp_path, {"step": 5}) == judgement_of(tmp_path) == (0.75, "1,200 validation images")
    (tmp_path / "test.json").write_text(json.dumps(found | {"accuracy": 0.8}))
    assert judgement_of(tmp_path, {"step": 5}).accuracy == 0.8
    assert judgement_of(tmp_path, {"step": 6}) == (None, None)  # of other weights
