"""export --format web: the model that explains itself, the page in a real browser, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from serving import classifier, encoded

from flowers_pl import FlowerClassifier, main
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import sha256_of
from flowers_pl.data.decoding import load_photo, read_photo
from flowers_pl.data.drawings import draw_flower
from flowers_pl.explain.activation_maps import class_activation_maps, scaled_maps
from flowers_pl.export.explained import export_explained
from flowers_pl.export.load import Exported
from flowers_pl.export.web_page import page_facts, write_page
from flowers_pl.export.web_runtime import FILES, web_runtime
from flowers_pl.network.answers import Temperature
from flowers_pl.serving.models import open_exported

SIZE = 96  # maps of 3 x 3
RUN = Path(__file__).parent / "data" / "run-0.1.0"
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 800}
SHARES = """() => Object.fromEntries([...document.querySelectorAll('.shares li')]
    .map((row) => [row.querySelector('span').textContent, row.querySelector('meter').value]))"""
HEAT = """() => { const heat = document.querySelector('.heat');
    return [...heat.getContext('2d').getImageData(0, 0, heat.width, heat.height).data]; }"""


@pytest.fixture(scope="module")
def model() -> FlowerClassifier:
    """Untrained, with probabilities far from uniform."""
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    module = classifier(SIZE)
    drawings = torch.stack([load_photo(draw_flower("rose", seed, 96), SIZE) for seed in range(20)])
    with torch.no_grad():
        features = module.network.features(drawings)
        weight = torch.randn(3, 1280, generator=torch.Generator().manual_seed(2))
        module.network.head.weight.copy_(weight / (weight @ (features - features.mean(0)).T).std())
        module.network.head.bias.copy_(-(module.network.head.weight @ features.T).mean(1))
    return module.eval()


@pytest.fixture(scope="module")
def onnx_file(model: FlowerClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("explained") / "model.onnx"
    export_explained(model, file)
    return file


@pytest.fixture(scope="module")
def runtime() -> Path:
    """onnxruntime-web: its folder, or its archive of npm."""
    if "FLOWERS_ONNXRUNTIME_WEB" not in os.environ:
        pytest.skip(
            "FLOWERS_ONNXRUNTIME_WEB is not set: it names the folder or the archive of onnxruntime-web"
        )
    return Path(os.environ["FLOWERS_ONNXRUNTIME_WEB"])


@pytest.fixture(scope="module")
def folder(onnx_file: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page; read only."""
    made = tmp_path_factory.mktemp("web")
    facts = page_facts("a-run", ["daisy", "rose", "tulip"], SIZE, 0.9, "50 drawings", "0.1.0")
    write_page(made, onnx_file.read_bytes(), facts, web_runtime(runtime))
    return made


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


class Redirecting(Quiet):
    """As hosts with short addresses do."""

    def do_GET(self) -> None:
        if self.path != "/index.html":
            super().do_GET()
            return
        self.send_response(308)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def hosted(folder: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    """Serve files, and nothing else, as any host does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def visiting(browser: Any, address: str, size: dict[str, int] = DESKTOP) -> Iterator[Any]:
    """Open the page, and check at the end that it asked no other host and that nothing went wrong in it."""
    context = browser.new_context(viewport=size)
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    try:
        page.goto(address)
        page.wait_for_selector(".choose:enabled")
        yield page
        assert [url for url in asked if not url.startswith(address)] == faults == []
    finally:
        context.close()


def give(page: Any, name: str, data: bytes, way: str = ".choose") -> dict[str, float]:
    """Choose a file, and return the probabilities that the page shows."""
    page.set_input_files(way, [{"name": name, "mimeType": "image/png", "buffer": data}])
    page.locator(".about", has_text=name).wait_for()
    return page.evaluate(SHARES)


def pictures() -> dict[str, bytes]:
    """Files of many kinds."""
    turned = Image.Exif()
    turned[0x0112] = 6
    wide, tall = draw_flower("rose", 3, 300).crop((0, 40, 300, 240)), draw_flower("tulip", 5, 640)
    hole = draw_flower("daisy", 4, 120).convert("RGBA")
    hole.putalpha(Image.radial_gradient("L").resize(hole.size))
    return {
        "wide.png": encoded(wide),
        "turned.jpg": encoded(wide, "JPEG", quality=92, exif=turned),
        "turned.png": encoded(wide, exif=turned),
        "large.jpg": encoded(tall.resize((1500, 2000)), "JPEG", quality=90),
        "progressive.jpg": encoded(draw_flower("daisy", 8, 200), "JPEG", progressive=True),
        "clear.png": encoded(hole),
        "grey.png": encoded(tall.convert("L")),
        "palette.png": encoded(tall.quantize(16)),
        "small.webp": encoded(draw_flower("rose", 2, 20), "WEBP", lossless=True),
    }


# ---------------------------------------------------------------- the model


@pytest.mark.release
@pytest.mark.parametrize("judges", ["as it is", "with mirror images and a temperature", "without novelty"])
def test_the_file_explains_as_the_checkpoint_does(
    judges: str, model: FlowerClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if judges == "without novelty":
        monkeypatch.setattr(model, "novelty", None)
    if judges.startswith("with mirror"):
        monkeypatch.setattr(model, "flip_test", True)
        monkeypatch.setattr(model, "temperature", Temperature(2.5, photos=9))
    export_explained(model, tmp_path / "model.onnx")
    exported = Exported.open(tmp_path / "model.onnx")
    photos = torch.stack([read_photo(draw_flower("rose", seed, 150)) for seed in range(3)])
    found = exported.explained(photos.numpy())
    small = torch.stack([load_photo(draw_flower("rose", seed, 150), SIZE) for seed in range(3)])
    with torch.inference_mode():
        assert found["probabilities"] == pytest.approx(model.probabilities(small).numpy(), abs=1e-4)
        assert found["maps"].shape == (3, 3, 3, 3)
        for target in range(3):
            heat = scaled_maps(torch.from_numpy(found["maps"][:, target]), (SIZE, SIZE)).numpy()
            assert heat == pytest.approx(class_activation_maps(model, small, [target] * 3), abs=2e-3)
        assert ("unlike" in found) == (model.novelty is not None)
        if model.novelty is not None:
            expected = model.novelty(model.network.features(small))
            assert found["unlike"] == pytest.approx(expected.numpy(), abs=1e-3)


@pytest.mark.slow
def test_serve_answers_with_all_that_the_file_knows(model: FlowerClassifier, onnx_file: Path) -> None:
    opened = open_exported(onnx_file)
    photos = torch.stack([load_photo(draw_flower("tulip", seed, 150), SIZE) for seed in range(3)])
    shares, unlike = opened.compute(photos)
    assert unlike is not None
    assert opened.explain is not None
    with torch.inference_mode():
        assert model.novelty is not None
        assert unlike.numpy() == pytest.approx(
            model.novelty(model.network.features(photos)).numpy(), abs=1e-3
        )
    expected = class_activation_maps(model, photos, [0, 1, 2])
    assert opened.explain(photos, [0, 1, 2]) == pytest.approx(expected, abs=2e-3)
    assert shares.sum(1).numpy() == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------- the page


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_gives_the_checkpoints_answers(
    browser: Any, folder: Path, model: FlowerClassifier, size: dict[str, int], tmp_path: Path
) -> None:
    table = np.frombuffer(bytes.fromhex(json.loads((folder / "model.json").read_text())["colours"]), np.uint8)
    with hosted(folder) as address, visiting(browser, address, size) as page:
        said = page.inner_text(".model")
        assert said.startswith("Model a-run, 3 classes (daisy, rose, tulip): 90.0 % correct on 50 drawings.")
        seen = set()
        for name, data in pictures().items():
            shares = give(page, name, data, ".photograph" if size is PHONE else ".choose")
            expected = model.classify(io.BytesIO(data))
            near = sorted(expected.values())[-1] - sorted(expected.values())[-2] < 0.02
            best = max(expected, key=expected.__getitem__)
            assert near or page.inner_text("h2") == best, name
            seen.add(best)
            assert shares == pytest.approx(expected, abs=0.02 if name.endswith("jpg") else 0.002), name
            photo = load_photo(io.BytesIO(data), SIZE)[None]
            heat = class_activation_maps(model, photo, [model.classes.index(page.inner_text("h2"))])[0]
            colours = table.reshape(256, 3)[np.minimum(255, 256 * heat).astype(int)]
            drawn = np.array(page.evaluate(HEAT)).reshape(SIZE, SIZE, 4)
            assert np.abs(drawn[..., :3] - colours.astype(int)).mean() < 4, name
            with torch.inference_mode():
                assert model.novelty is not None
                unlike = float(model.novelty(model.network.features(photo)))
            assert abs(unlike - 1) < 0.02 or page.is_visible(".doubt") == (unlike > 1), name
        assert len(seen) > 1
        page.fill(".strength input", "0.2")
        assert page.evaluate("getComputedStyle(document.querySelector('.heat')).opacity") == "0.2"
        shown, over = (page.locator(selector).bounding_box() for selector in (".photo", ".heat"))
        assert shown == over
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.screenshot(path=tmp_path / "page.png", full_page=True)


@pytest.mark.slow
def test_pictures_are_dropped_and_pasted_and_names_are_text(browser: Any, folder: Path) -> None:
    give_by = """([kind, name, bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
        const drop = {dataTransfer: transfer, cancelable: true}, paste = {clipboardData: transfer};
        window.dispatchEvent(kind === "drop" ? new DragEvent(kind, drop) : new ClipboardEvent(kind, paste));
    }"""
    with hosted(folder) as address, visiting(browser, address) as page:
        for kind in ("drop", "paste"):
            name = f'{kind} <img src=x onerror="document.title=1">.png'
            page.evaluate(give_by, [kind, name, list(pictures()["wide.png"])])
            page.locator(".about", has_text=name).wait_for()
        assert page.title() == "flowers_pl"
        page.evaluate(give_by, ["drop", "broken.png", list(b"words")])
        page.wait_for_selector(".state:has-text('broken.png cannot be read')")
        assert page.is_hidden(".shown")


@pytest.mark.slow
def test_the_page_works_without_a_network_and_can_be_installed(
    browser: Any, folder: Path, model: FlowerClassifier
) -> None:
    data = pictures()["wide.png"]
    with hosted(folder) as address, visiting(browser, address) as page:
        page.wait_for_selector(".offline:has-text('works without a network')")
        manifest = page.context.new_cdp_session(page).send("Page.getAppManifest")
        assert manifest["errors"] == []
        icons = json.loads(manifest["data"])["icons"]
        sizes = [Image.open(folder / icon["src"]).size for icon in icons]
        assert (
            sizes == [tuple(map(int, icon["sizes"].split("x"))) for icon in icons] == [(192, 192), (512, 512)]
        )
        page.context.set_offline(True)
        page.reload()
        page.wait_for_selector(".choose:enabled")
        assert give(page, "wide.png", data) == pytest.approx(model.classify(io.BytesIO(data)), abs=0.002)
        page.goto(address + "index.html")
        page.wait_for_selector(".choose:enabled")


@pytest.mark.slow
def test_the_page_works_on_a_host_that_redirects_its_name(browser: Any, folder: Path) -> None:
    with hosted(folder, Redirecting) as address, visiting(browser, address) as page:
        page.wait_for_selector(".offline:has-text('works without a network')")
        page.context.set_offline(True)
        page.goto(address + "index.html")
        page.wait_for_selector(".choose:enabled")


def test_a_model_that_lacks_novelty_says_so(
    browser: Any, folder: Path, onnx_file: Path, tmp_path: Path
) -> None:
    import onnx

    shutil.copytree(folder, tmp_path / "web")
    lacking = onnx.load(onnx_file)
    del lacking.graph.output[2]
    onnx.save(lacking, tmp_path / "web" / "model.onnx")
    facts = json.loads((folder / "model.json").read_text())
    facts["sha256"] = sha256_of(tmp_path / "web" / "model.onnx")
    (tmp_path / "web" / "model.json").write_text(json.dumps(facts))
    with hosted(tmp_path / "web") as address, visiting(browser, address) as page:
        give(page, "wide.png", pictures()["wide.png"])
        assert "cannot tell pictures of something else" in page.inner_text(".about")
        assert page.is_hidden(".doubt")


@pytest.mark.slow
def test_the_camera_is_looked_through_live(browser: Any, folder: Path) -> None:
    camera = """() => { navigator.mediaDevices.getUserMedia = async () => {
        const canvas = document.createElement('canvas');
        const draw = () => { canvas.getContext('2d').fillRect(0, 0, 9, 9); requestAnimationFrame(draw); };
        draw();
        return canvas.captureStream(); } }"""
    with hosted(folder) as address, visiting(browser, address) as page:
        page.evaluate(camera)
        page.click(".live")
        page.wait_for_selector(".shares li")
        page.click(".live:has-text('Stop')")
        page.wait_for_selector(".live:has-text('Live camera')")
        give(page, "wide.png", pictures()["wide.png"])


@pytest.mark.slow
def test_files_of_two_exports_are_not_mixed(browser: Any, folder: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(folder, tmp_path / "mixed"))
    facts = json.loads((mixed / "model.json").read_text())
    (mixed / "model.json").write_text(json.dumps(facts | {"sha256": "0" * 64}))
    with hosted(mixed) as address:
        page = browser.new_page()
        page.goto(address)
        page.locator(".state", has_text="its files are of two exports").wait_for()
        page.locator(".offline", has_text="keeps no copy").wait_for()  # so that it is tried again
        assert page.locator(".choose").is_disabled()
        page.close()


def test_a_page_of_other_files_has_another_version(folder: Path, onnx_file: Path, tmp_path: Path) -> None:
    facts = json.loads((folder / "model.json").read_text())
    runtime = dict.fromkeys(FILES.values(), b"")
    versions = []
    for model in (b"one", b"one", b"two"):
        write_page(tmp_path, model, facts, runtime)
        worker = (tmp_path / "service-worker.js").read_text()
        versions.append(re.findall(r'PREFIX \+ "(\w{16})"', worker))
    assert versions[0] == versions[1] != versions[2]
    files = json.loads(re.findall(r"FILES = (\[.*\]);", worker)[0])
    assert sorted(files) == sorted(
        ["./", *(path.name for path in tmp_path.iterdir() if path.name != "service-worker.js")]
    )


# ---------------------------------------------------------------- the command, and what it refuses


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "checkpoints" / "run"
    made.mkdir(parents=True)
    for name in ("best.ckpt", "split.csv", "left_out.csv"):
        shutil.copy(RUN / name, made)
    return made


@pytest.mark.parametrize(
    "quantize",
    [
        pytest.param([], id="float32"),
        pytest.param(["--quantize", "int8"], id="int8", marks=pytest.mark.release),
    ],
)
@pytest.mark.slow
def test_the_command_writes_a_small_page(quantize: list[str], run: Path, runtime: Path, browser: Any) -> None:
    (run / "web").mkdir()
    (run / "web" / "CNAME").write_text("kept")
    where = ["--root", str(RUN / "drawings"), "--runtime", str(runtime)]
    assert main(["export", "--format", "web", *where, *quantize]) == 0
    size = sum(file.stat().st_size for file in (run / "web").iterdir())
    assert size <= (18e6 if quantize else 25e6)
    measured = json.loads((run / "web" / "exports.json").read_text())["files"]["model.onnx"]
    assert ("in int8" in measured) == bool(quantize)
    assert measured in (run / "web" / "MODEL_CARD.md").read_text()
    assert (run / "web" / "CNAME").read_text() == "kept"
    exported = Exported.open(run / "web" / "model.onnx")
    assert exported.outputs == ("probabilities", "maps", "unlike")
    data = encoded(draw_flower("rose", 1, 90))
    with hosted(run / "web") as address, visiting(browser, address) as page:
        shares = give(page, "rose.png", data)
        assert shares == pytest.approx(
            dict(zip(exported.classes, exported(read_photo(io.BytesIO(data))[None])[0], strict=True)),
            abs=0.01,
        )


def archive(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_an_archive_with_another_hash_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "other.tgz").write_bytes(archive(**dict.fromkeys(FILES, b"code")))
    with pytest.raises(FlowersError, match=r"cannot be read from '.*other.tgz' \(its SHA-512 is .*npm pack"):
        web_runtime(tmp_path / "other.tgz")
    with hosted(tmp_path) as address:
        with pytest.raises(FlowersError, match=r"cannot be downloaded from .*other.tgz \(its SHA-512 is"):
            web_runtime(url=address + "other.tgz")
        with pytest.raises(FlowersError, match=r"cannot be downloaded from .*nowhere.tgz \(.*404"):
            web_runtime(url=address + "nowhere.tgz")
    with pytest.raises(FlowersError, match=r"nowhere.tgz. \(No such file"):
        web_runtime(tmp_path / "nowhere.tgz")


@pytest.mark.parametrize("below", ["", "dist", "package/dist"])
def test_the_runtime_of_a_folder_is_used_as_it_is(below: str, tmp_path: Path) -> None:
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (tmp_path / below / name).write_bytes(name.encode())
    assert web_runtime(tmp_path) == {ours: name.encode() for name, ours in FILES.items()}
    (tmp_path / below / name).unlink()
    with pytest.raises(FlowersError, match=r"does not hold ort\.wasm\.bundle\.min\.mjs and"):
        web_runtime(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--format", "web", "--runtime", "nowhere"],
            "--runtime: onnxruntime-web 1.30.0 cannot be read from 'nowhere' (No such file",
        ),
        (["--format", "web", "--runtime", "checkpoints"], "--runtime: 'checkpoints' does not hold"),
        (["--format", "onnx", "--runtime", "checkpoints"], "--runtime needs --format web"),
        (["--quantize", "int8"], "--quantize int8 needs --format onnx or web"),
        (
            ["--format", "web", "--out", "checkpoints/run/best.ckpt"],
            "--out: 'checkpoints/run/best.ckpt' cannot be",
        ),
    ],
)
def test_mistakes_get_one_sentence(
    options: list[str], sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *options]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (run / "web").exists()
