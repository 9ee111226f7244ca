"""Packs on a disk: a run on one is the run on the folder, and a foreign one executes and reads nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import assert_same_runs

from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import sha256_of, write_csv
from flowers_pl.data.cache import decode_photos
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.decoding import read_photo
from flowers_pl.data.drawing_folder import write_drawings
from flowers_pl.data.folder import list_photos, list_pictures, split_folders
from flowers_pl.data.packed import ShardOrder, decode_root, packed_photo
from flowers_pl.data.packed_pixels import PackedPixels
from flowers_pl.data.packing import pack_folder
from flowers_pl.data.reviews import HEADER, open_review
from flowers_pl.packs.index import FILES, INDEX, PHOTOS, parse_index
from flowers_pl.packs.roots import find_pack
from flowers_pl.packs.writer import entry_of, write_table

SMALL = [
    "--data.image_size=32", "--data.batch_size=8", "--data.workers=0", "--model.weights=null",
    "--unfreeze.head_epochs=1", "--unfreeze.top_epochs=1", "--export=none", "--trainer.accelerator=cpu",
    "--trainer.precision=32-true", "--trainer.enable_progress_bar=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Path:
    """The drawings at 32 pixels, in several shards; read only."""
    out = tmp_path_factory.mktemp("packs") / "pack"
    pack_folder(drawings, out, [32], workers=0, shard_bytes=40_000)
    return out


@pytest.fixture
def copy(pack: Path, tmp_path: Path) -> Path:
    """A pack to spoil."""
    return Path(shutil.copytree(pack, tmp_path / "copy"))


def decoded(root: Path, size: int = 32) -> Any:
    return decode_root(root, list_photos(root), size, root.parent / "cache", 0)


@pytest.mark.slow
def test_a_run_on_a_pack_is_the_run_on_the_folder(
    pack: Path,
    drawings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, root in (("folder", drawings), ("pack", pack)):
        assert main(["fit", "--data.root", str(root), "--run_name", name, *SMALL]) == 0
    runs = [Path("checkpoints", name) for name in ("folder", "pack")]
    assert (runs[0] / "split.csv").read_bytes() == (runs[1] / "split.csv").read_bytes()
    assert_same_runs(runs[0], runs[1], ignore=("flowers_pl.data.root",))
    assert main(["test", "--ckpt_path", str(runs[1] / "best.ckpt")]) == 0  # draws misclassified photos
    assert (runs[1] / "plots" / "misclassified.png").stat().st_size > 10_000
    for command, option in (("test", "--data.test_root"), ("predict", "--data.predict_root")):
        capsys.readouterr()
        assert main([command, "--ckpt_path", str(runs[1] / "best.ckpt"), option, str(pack)]) == 1
        assert f"{option}: {str(pack)!r} is a pack; give a folder of photos." in capsys.readouterr().err


def test_all_that_the_cache_has_of_a_folder_is_in_its_pack(drawings: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(drawings, tmp_path / "photos"))
    (root / "rose" / "text.jpg").write_text("no picture")
    (root / "rose" / "b\udce9.png").write_bytes((root / "rose" / "rose_0001.png").read_bytes())
    made = pack_folder(root, tmp_path / "pack", [32, 48], workers=0, shard_bytes=100_000)
    assert (made.num_photos, [entry.path for entry in made.left_out]) == (51, ["rose/text.jpg"])
    for size in (32, 48):
        cached = decode_photos(root, list_photos(root), size, tmp_path / "cache", 0)
        packed = decoded(tmp_path / "pack", size)
        assert packed.photos == cached.photos
        assert packed.digests == cached.digests
        assert packed.left_out == cached.left_out
        assert np.array_equal(packed.phashes, cached.phashes)
        assert np.array_equal(packed.thumbs, cached.thumbs)
        rows = np.array([50, 3, 3, 17])
        assert np.array_equal(packed.pixels[packed.rows[rows]], cached.pixels[cached.rows[rows]])
    assert list_photos(tmp_path / "pack") == list_photos(root)


def test_files_are_packed_byte_by_byte(drawings: Path, tmp_path: Path) -> None:
    pack_folder(drawings, tmp_path / "pack", workers=0, shard_bytes=20_000)
    found = decoded(tmp_path / "pack", 40)
    cached = decode_photos(drawings, list_photos(drawings), 40, tmp_path / "cache", 0)
    assert np.array_equal(found.pixels[np.arange(50)], cached.pixels[np.arange(50)])
    pack = find_pack(tmp_path / "pack")
    assert pack is not None
    assert packed_photo(pack, "rose/rose_0003.png") == (drawings / "rose" / "rose_0003.png").read_bytes()


def test_shards_are_tar_files_of_samples(pack: Path) -> None:
    numbers, labels = [], set()
    for shard in sorted(pack.glob("*.tar")):
        with tarfile.open(shard) as tar:
            names = tar.getnames()
            assert [name.partition(".")[0] for name in names[::2]] == [
                name.partition(".")[0] for name in names[1::2]
            ]
            for array, facts in zip(names[::2], names[1::2], strict=True):
                stream = tar.extractfile(array)
                assert stream is not None
                assert np.load(io.BytesIO(stream.read())).shape == (32, 32, 3)
                about = json.load(tar.extractfile(facts))  # type: ignore[arg-type]
                assert about["path"].startswith(about["label"])
                labels.add((shard.name, about["label"]))
                numbers.append(array)
    assert len(set(numbers)) == 50
    assert len({shard for shard, _ in labels}) >= 4
    assert len(labels) >= 4 * 3  # each has several classes


def test_folders_train_and_val_stay_the_split(tmp_path: Path) -> None:
    for side, seed in (("train", 0), ("val", 1)):
        write_drawings(tmp_path / "photos" / side, 3, seed=seed, size=40)
        (tmp_path / "photos" / side / ".drawn.json").unlink()
    pack_folder(tmp_path / "photos", tmp_path / "pack", [32], workers=0)
    assert split_folders(tmp_path / "pack") == {"train": "train", "val": "val"}
    data = FlowersDataModule(root=str(tmp_path / "pack"), image_size=32, workers=0)
    data.prepare_data()
    data.setup("fit")
    assert (len(data.train_photos), len(data.val_photos)) == (15, 15)


def test_the_command_line_packs_and_refuses(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    out = str(tmp_path / "out")
    assert main(["pack", str(drawings), out, "--image_size", "32", "--workers", "0"]) == 0
    for args, said in (
        ([str(drawings), out], "--out: "),
        ([str(drawings), str(drawings / "inside")], "inside --root"),
        ([out, str(tmp_path / "again")], "is a pack already"),
        ([str(drawings), "."], "name a new folder inside it"),
        ([str(drawings)], "pack DIR OUT"),
        ([str(drawings), "s3://bucket/photos"], "aws s3 sync"),
        ([str(tmp_path / "nothing"), str(tmp_path / "again")], "there is no folder"),
        ([str(drawings), str(tmp_path / "again"), "--image_size", "31"], "--image_size and --stored_size"),
        ([str(drawings), str(tmp_path / "again"), "--shard_mb", "0"], "--shard_mb"),
    ):
        capsys.readouterr()
        assert main(["pack", *args]) == 1, args
        error = capsys.readouterr().err
        assert said in error, error
        assert error.count("\n") == 1, error
    assert not (tmp_path / "again").exists()
    for command in ("audit", "fit"):
        size = ["--data.image_size", "64"]
        assert main([command, "--data.root", out, *size, *(SMALL[2:] if command == "fit" else [])]) == 1
    error = capsys.readouterr().err
    assert "audit the folder before you pack it" in error
    assert "no photos of 64 pixels a side but pixels-32" in error


@pytest.mark.slow
def test_a_killed_pack_leaves_nothing_in_its_place(drawings: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from flowers_pl.data import packing\n"
        "packing._write_tables = lambda *args: os.kill(os.getpid(), 9)\n"
        "packing.pack_folder(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), [32], 0)\n"
    )
    out = tmp_path / "pack"
    killed = subprocess.run([sys.executable, "-c", code, str(drawings), str(out)], check=False)
    assert (killed.returncode, out.exists()) == (-9, False)
    assert pack_folder(drawings, out, [32], workers=0).num_photos == 50


# ------------------------------------------------------------------------------ foreign packs


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.file, "executed")


@pytest.mark.parametrize("sizes", [[32], []])
def test_a_review_is_of_the_files_that_were_packed(drawings: Path, tmp_path: Path, sizes: list[int]) -> None:
    pack_folder(drawings, tmp_path / "pack", sizes, workers=0)
    seen, other = "rose/rose_0001.png", "rose/rose_0002.png"
    decisions = [(seen, "exclude", "", sha256_of(drawings / seen)), (other, "exclude", "", "0" * 64)]
    write_csv(tmp_path / "review.csv", HEADER, decisions)
    review = open_review(tmp_path / "review.csv", tmp_path / "pack", list_photos(tmp_path / "pack"))
    assert review.paths("exclude") == [seen]
    assert review.unused == {other: "is another file than the one that was reviewed"}


def test_a_folder_to_predict_may_hold_any_index(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"format": "of another program"}')
    (tmp_path / "rose.png").write_bytes(b"")
    assert list_pictures(tmp_path) == (tmp_path, ["index.json", "rose.png"])


def test_a_pack_onto_a_full_disk_ends_with_a_sentence(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        FlowersError, match=r"^--out: the pack cannot be written.*\(No space left on device\)"
    ):
        pack_folder(drawings, tmp_path / "pack", [32], workers=0)
    assert not any(tmp_path.iterdir())


def reseal(pack: Path) -> None:
    """Let an index state what the tables of a pack are now, as whoever made it could."""
    found = json.loads((pack / INDEX).read_text())
    for number, name in enumerate((PHOTOS, "paths.txt", "left_out.json")):
        entry = entry_of(pack / name)
        found["tables"][number] = [entry.num_bytes, entry.digest]
    for name, series in found["series"].items():
        entry = entry_of(pack / f"{name}.npy")
        series["places"] = [entry.num_bytes, entry.digest]
    (pack / INDEX).write_text(json.dumps(found))


def test_chunks_of_litdata_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    root = tmp_path / "litdata"
    root.mkdir()
    chunk = pickle.dumps(Malicious(executed))
    (root / "chunk-0-0.bin").write_bytes(np.array([1, 12, 12 + len(chunk)], np.uint32).tobytes() + chunk)
    config = {"chunk_bytes": 64_000_000, "compression": None, "data_format": ["pickle"]}
    entry = {"chunk_bytes": len(chunk), "chunk_size": 1, "filename": "chunk-0-0.bin"}
    (root / INDEX).write_text(json.dumps({"chunks": [entry], "config": config}))
    with pytest.raises(FlowersError, match="litdata, whose chunks can run code"):
        list_photos(root)
    assert not executed.exists()
    pickle.loads(chunk)
    assert executed.exists()  # it would have


@pytest.mark.parametrize("name", [PHOTOS, "pixels-32.npy"])
def test_a_pickled_table_is_not_unpickled(copy: Path, name: str, tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    before = (copy / name).stat().st_size
    with (copy / name).open("wb") as stream:
        np.save(stream, np.array([Malicious(executed)] * 50, object), allow_pickle=True)
        stream.write(bytes(max(0, before - stream.tell())))
    reseal(copy)
    with pytest.raises(FlowersError, match="is damaged"):
        decoded(copy)
    assert not executed.exists()


def test_a_table_that_is_an_archive_is_refused(copy: Path) -> None:
    before = (copy / PHOTOS).stat().st_size
    with (copy / PHOTOS).open("wb") as stream:
        np.savez(stream, table=np.zeros(50, np.dtype("u1")))
        stream.write(bytes(before - stream.tell()))
    reseal(copy)
    with pytest.raises(FlowersError, match="is damaged"):
        decoded(copy)


def spoil_index(pack: Path, change: Callable[[Any], object]) -> None:
    found = json.loads((pack / INDEX).read_text())
    change(found)
    (pack / INDEX).write_text(json.dumps(found))


CHANGES: dict[str, Callable[[Any], object]] = {
    "version": lambda found: found.update(version=3),
    "format": lambda found: found.update(format="other"),
    "many photos": lambda found: found.update(photos=2**40),
    "negative": lambda found: found.update(photos=-1),
    "a float": lambda found: found.update(photos=50.0),
    "classes": lambda found: found.update(classes=3),
    "a class of controls": lambda found: found["classes"].__setitem__(0, "\x1b[2J"),
    "sides": lambda found: found.update(sides={"train": ["x"]}),
    "a side outside": lambda found: found.update(sides={"/tmp": "test", "train": "train"}),
    "a foreign encoding": lambda found: found["series"].update(pickle=found["series"]["pixels-32"]),
    "a huge size": lambda found: found["series"].update({"pixels-9999": found["series"]["pixels-32"]}),
    "a name": lambda found: found["series"].update({"../pixels-32": found["series"]["pixels-32"]}),
    "a digest": lambda found: found["tables"][0].__setitem__(1, "../../../etc/passwd"),
    "a long shard": lambda found: found["series"]["pixels-32"]["shards"][0].__setitem__(0, 2**40),
    "no tables": lambda found: found.update(tables=[]),
    "nothing": lambda found: found.clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_index_out_of_range_is_refused_in_a_sentence(copy: Path, change: Callable[[Any], object]) -> None:
    spoil_index(copy, change)
    with pytest.raises(FlowersError, match=r"^--data\.root: .*\.$"):
        decoded(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"null", b"\xff\xfe"])
def test_an_index_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(FlowersError, match="is no pack of photos"):
        parse_index(content, "here")


@pytest.mark.parametrize(
    ("column", "value"), [("shard", 99), ("offset", 2**63), ("offset", 40_000), ("length", 2**31)]
)
def test_a_place_outside_its_shard_is_refused(copy: Path, column: str, value: int) -> None:
    places = np.load(copy / "pixels-32.npy")
    places[column][7] = value
    write_table(copy / "pixels-32.npy", places)
    reseal(copy)
    with pytest.raises(FlowersError, match="is damaged"):
        decoded(copy)


@pytest.mark.parametrize("path", [b"/etc/passwd", b"../../secret", b"daisy/../../xy", b"daisy//0123456"])
def test_a_path_that_leads_outside_is_refused(copy: Path, path: bytes) -> None:
    table = np.load(copy / PHOTOS)
    content = (copy / "paths.txt").read_bytes()
    table["path"][0], length = len(path), int(table["path"][0])
    (copy / "paths.txt").write_bytes(path + content[length:])
    np.save(copy / PHOTOS, table)
    reseal(copy)
    with pytest.raises(FlowersError, match="leads outside"):
        decoded(copy)


def test_a_shard_that_is_short_missing_or_no_file_is_refused(copy: Path) -> None:
    found = decoded(copy)
    (shard, *_) = sorted(copy.glob("*.tar"))
    with shard.open("rb+") as stream:
        stream.truncate(2000)
    with pytest.raises(FlowersError, match="has not the length"):
        found.pixels[np.arange(50)]
    shard.unlink()
    with pytest.raises(FlowersError, match="is missing"):
        found.pixels[np.arange(50)]
    (copy / "fifo").mkdir()
    shard.symlink_to(copy / "fifo")
    with pytest.raises(FlowersError, match="has not the length"):
        found.pixels[np.arange(50)]


def test_files_in_shards_are_read_within_the_limits(drawings: Path, tmp_path: Path) -> None:
    pack_folder(drawings, tmp_path / "pack", workers=0)
    (shard,) = (tmp_path / "pack").glob(f"{FILES}-*.tar")
    content = bytearray(shard.read_bytes())
    content[512:520] = b"notapng!"  # the first photo
    shard.write_bytes(content)
    with pytest.raises(FlowersError, match="is damaged"):
        decoded(tmp_path / "pack").pixels[np.arange(50)]


# ------------------------------------------------------------------------------ order


@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_order_keeps_to_a_window_of_shards_and_shows_each_photo_once(
    pack: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = decoded(pack).pixels
    monkeypatch.setattr(PackedPixels, "window", window)
    rows = np.arange(0, 50, 2)
    orders = []
    for epoch in (0, 1, 0):
        shuffled = np.random.default_rng(epoch).permutation(len(rows))
        places = ShardOrder(pixels, rows).arrange(shuffled, seed=3, epoch=epoch)
        order = shuffled[places]
        assert sorted(order.tolist()) == list(range(len(rows)))
        shards = pixels.shard_of[rows][order]
        spans = [np.flatnonzero(shards == shard)[[0, -1]] for shard in np.unique(shards)]
        in_use = [sum(first <= place <= last for first, last in spans) for place in range(len(shards))]
        assert max(in_use) <= window
        orders.append(order.tolist())
    assert orders[0] == orders[2] != orders[1]


def test_with_one_window_nothing_changes(pack: Path) -> None:
    order = np.random.default_rng(0).permutation(50)
    pixels = decoded(pack).pixels
    assert pixels.window == len(pixels.shards) > 3
    places = ShardOrder(pixels, np.arange(50)).arrange(order, 0, 0)
    assert np.array_equal(places, np.arange(50))


def test_photos_of_a_pack_are_shown_at_the_size_that_it_keeps(pack: Path) -> None:
    opened = find_pack(pack)
    assert opened is not None
    assert read_photo(packed_photo(opened, "rose/rose_0003.png")).shape == (3, 32, 32)
