"""The command `audit`: a folder in which everything is wrong is reported in every form and left as it is."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from flowers_pl.cli.app import main
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.drawing_folder import write_drawings
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.exclusions import read_exclusions
from flowers_pl.data.split import write_split
from flowers_pl.network.mobilenet import FlowerNet, start_from_nothing

NASTY = [
    '<img src=x onerror="alert(1)">&amp;\'.png',
    "new\nline\x1b[31m.png",
    "\u202egnp.exe.png",
    "\udcff.png",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state_dict that no one trained, but whose features tell pictures apart."""
    torch.manual_seed(0)
    network = FlowerNet(2)
    drawn = [draw_flower(kind, seed, 64) for kind in ("rose", "daisy") for seed in range(20)]
    photos = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in drawn])
    start_from_nothing(network, photos)
    file = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save({f"features.{key}": value for key, value in network.backbone.state_dict().items()}, file)
    return file


def draw(file: Path, kind: str, seed: int, size: int = 96) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draw_flower(kind, seed, size).save(file)


@pytest.fixture
def mess(tmp_path: Path) -> Path:
    """A folder with one of every fault."""
    root = tmp_path / "photos <b>"
    for kind in ("rose", "tulip", "daisy"):
        for seed in range(8):
            draw(root / kind / f"{seed}.png", kind, seed)
    rose = root / "rose"
    (rose / "empty.jpg").touch()
    (rose / "text.jpg").write_text("no picture")
    whole = (rose / "0.png").read_bytes()
    (rose / "torn.png").write_bytes(whole[: len(whole) // 2])
    draw_flower("rose", 90, 96).save(rose / "inside.png", "JPEG")
    shutil.copy(rose / "1.png", root / "tulip" / "one.png")
    draw_flower("tulip", 3, 96).resize((120, 120)).save(root / "tulip" / "three.png")
    draw_flower("tulip", 50, 96).filter(ImageFilter.GaussianBlur(9)).save(root / "tulip" / "soft.png")
    Image.new("RGB", (96, 96), "black").save(root / "daisy" / "black.png")
    draw_flower("daisy", 51, 96).point(lambda level: level // 6).save(root / "daisy" / "night.png")
    draw_flower("daisy", 52, 96).resize((300, 60)).save(root / "daisy" / "wide.png")
    draw_flower("daisy", 53, 24).save(root / "daisy" / "tiny.png")
    for number, name in enumerate(NASTY):
        draw(root / "=1+1" / name, "sunflower", 70 + number)
    (root / "notes.txt").write_text("a stray")
    (root / "nothing").mkdir()
    return root


def state(root: Path) -> dict[str, tuple[float, bytes]]:
    return {
        str(file): (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else b"")
        for file in sorted(root.rglob("*"))
    }


@pytest.fixture
def audited(
    mess: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs the command in a folder of its own, and gives that."""

    def run(*more: str) -> Path:
        (tmp_path / "work").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "work")
        args = ["--data.root", str(mess), "--data.image_size", "64", "--data.workers", "0"]
        assert main(["audit", *args, "--model.weights", str(weights), *more]) == 0
        return tmp_path / "work"

    return run


class Page(HTMLParser):
    """What a browser would make of the page before its script runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.inside = False  # a script
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        """What the script works on."""
        content: dict[str, Any] = json.loads(self.scripts[0])
        return content


def test_every_fault_is_found(audited: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    home = audited()
    found = json.loads((home / "audit" / "audit.json").read_text())
    assert found["files"] == {"=1+1": 4, "daisy": 12, "nothing": 0, "rose": 12, "tulip": 11}
    assert found["readable"] == {"=1+1": 4, "daisy": 12, "nothing": 0, "rose": 9, "tulip": 11}
    assert found["imbalance"] is None
    assert found["strays"] == ["notes.txt"]
    assert found["formats"] == {"PNG": 35, "JPEG": 1}
    faults = {(one["kind"], one["path"]): one["detail"] for one in found["faults"]}
    assert faults.pop(("unreadable", "rose/empty.jpg")) == "empty file"
    assert faults.pop(("unreadable", "rose/text.jpg")) == "not a picture in a known format"
    assert faults.pop(("unreadable", "rose/torn.png")).startswith("truncated PNG")
    assert faults.pop(("wrongly named", "rose/inside.png")) == "is a JPEG, but is called .png"
    assert {fault for fault in faults if fault[0] != "unlike any class"} == {
        ("nearly blank", "daisy/black.png"),
        ("too dark", "daisy/black.png"),
        ("too dark", "daisy/night.png"),
        ("elongated", "daisy/wide.png"),
        ("small", "daisy/tiny.png"),
        ("blurred", "tulip/soft.png"),
        *(
            (kind, path) for kind, path in faults if path == "daisy/tiny.png"
        ),  # 24 pixels are not sharp either
    }
    assert found["duplicates"] == [
        {"paths": ["rose/1.png", "tulip/one.png"], "exact": True, "classes": ["rose", "tulip"]},
        {"paths": ["tulip/3.png", "tulip/three.png"], "exact": False, "classes": ["tulip"]},
    ]
    assert found["straddling"]["grouped"] == []
    assert found["labels"]["classes"] == ["daisy", "rose", "tulip"]  # the fourth has too few
    said = capsys.readouterr().out
    assert "'=1+1'" not in said
    assert "Imbalance: daisy has photos, nothing has none." in said
    assert "Rotated by EXIF: none." in said
    assert "\x1b" not in said
    assert "Labels not checked, because there are too few photos: =1+1, nothing." in said
    assert said.strip().splitlines()[0] in (home / "audit" / "audit.txt").read_text()


def test_the_page_is_one_file_and_runs_its_own_script_only(audited: Callable[..., Path], mess: Path) -> None:
    text = (audited() / "audit" / "audit.html").read_text()
    page = Page(text)
    kinds = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert kinds[0] == "application/json"
    assert kinds[-1] is None
    assert set(kinds[1:-1]) == {"text/plain"}
    pictures = page.scripts[1:-1]
    assert len(pictures) >= 8
    assert all(base64.b64decode(one, validate=True)[8:12] == b"WEBP" for one in pictures)
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "b", "object", "form", "img"}
    assert not [
        name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "src"
    ]
    assert str(mess) in page.text  # with its <b>
    assert not {"\x1b", "\u202e"} & set(text)


def test_what_asks_for_a_decision_is_what_is_in_question(audited: Callable[..., Path]) -> None:
    home = audited("--most", "0")
    data = Page((home / "audit" / "audit.html").read_text()).data
    found = json.loads((home / "audit" / "audit.json").read_text())
    shown = [
        data["photos"][number]["name"]
        for section in data["sections"]
        if section["asks"]
        for numbers, _ in section["entries"]
        for number in numbers
    ]
    assert {one["name"] for one in data["photos"] if "cell" in one} == set(shown)
    assert len(found["asked"]) == len(set(shown)) >= 6
    duplicates = {path for one in found["duplicates"] for path in one["paths"]}
    suspects = {one["path"] for one in found["labels"]["suspects"]}
    kinds = ("unlike any class", "too dark", "too bright", "nearly blank", "blurred")
    outliers = {one["path"] for one in found["faults"] if one["kind"] in kinds}
    assert found["asked"].keys() == duplicates | suspects | outliers


def test_names_are_escaped_wherever_they_are_shown(
    audited: Callable[..., Path], mess: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NASTY:
        (mess / "=1+1" / name).write_bytes(b"unreadable")
    home = audited("--write", "list.csv")
    page = Page((home / "audit" / "audit.html").read_text())
    said = capsys.readouterr().out
    names = "\n".join(photo["name"] for photo in page.data["photos"])
    for text in (names, said, (home / "audit" / "audit.txt").read_text()):
        assert '=1+1/<img src=x onerror="alert(1)">&amp;\'.png' in text
        assert "=1+1/new\\nline\\x1b[31m.png" in text
        assert "=1+1/\\u202egnp.exe.png" in text
        assert "=1+1/\\xff.png" in text
    assert {f"=1+1/{name}" for name in NASTY} <= read_exclusions(home / "list.csv").keys()
    assert "\n=" not in (home / "list.csv").read_text(errors="surrogateescape")


def test_nothing_in_the_folder_is_changed(audited: Callable[..., Path], mess: Path) -> None:
    before = state(mess)
    audited("--write", "list.csv")
    assert state(mess) == before


def test_the_list_is_what_fit_goes_without(audited: Callable[..., Path], mess: Path) -> None:
    shutil.rmtree(mess / "nothing")
    home = audited("--write", "list.csv")
    listed = read_exclusions(home / "list.csv")
    expected = {
        "rose/empty.jpg": "unreadable: empty file",
        "rose/1.png": "stands under another class too: tulip/one.png",
        "tulip/one.png": "stands under another class too: rose/1.png",
        "tulip/three.png": "the same photo as tulip/3.png",
        "daisy/black.png": "nearly blank",
        "tulip/soft.png": "blurred",
    }
    assert all(reason in listed[path] for path, reason in expected.items())
    assert [path for path, reason in listed.items() if "same photo" in reason] == ["tulip/three.png"]
    assert not [reason for reason in listed.values() if "elongated" in reason or "wrongly" in reason]
    data = FlowersDataModule(root=str(mess), image_size=64, workers=0, exclude=str(home / "list.csv"))
    data.prepare_data()
    data.setup("fit")
    assert not listed.keys() & {one.path for one in data.placed}


def test_a_given_split_is_looked_at(audited: Callable[..., Path], mess: Path, tmp_path: Path) -> None:
    shutil.rmtree(mess / "nothing")
    data = FlowersDataModule(root=str(mess), image_size=64, workers=0)
    data.prepare_data()
    data.setup("fit")
    placed = [
        one._replace(side="val" if one.path == "tulip/three.png" else "train", group="")
        for one in data.placed
    ]
    write_split(tmp_path / "split.csv", placed)
    home = audited("--data.split", str(tmp_path / "split.csv"))
    found = json.loads((home / "audit" / "audit.json").read_text())
    assert found["straddling"][str(tmp_path / "split.csv")] == [["tulip/3.png", "tulip/three.png"]]


def test_without_a_network_the_rest_is_reported(audited: Callable[..., Path]) -> None:
    home = audited("--model.weights", "null", "--output", "other/place")
    found = json.loads((home / "other" / "place" / "audit.json").read_text())
    assert found["labels"] is None
    assert "--model.weights null" in found["unchecked"]
    assert len(found["duplicates"]) == 2


def test_only_so_many_cards_a_section(audited: Callable[..., Path]) -> None:
    page = Page((audited("--most", "1") / "audit" / "audit.html").read_text())
    shown = {section["title"]: section for section in page.data["sections"]}
    assert (len(shown["Unreadable files"]["entries"]), shown["Unreadable files"]["more"]) == (1, 2)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--data.root", "nowhere"], "no folder 'nowhere'"),
        (["--output", "photos/audit"], "--output: 'photos/audit' is inside --data.root"),
        (["--write", "photos/rose/list.csv"], "--write: 'photos/rose/list.csv' is inside --data.root"),
        (["--write", "kept.csv"], "--write: 'kept.csv' exists already"),
        (["--model.weights", "none.pth"], "--model.weights: 'none.pth' is neither a file nor a name"),
        (["--data.image_size", "8"], "--data.image_size must be at least 32"),
        (["--data.split", "none.csv"], "--data.split: 'none.csv' cannot be read"),
        (["--data.nothing", "1"], "data.nothing"),
        (["--review", "none.csv"], "--review: 'none.csv' cannot be read"),
        (["--to", "clean"], "--to makes a clean copy of the folder together with --apply FILE; give both"),
        (["--most", "-1"], "--most must be 0 or more"),
        (["--output", "kept.csv"], "--output: 'kept.csv' cannot be written to, because '"),
    ],
)
def test_a_mistake_gets_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(Path("photos/rose/1.png"), "rose", 1, 48)
    Path("kept.csv").write_text("path,reason\n")
    given = {"--data.root": "photos", "--model.weights": "null", "--data.workers": "0"}
    given |= dict(zip(args[::2], args[1::2], strict=True))
    assert main(["audit", *(part for pair in given.items() for part in pair)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("flowers_pl: ")
    assert sentence in said
    assert Path("kept.csv").read_text() == "path,reason\n"


def test_one_class_with_one_photo_is_audited_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(Path("photos/rose/1.png"), "rose", 1, 48)
    assert main(["audit", "--data.root", "photos", "--model.weights", "null", "--data.workers", "0"]) == 0
    assert json.loads(Path("audit/audit.json").read_text())["readable"] == {"rose": 1}
    Path("photos/rose/1.png").write_text("no picture any more")
    assert main(["audit", "--data.root", "photos", "--model.weights", "null", "--data.workers", "0"]) == 0
    assert json.loads(Path("audit/audit.json").read_text())["readable"] == {"rose": 0}


@pytest.mark.release
def test_planted_wrong_labels_on_drawings_are_found(
    real_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_drawings(Path("photos"), 30, seed=3, size=96)
    draw(Path("photos/rose/0.png"), "daisy", 100)
    draw(Path("photos/rose/1.png"), "sunflower", 102)
    args = ["--data.root", "photos", "--data.image_size", "96", "--data.workers", "0"]
    assert main(["audit", *args, "--model.weights", str(real_weights)]) == 0
    check = json.loads(Path("audit/audit.json").read_text())["labels"]
    first = {one["path"]: one["likely"] for one in check["suspects"][:2]}
    assert first == {"rose/0.png": "daisy", "rose/1.png": "sunflower"}


@pytest.mark.release
@pytest.mark.timeout(900)
def test_real_photos_their_conflicts_and_near_duplicates(
    real_photos: Path, real_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--data.root", str(real_photos), "--data.image_size", "96"]
    assert main(["audit", *args, "--model.weights", str(real_weights)]) == 0
    found = json.loads(Path("audit/audit.json").read_text())
    conflicts = ("17104364030_ee31ee279b_n", "17291451621_0e39f08b9e_n", "17291930305_79deae6a90_n")
    across = [one["paths"] for one in found["duplicates"] if len(one["classes"]) > 1]
    assert across == [[f"rose/{name}.jpg", f"tulip/{name}.jpg"] for name in conflicts]
    near = ["tulip/7166550328_de0d73cfa9.jpg", "tulip/7166550328_de0d73cfa9_n.jpg"]
    assert near in [one["paths"] for one in found["duplicates"]]
    assert set(map(tuple, across)) <= set(map(tuple, found["straddling"]["notebook"]))
    suspects = [one["path"] for one in found["labels"]["suspects"]]
    assert "tulip/16265883604_92be82b973.jpg" in suspects  # a rose
    assert found["labels"]["accuracy"] > 0.8
