"""export/: files agree with the model, resize and network apart; foreign files are refused."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.decoding import load_photo, read_photo, resize_photo
from flowers_pl.data.drawings import draw_flower
from flowers_pl.export import write
from flowers_pl.export.load import Exported
from flowers_pl.export.pt2_check import _EXPRESSION
from flowers_pl.export.quantize import check_pair_sums, quantize_int8
from flowers_pl.export.verify import Agreement, accuracy_loss, check_export
from flowers_pl.export.write import export_onnx, export_torch
from flowers_pl.network.mobilenet import start_from_nothing
from flowers_pl.network.weights import load_weights
from flowers_pl.training.classifier import FlowerClassifier

CLASSES = ["daisy", "dandelion", "rose", "sunflower", 'tulip "é"']
KINDS = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
SIZE = 64  # larger than conftest's: the resize has to matter
SIZES = [
    (64, 64),
    (96, 96),
    (37, 91),
    (301, 203),
    (20, 24),
    (17, 300),
    (1, 1),
]  # equal, larger, odd, smaller, a strip


def drawing(number: int, height: int = SIZE, width: int = SIZE) -> Tensor:
    """A drawing, uint8 (3, height, width); resized roughly, so that it is not smooth."""
    picture = draw_flower(KINDS[number % 5], number, 96).resize((width, height), resample=0)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def photos() -> list[Tensor]:
    some = [drawing(place, *size) for place, size in enumerate(SIZES)]
    grey = drawing(9, 75, 50)[:1].expand(3, -1, -1)  # its channels share their memory
    noise = torch.randint(0, 256, (3, 129, 67), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return [*some, grey, noise, torch.full((3, 40, 40), 255, dtype=torch.uint8)]


@pytest.fixture(scope="session")
def model() -> FlowerClassifier:
    """Untrained, but with features and residual branches that matter, and probabilities far from uniform."""
    torch.set_num_threads(1)
    module = FlowerClassifier(weights=None)
    module.build(CLASSES, SIZE)
    drawings = torch.stack([drawing(number) for number in range(40)])
    start_from_nothing(module.network, drawings)
    with torch.no_grad():
        for block in module.network.backbone:
            if isinstance(block, InvertedResidual) and block.use_res_connect:
                nn.init.normal_(block.conv[-1].weight, 0.3, 0.1, generator=torch.Generator().manual_seed(1))
        features = module.network.features(drawings)
        weight = torch.randn(5, 1280, generator=torch.Generator().manual_seed(2))
        module.network.head.weight.copy_(weight / (weight @ features.T).std())
        module.network.head.bias.copy_(-(module.network.head.weight @ features.T).mean(1))
    return module.eval()


@pytest.fixture(scope="session")
def said() -> list[str]:
    """What exporting printed or warned."""
    return []


@pytest.fixture(scope="session")
def files(
    model: FlowerClassifier, said: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The model in each format; read only."""
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    folder = tmp_path_factory.mktemp("exported")
    screen = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(screen), redirect_stderr(screen):
        warnings.simplefilter("always")
        export_onnx(model, folder / "final.onnx")
        export_torch(model, folder / "final.pt2")
        calibration = [drawing(number, *SIZES[number % 6]) for number in range(20)]
        quantize_int8(folder / "final.onnx", folder / "final.int8.onnx", calibration)
    said += [screen.getvalue(), *(str(one.message) for one in caught)]
    assert {file.name for file in folder.iterdir()} == {"final.onnx", "final.pt2", "final.int8.onnx"}
    return {"onnx": folder / "final.onnx", "pt2": folder / "final.pt2", "int8": folder / "final.int8.onnx"}


def expected(model: FlowerClassifier, photo: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(model(resize_photo(photo, SIZE)[None]).softmax(1)[0])


# ---------------------------------------------------------------- agreement


def test_the_network_of_these_tests_tells_photos_apart(model: FlowerClassifier) -> None:
    found = np.stack([expected(model, drawing(number)) for number in range(20)])
    assert len(set(found.argmax(1))) >= 3
    assert found.std(0).min() > 0.05


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_exported_files_agree_with_the_model_on_photos_of_any_size(
    kind: str, model: FlowerClassifier, files: dict[str, Path]
) -> None:
    agreement = check_export(Exported.open(files[kind]), model, photos())
    agreement.verify(1e-4)
    assert agreement.photos == len(photos())
    if kind == "pt2":
        assert agreement.largest_difference == 0


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_network_alone_agrees(kind: str, model: FlowerClassifier, files: dict[str, Path]) -> None:
    exported = Exported.open(files[kind])
    for count in (1, 2, 5):
        batch = torch.stack([drawing(number) for number in range(count)])  # of the model's size: no resize
        with torch.inference_mode():
            logits = model(batch)
        np.testing.assert_allclose(exported(batch), logits.softmax(1), atol=2e-5)


@pytest.mark.parametrize("photo", photos(), ids=lambda photo: "x".join(map(str, photo.shape[1:])))
def test_the_resize_alone_agrees(photo: Tensor, files: dict[str, Path]) -> None:
    wanted = resize_photo(photo, SIZE).numpy().astype(int)
    assert np.array_equal(resized_by_torch(files["pt2"], photo), wanted)
    levels = np.abs(resized_by_onnx(files["onnx"], photo) - wanted)
    assert levels.max() <= 1
    assert (levels > 0).mean() < 1e-3


def resized_by_onnx(file: Path, photo: Tensor) -> np.ndarray:
    """What the graph's only cast to uint8 gives."""
    import onnx
    import onnxruntime

    proto = onnx.load(file)
    (cast,) = (
        node
        for node in proto.graph.node
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.UINT8
    )
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(cast.output[0]))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = session.run(cast.output, {"photos": photo[None].numpy()})[0][0]
    return np.asarray(pixels).astype(int)


@cache
def loaded(file: Path) -> nn.Module:
    return torch.export.load(file).module()


def resized_by_torch(file: Path, photo: Tensor) -> np.ndarray:
    """What the only node with uint8 results gives."""

    class Spy(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, Tensor) and result.dtype == torch.uint8:
                seen.append(result[0].numpy().astype(int))
            return result

    seen: list[np.ndarray] = []
    with torch.inference_mode():
        Spy(loaded(file)).run(photo[None])
    assert len(seen) == 1
    return seen[0]


@pytest.mark.parametrize("kind", ["onnx", "pt2", "int8"])
def test_a_batch_gives_what_its_photos_give_one_by_one(kind: str, files: dict[str, Path]) -> None:
    exported = Exported.open(files[kind])
    batch = torch.stack([drawing(number, 45, 80) for number in range(4)])
    found = exported(batch)
    assert found.dtype == np.float32
    assert found.shape == (4, 5)
    np.testing.assert_allclose(found, exported.each(batch), atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_another_model_is_noticed(kind: str, model: FlowerClassifier, files: dict[str, Path]) -> None:
    other = FlowerClassifier(weights=None)
    other.build(CLASSES, SIZE)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.network.head.bias[0] += 0.01
    exported = Exported.open(files[kind])
    with pytest.raises(FlowersError, match="differs from its checkpoint"):
        check_export(exported, other, photos()).verify()
    other.load_state_dict(model.state_dict())
    check_export(exported, other, photos()).verify()
    other.image_size = SIZE - 1  # another resize
    with pytest.raises(FlowersError, match="differs from its checkpoint"):
        check_export(exported, other, photos()).verify()


@pytest.mark.parametrize(
    ("agreement", "good"),
    [
        (Agreement(9, 9, 0, 9e-4), True),
        (Agreement(9, 8, 1, 9e-4), True),  # a near tie
        (Agreement(9, 8, 0, 9e-4), False),
        (Agreement(9, 9, 0, 1e-3), False),
        (Agreement(9, 9, 0, float("nan")), False),
        (Agreement(0, 0, 0, 0.0), False),
    ],
)
def test_what_counts_as_agreement(agreement: Agreement, good: bool) -> None:
    if good:
        agreement.verify()
    else:
        with pytest.raises(FlowersError):
            agreement.verify()


def test_near_ties_are_those_of_the_model(model: FlowerClassifier) -> None:
    photo = drawing(0)
    shares = expected(model, photo)
    first, second = shares.argsort()[::-1][:2]
    swapped = shares.copy()
    swapped[[first, second]] = shares[[second, first]]
    exported = Exported(CLASSES, SIZE, lambda _: {"probabilities": swapped[None]})
    near = shares[first] - shares[second] <= 0.01
    assert not near
    agreement = check_export(exported, model, [photo])
    assert (agreement.agreeing, agreement.near_ties) == (0, 0)
    assert agreement.largest_difference == pytest.approx(shares[first] - shares[second], abs=1e-6)


# ---------------------------------------------------------------- the files


@pytest.mark.parametrize("kind", ["onnx", "pt2", "int8"])
def test_a_file_knows_its_classes_and_no_path_of_this_machine(kind: str, files: dict[str, Path]) -> None:
    exported = Exported.open(files[kind])
    assert (exported.classes, exported.image_size) == (CLASSES, SIZE)
    data = files[kind].read_bytes()
    assert str(Path(write.__file__).parent).encode() not in data
    assert b"site-packages" not in data


def test_exporting_is_quiet(files: dict[str, Path], said: list[str]) -> None:
    assert files
    assert said == [""]


def test_a_foreign_expression_is_judged_at_once() -> None:
    assert _EXPRESSION.fullmatch("Symbol('s12', positive=True, integer=True)")
    assert _EXPRESSION.fullmatch("Add(Mul(Integer(2), Symbol('s0')), s1*3)")
    assert not _EXPRESSION.fullmatch("1" * 60 + "_")  # days, if it were tried in all ways


def test_exporting_leaves_the_model_alone(model: FlowerClassifier, tmp_path: Path) -> None:
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    model.train()
    export_torch(model, tmp_path / "new" / "final.pt2")
    assert model.training
    assert model.network.training
    assert before == {name: weight.requires_grad for name, weight in model.named_parameters()}
    model.eval()


def test_a_write_that_fails_leaves_the_old_file(
    model: FlowerClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(program: object, stream: BinaryIO, **_: object) -> None:
        stream.write(b"half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(torch.export, "save", fail)
    (tmp_path / "final.pt2").write_bytes(b"old")
    with pytest.raises(FlowersError, match="no space left"):
        export_torch(model, tmp_path / "final.pt2")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("final.pt2", b"old")]


def test_missing_packages_are_named(
    model: FlowerClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "find_spec", lambda name: None)
    (tmp_path / "a.onnx").touch()
    for way in (
        lambda: export_onnx(model, tmp_path / "b.onnx"),
        lambda: quantize_int8(tmp_path / "a.onnx", tmp_path / "b.onnx", []),
        lambda: Exported.open(tmp_path / "a.onnx"),
    ):
        with pytest.raises(FlowersError, match=r"pip install 'flowers_pl\[export\]'"):
            way()


@pytest.mark.parametrize(
    "photo",
    [np.zeros((1, 3, 8, 8), np.float32), np.zeros((3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)],
)
def test_other_inputs_are_refused(photo: np.ndarray, files: dict[str, Path]) -> None:
    with pytest.raises(TypeError, match="uint8"):
        Exported.open(files["onnx"])(photo)


# ---------------------------------------------------------------- foreign files


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_torn_and_foreign_files_are_refused(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    whole = files[kind].read_bytes()
    file = tmp_path / f"file.{kind}"
    other = files["pt2" if kind == "onnx" else "onnx"].read_bytes()
    for data in (b"", b"hello", whole[: len(whole) // 2], whole[:-100], other):
        file.write_bytes(data)
        with pytest.raises(FlowersError, match="damaged, or not a model"):
            Exported.open(file)
    torch.save({"a": 1}, file)
    with pytest.raises(FlowersError):
        Exported.open(file)


def test_onnx_of_others_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    for name in ("metadata", "classes", "output"):
        proto = onnx.load(files["onnx"])
        if name == "metadata":
            proto.ClearField("metadata_props")
        elif name == "classes":
            onnx.helper.set_model_props(proto, {"classes": "[", "image_size": "64"})
        else:
            proto.graph.output.append(
                onnx.helper.make_empty_tensor_value_info(proto.graph.node[20].output[0])
            )
        onnx.save(proto, tmp_path / "other.onnx")
        with pytest.raises(FlowersError, match="not a model that flowers_pl exported"):
            Exported.open(tmp_path / "other.onnx")


def test_missing_files_and_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match="no file"):
        Exported.open(tmp_path / "final.onnx")
    with pytest.raises(FlowersError, match=r"none of \.onnx, \.pt2, \.pte"):
        Exported.open(tmp_path / "best.ckpt")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.file,)


def spoilt(source: Path, file: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive with changed members."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].partition("/")[0]
        members = {name.removeprefix(f"{root}/"): archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return file


def edit(members: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> None:
    content = json.loads(members[name])
    change(content)
    members[name] = json.dumps(content).encode()


def test_an_archive_copied_member_by_member_opens(files: dict[str, Path], tmp_path: Path) -> None:
    copy = spoilt(files["pt2"], tmp_path / "copy.pt2", lambda members: None)
    assert Exported.open(copy).classes == CLASSES


@pytest.mark.parametrize("trap", ["weight", "inputs", "expression", "guard", "operator", "member", "library"])
def test_archives_that_could_run_code_are_refused(trap: str, files: dict[str, Path], tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    bomb = io.BytesIO()
    torch.save(Trap(sprung), bomb)
    code = f"__import__('pathlib').Path({str(sprung)!r}).touch()"

    def change(members: dict[str, bytes]) -> None:
        model, weights = "models/model.json", "data/weights/model_weights_config.json"
        if trap == "weight":
            members["data/weights/weight_0"] = bomb.getvalue()
            edit(members, weights, lambda one: next(iter(one["config"].values())).update(use_pickle=True))
        elif trap == "inputs":
            members["data/sample_inputs/model.pt"] = bomb.getvalue()
        elif trap == "expression":
            members[model] = members[model].replace(b"Symbol('s", code.encode() + b" or Symbol('s", 1)
        elif trap == "guard":
            edit(members, model, lambda one: one.update(guards_code=[code]))
        elif trap == "operator":
            members[model] = members[model].replace(b"aten.mean.dim", b"aten.from_file.default")
        elif trap == "member":
            members["data/constants/opaque_obj_0"] = pickle.dumps(Trap(sprung))
        else:
            members["data/aotinductor/model/a.so"] = b""

    file = spoilt(files["pt2"], tmp_path / "trap.pt2", change)
    with pytest.raises(FlowersError, match="could run code"):
        Exported.open(file)
    assert not sprung.exists()


# ---------------------------------------------------------------- 8 bits


def test_int8_is_small_and_close(model: FlowerClassifier, files: dict[str, Path]) -> None:
    import onnx

    assert files["int8"].stat().st_size < 3e6
    some = [drawing(number, *SIZES[number % 6]) for number in range(100, 130)]
    exact, rough = (Exported.open(files[kind]).each(some) for kind in ("onnx", "int8"))
    spread = [(shares - shares.mean(0)).ravel() for shares in (exact, rough)]
    assert np.corrcoef(*spread)[0, 1] > 0.6  # 0.79; 0.15 when calibrated on black photos
    types = [node.op_type for node in onnx.load(files["int8"]).graph.node]
    assert types.index("QuantizeLinear") > types.index("Div")  # resize and normalisation come first, in float


def saturating_sums(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum products as x86 processors without VNNI do: in pairs, in 16 bits that saturate, then in 32 bits.

    Args:
        activations: int (K,), 0 to 255.
        weights: int (channels, K), -128 to 127.
    """
    products = activations * weights
    products = np.pad(products, ((0, 0), (0, products.shape[1] % 2)))
    return (products[:, ::2] + products[:, 1::2]).clip(-(2**15), 2**15 - 1).sum(1)


def test_int8_gives_the_same_answers_on_processors_without_vnni(
    files: dict[str, Path], tmp_path: Path
) -> None:
    import onnx

    proto = onnx.load(files["int8"])
    int8 = onnx.TensorProto.INT8
    tensors = [part for part in proto.graph.initializer if part.data_type == int8 and len(part.dims) == 4]
    assert len(tensors) == 52  # all convolutions of MobileNetV2
    rng = np.random.default_rng(0)
    saturated = 0
    for tensor in tensors:
        weights = onnx.numpy_helper.to_array(tensor).reshape(tensor.dims[0], -1).astype(int)
        doubled = (2 * weights).clip(-127, 127)  # as large as 8 bits allow
        for level in (*rng.integers(0, 256, (5, weights.shape[1])), np.full(weights.shape[1], 255)):
            order = rng.permutation(weights.shape[1])  # whichever weights a kernel pairs
            assert np.array_equal(saturating_sums(level, weights[:, order]), weights[:, order] @ level)
            saturated += int((saturating_sums(level, doubled) != doubled @ level).any())
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(doubled.astype(np.int8).reshape(tensor.dims), tensor.name)
        )
    assert saturated  # as 8-bit weights did
    check_pair_sums(files["int8"])
    onnx.save(proto, tmp_path / "full.onnx")
    with pytest.raises(FlowersError, match="processors without VNNI"):
        check_pair_sums(tmp_path / "full.onnx")


def test_accuracy_loss_is_a_paired_bootstrap() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 400)
    before, after = (
        np.eye(3)[np.where(rng.random(400) < share, labels, (labels + 1) % 3)] for share in (0.9, 0.8)
    )
    loss = accuracy_loss(before, after, labels)
    lost = (before.argmax(1) == labels).astype(float) - (after.argmax(1) == labels)
    means = [rng.choice(lost, 400).mean() for _ in range(4000)]
    assert loss.before - loss.after == pytest.approx(lost.mean())
    assert (loss.low, loss.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.006)
    assert f": {-100 * lost.mean():+.2f} points (95 %" in str(loss)
    assert accuracy_loss(before, before, labels)[2:] == (0, 0)


# ---------------------------------------------------------------- real photos


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.release), "pt2"])
def test_real_photos(kind: str, real_photos: Path, real_weights: Path, tmp_path: Path) -> None:
    model = FlowerClassifier(weights=None)
    model.build(KINDS, 160)
    load_weights(model.network.backbone, str(real_weights))
    nn.init.normal_(model.network.head.weight, 0, 0.1, generator=torch.Generator().manual_seed(0))
    paths = sorted(real_photos.glob("*/*.jpg"))[::100]
    file = tmp_path / f"final.{kind}"
    (export_onnx if kind == "onnx" else export_torch)(model, file)
    exported = Exported.open(file)
    agreement = check_export(exported, model, [read_photo(path) for path in paths])
    agreement.verify()
    loaded = model.eval()(load_photo(paths[0], 160)[None]).softmax(1)
    np.testing.assert_allclose(exported(read_photo(paths[0])[None]), loaded.detach(), atol=1e-3)
