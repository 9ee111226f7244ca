"""`classify` and `unlikeness` take paths, bytes, files, PIL images, arrays, and lists of these."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_decoding import encoded

from flowers_pl import FlowerClassifier, FlowersError, draw_flower, load_photo
from flowers_pl.data.batches import Batch
from flowers_pl.data.drawings import KINDS
from flowers_pl.network.mobilenet import start_from_nothing
from flowers_pl.network.novelty import Novelty

ROSE, TULIP = draw_flower("rose", 1, 64), draw_flower("tulip", 2, 48)


@pytest.fixture(scope="module")
def model() -> FlowerClassifier:
    """A model whose answers differ from photo to photo: batch norm has been measured."""
    model = FlowerClassifier(weights=None)
    model.build(["daisy", "rose", "tulip"], image_size=32)
    drawings = torch.stack(
        [load_photo(draw_flower(kind, seed, 48), 32) for kind in KINDS for seed in range(12)]
    )
    start_from_nothing(model.network, drawings)
    with torch.no_grad():
        features = model.eval().network.features(drawings)
    model.novelty = Novelty.fit(features[::2], features[1::2])
    return model


def test_predict_computes_the_head_in_float32_at_any_precision(model: FlowerClassifier) -> None:
    """As `test`, which has the same features, and the temperature's fit do."""
    features = 10 * torch.randn(6, 1280, generator=torch.Generator().manual_seed(0)).relu()
    rows = torch.arange(6)
    batch = Batch(torch.empty(0), torch.full((6,), -1), rows, 6, features=features)
    expected = model.predict_step(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.predict_step(batch, 0)
    assert torch.equal(found.probabilities, expected.probabilities)
    assert found.unlike is not None
    assert expected.unlike is not None
    assert torch.equal(found.unlike, expected.unlike)


def forms(folder: Path, picture: Image.Image) -> dict[str, Any]:
    """A picture in all forms in which people have it."""
    file, data = folder / "picture.png", encoded(picture, "PNG")
    mirrored = np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    file.write_bytes(data)
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        archive.writestr("picture.png", data)
    read_to_its_end = io.BytesIO(data)
    read_to_its_end.read()
    return {
        "path": file,
        "name": str(file),
        "bytes": data,
        "memoryview": memoryview(data),
        "file": file.open("rb"),
        "unbuffered file": file.open("rb", buffering=0),
        "stream": read_to_its_end,
        "member of an archive": zipfile.ZipFile(folder / "pictures.zip").open("picture.png"),
        "PIL image": picture,
        "PIL image of a file": Image.open(file),
        "array": np.asarray(picture),
        "array that is not contiguous": mirrored[:, ::-1],
    }


def test_every_form_of_a_photo_gives_the_same(model: FlowerClassifier, tmp_path: Path) -> None:
    expected, score = model.classify(forms(tmp_path, ROSE)["path"]), None
    for name, photo in forms(tmp_path, ROSE).items():
        assert model.classify(photo) == expected, name
        score = model.unlikeness(photo) if score is None else score
        assert model.unlikeness(photo) == score, name  # an open file is read from its start again
    assert list(expected.values()) == sorted(expected.values(), reverse=True)
    assert score is not None


def test_a_list_gives_what_its_photos_give_one_by_one(model: FlowerClassifier, tmp_path: Path) -> None:
    photos = [*forms(tmp_path, ROSE).values(), TULIP, np.asarray(TULIP.convert("L"))]
    for many in (photos * 6, tuple(photos), photos[:1]):  # the first is more than a batch
        together, scores = model.classify(many), model.unlikeness(many)
        assert isinstance(scores, list)
        assert len(together) == len(scores) == len(many)
        for photo, probabilities, score in zip(many[-14:], together[-14:], scores[-14:], strict=True):
            assert probabilities == pytest.approx(model.classify(photo), abs=1e-5)
            assert score == pytest.approx(model.unlikeness(photo), rel=1e-4)
    assert model.classify([]) == []
    assert model.unlikeness([]) == []


def test_grey_transparent_and_turned_pictures_are_read_as_their_files_are(model: FlowerClassifier) -> None:
    alpha = ROSE.copy()
    alpha.putalpha(ROSE.convert("L"))
    grey, exif = ROSE.convert("L"), Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(encoded(ROSE, "PNG", exif=exif)))
    for picture, data in ((alpha, encoded(alpha, "PNG")), (turned, encoded(ROSE, "PNG", exif=exif))):
        assert model.classify(picture) == model.classify(data) != model.classify(ROSE)
    for picture in (alpha, grey):
        assert model.classify(np.asarray(picture)) == model.classify(encoded(picture, "PNG"))


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        (
            np.zeros((32, 32, 3)),
            r"Photo 1 of 1 cannot be read: is an array of float64 \(32, 32, 3\), not",
        ),
        (np.zeros((2, 32, 32, 3), np.uint8), r"array of uint8 \(2, 32, 32, 3\)"),
        (np.zeros((3, 32, 32), np.uint8), r"array of uint8 \(3, 32, 32\)"),
        (np.zeros((0, 32, 3), np.uint8), "array of uint8"),
        (b"", "empty file"),
        (b"no picture", "not a picture in a known format"),
        (io.StringIO("words"), "text mode; open it with mode 'rb'"),
        (None, "is a NoneType, not a path, bytes, file, PIL image or array"),
        (3, "is a int, not a path"),
        ("absent\x1b.jpg", r"absent\\+x1b.jpg' cannot be read: does not exist"),
        (Image.new("F", (9, 9)), "floating-point pixels"),
        (Image.new("I", (9, 9)), "32-bit pixels"),
    ],
)
def test_what_is_no_photo_is_one_sentence(model: FlowerClassifier, photo: Any, reason: str) -> None:
    with pytest.raises(FlowersError, match=reason):
        model.classify(photo)


def test_the_photo_at_fault_is_named(model: FlowerClassifier) -> None:
    with pytest.raises(FlowersError, match="Photo 2 of 3 cannot be read: empty file"):
        model.unlikeness([ROSE, b"", TULIP])
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(FlowersError, match="closed file"):
        model.classify(closed)


def test_an_image_of_the_user_is_not_changed(model: FlowerClassifier) -> None:
    alpha = ROSE.convert("RGBA")
    before = alpha.tobytes()
    model.classify(alpha)
    assert (alpha.mode, alpha.tobytes()) == ("RGBA", before)
