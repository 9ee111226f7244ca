"""reviews.py: a person's decisions are written safely, taken back, and obeyed before the split."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import read_csv, sha256_of, write_csv
from flowers_pl.core.names import KEY
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.exclusions import write_exclusions
from flowers_pl.data.folder import REVIEWED, LeftOut, Photo
from flowers_pl.data.reviews import HEADER, Decision, in_words, read_review
from flowers_pl.data.split import read_split, write_split
from flowers_pl.training.checkpoint_files import read_checkpoint

DIGEST = "0123456789abcdef" * 4


def module(root: Path, **settings: object) -> FlowersDataModule:
    data = FlowersDataModule(root=str(root), image_size=32, workers=0, **settings)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


def decide(root: Path, file: Path, *decisions: tuple[str, str, str]) -> str:
    """Write a review of photos that are there."""
    write_csv(
        file,
        HEADER,
        [Decision(path, action, label, sha256_of(root / path)) for path, action, label in decisions],
    )
    return str(file)


def files(kind: str, *numbers: int) -> list[str]:
    return [f"{kind}/{kind}_{number:04d}.png" for number in numbers]


@pytest.fixture
def root(drawings: Path, tmp_path: Path) -> Path:
    """A copy of the drawings that a test may change."""
    return Path(shutil.copytree(drawings, tmp_path / "photos"))


def test_decisions_are_taken_back_whatever_a_photo_is_called(tmp_path: Path) -> None:
    names = ["rose/a.jpg", '=cmd|" /C calc"!A0/b.jpg', "\r/g", "rose/h\ni", "rose/\udcff", "rose/a\\xff.jpg"]
    decisions = [Decision(name, "relabel", "+tulip", DIGEST) for name in names]
    write_csv(tmp_path / "review.csv", HEADER, decisions)
    assert read_review(tmp_path / "review.csv") == decisions


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("path,action,sha256\n", "has no column 'label'"),
        (
            "path,action,label,sha256\na.jpg,delete,,DIGEST\n",
            "has the action 'delete' for 'a.jpg'; it must be",
        ),
        ("path,action,label,sha256\na.jpg,relabel,,DIGEST\n", "has no label for 'a.jpg'"),
        ("path,action,label,sha256\na.jpg,keep,,\n", "has no SHA-256 for 'a.jpg'; 'sha256sum' prints it"),
        ("path,action,label,sha256\n,keep,,DIGEST\n", "has a row without a path"),
        (
            "path,action,label,sha256\na.jpg,keep,,DIGEST\na.jpg,exclude,,DIGEST\n",
            "has two different decisions on 'a.jpg'; remove one",
        ),
    ],
)
def test_a_file_that_is_no_review_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "review.csv").write_text(content.replace("DIGEST", DIGEST))
    with pytest.raises(FlowersError, match=r"^--data.review: .*review.csv") as refused:
        read_review(tmp_path / "review.csv")
    assert sentence in str(refused.value)


def test_a_review_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match=r"--data.review: .*none.csv' cannot be read"):
        read_review(tmp_path / "none.csv")


def test_a_spreadsheet_may_have_saved_it(tmp_path: Path) -> None:
    (tmp_path / "review.csv").write_text(
        f"sep=;\nsha256;label;path;action\n{DIGEST.upper()};rose;./a.jpg;Relabel\n;;;\n"
    )
    assert read_review(tmp_path / "review.csv") == [Decision("a.jpg", "relabel", "rose", DIGEST)]


@pytest.mark.parametrize("split", ["grouped", "notebook"])
def test_photos_take_part_as_decided(drawings: Path, tmp_path: Path, split: str) -> None:
    kept, out, other = files("rose", 1, 2, 3)
    review = decide(
        drawings,
        tmp_path / "review.csv",
        (kept, "keep", ""), (out, "exclude", ""), (other, "relabel", "tulip"),
    )  # fmt: skip
    every, data = module(drawings, split=split), module(drawings, split=split, review=review)
    labels = {photo.path: photo.label for photo in data.placed}
    assert {photo.path for photo in every.placed} - labels.keys() == {out}
    assert labels[other] == "tulip"
    assert {path for path, label in labels.items() if label != path.partition("/")[0]} == {other}
    assert data.left_out == [LeftOut(out, "a person left it out in review.csv", REVIEWED)]
    assert {photo.path: photo.review for photo in data.placed if photo.review} == {
        kept: "keep",
        other: "relabel",
    }
    tulip = data.classes.index("tulip")
    numbers = [*data.train_photos.labels.tolist(), *data.val_photos.labels.tolist()]
    assert numbers.count(tulip) == 11  # what is trained on and validated with


def test_an_exclusion_wins(drawings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept, other = files("rose", 1, 2)
    review = decide(drawings, tmp_path / "review.csv", (kept, "keep", ""), (other, "relabel", "tulip"))
    write_exclusions(tmp_path / "clean.csv", [LeftOut(kept, ""), LeftOut(other, "dark")])
    data = module(drawings, review=review, exclude=str(tmp_path / "clean.csv"))
    assert not {kept, other} & {photo.path for photo in data.placed}
    assert [entry.reason for entry in data.left_out] == [
        "is on the list clean.csv",
        "is on the list clean.csv: dark",
    ]
    assert not any(photo.review for photo in data.placed)
    assert f"the row of {kept} is not used, because it is on the list of --data.exclude" in caplog.text


def test_rows_of_other_photos_are_reported_and_not_used(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed, gone, same = files("rose", 1, 2, 3)
    review = decide(root, tmp_path / "review.csv", *((path, "exclude", "") for path in (changed, gone, same)))
    shutil.copy(root / files("rose", 4)[0], root / changed)
    (root / gone).unlink()
    caplog.set_level(logging.INFO)
    data = module(root, review=review)
    assert [entry.path for entry in data.left_out if entry.kind == REVIEWED] == [same]
    said = caplog.text
    assert f"the row of {changed} is not used, because it is another file than the one that was" in said
    assert f"the row of {gone} is not used, because it is missing" in said
    assert (
        "review.csv has decisions on 3 photos: 0 kept, 1 left out, 0 with another label, 2 not used" in said
    )


def test_a_row_of_a_photo_that_is_gone_with_its_class_is_not_used(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = files("rose", 1)
    review = decide(root, tmp_path / "review.csv", (path, "relabel", "orchid"))
    (root / path).unlink()
    caplog.set_level(logging.INFO)
    module(root, review=review)
    assert f"the row of {path} is not used, because it is missing" in caplog.text


def test_a_label_that_is_no_class_is_refused(drawings: Path, tmp_path: Path) -> None:
    (path,) = files("rose", 1)
    review = decide(drawings, tmp_path / "review.csv", (path, "relabel", "orchid"))
    with pytest.raises(FlowersError, match=r"--data.review: .*label 'orchid' of 'rose/rose_0001.png' is no"):
        module(drawings, review=review)


def test_names_that_look_equal_are_one(tmp_path: Path, root: Path) -> None:
    """Another system may have composed letters and marks differently."""
    (root / "rose").rename(root / "Ga\u0308nseblu\u0308mchen")
    review = decide(root, tmp_path / "review.csv", ("tulip/tulip_0001.png", "relabel", "Gänseblümchen"))
    assert module(root, review=review).placed[0].label == "Ga\u0308nseblu\u0308mchen"
    decided = Decision("Gänseblümchen/rose_0001.png", "exclude", "", "")
    digest = sha256_of(root / "Ga\u0308nseblu\u0308mchen/rose_0001.png")
    write_csv(review, HEADER, [decided._replace(sha256=digest)])
    assert [entry.kind for entry in module(root, review=review).left_out] == [REVIEWED]


def test_a_label_settles_a_conflict_of_copies(root: Path, tmp_path: Path) -> None:
    (right,) = files("rose", 1)
    shutil.copy(root / right, root / "tulip" / "copy.png")
    assert {one.path for one in module(root).left_out} == {right, "tulip/copy.png"}
    review = decide(root, tmp_path / "review.csv", ("tulip/copy.png", "relabel", "rose"))
    data = module(root, review=review)
    assert data.left_out == []
    assert {one.label for one in data.placed if one.path in (right, "tulip/copy.png")} == {"rose"}


def test_split_csv_says_it_and_gives_the_same_split_again(drawings: Path, tmp_path: Path) -> None:
    kept, out, other = files("rose", 1, 2, 3)
    review = decide(
        drawings,
        tmp_path / "review.csv",
        (kept, "keep", ""), (out, "exclude", ""), (other, "relabel", "tulip"),
    )  # fmt: skip
    first = module(drawings, review=review)
    write_split(tmp_path / "split.csv", first.placed)
    rows = {row["path"]: row for row in read_csv(tmp_path / "split.csv")}
    assert (rows[kept]["review"], rows[other]["review"], rows[other]["label"]) == ("keep", "relabel", "tulip")
    again = module(drawings, split=str(tmp_path / "split.csv"))
    assert again.placed == first.placed
    both = module(drawings, split=str(tmp_path / "split.csv"), review=review)
    assert both.placed == first.placed
    plain = module(drawings)
    write_split(tmp_path / "plain.csv", plain.placed)
    assert "review" not in (tmp_path / "plain.csv").read_text()
    changed = module(drawings, split=str(tmp_path / "plain.csv"), review=review)
    assert {one.path: one.label for one in changed.placed}[other] == "tulip"
    newer = decide(drawings, tmp_path / "newer.csv", (other, "keep", ""))  # the newer decision holds
    data = module(drawings, split=str(tmp_path / "split.csv"), review=newer)
    assert {one.path: (one.label, one.review) for one in data.placed}[other] == ("rose", "keep")


def test_a_split_of_another_folder_is_still_refused(drawings: Path, tmp_path: Path) -> None:
    placed = module(drawings).placed
    photos = [photo for photo in module(drawings).placed if photo.label != "tulip"]
    write_split(tmp_path / "split.csv", [placed[0]._replace(label="tulip", review="relabel"), *placed[1:]])
    with pytest.raises(FlowersError, match="not among the readable photos of class 'tulip'"):
        read_split(tmp_path / "split.csv", [Photo(*photo[:2]) for photo in photos])


def test_photos_to_test_on_are_not_decided_on(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sides = tmp_path / "sides"
    shutil.copytree(root, sides / "train")
    (sides / "test/rose").mkdir(parents=True)
    (sides / "train/rose/rose_0002.png").rename(sides / "test/rose/rose_0002.png")
    write = decide(
        sides,
        tmp_path / "review.csv",
        ("train/rose/rose_0001.png", "relabel", "tulip"), ("test/rose/rose_0002.png", "exclude", ""),
    )  # fmt: skip
    data = module(sides, review=write)
    assert [photo.review for photo in data.placed if photo.review] == ["relabel"]
    assert data.left_out == []
    assert "test/rose/rose_0002.png is not used, because it is among the photos to test on" in caplog.text


@pytest.mark.release
def test_a_run_says_what_was_done_and_resume_compares_it(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    out, other, third = files("rose", 2, 3, 4)
    decide(drawings, Path("review.csv"), (out, "exclude", ""), (other, "relabel", "tulip"))
    small = ["--data.image_size", "32", "--data.workers", "0", "--model.weights", "null"]
    epochs = ["--unfreeze.head_epochs", "1", "--unfreeze.top_epochs", "0"]
    args = ["fit", "--data.root", str(drawings), *small, *epochs, "--run_name", "mended"]
    assert main([*args, "--data.review", "review.csv"]) == 0
    run = tmp_path / "checkpoints" / "mended"
    assert "a person left it out in review.csv" in (run / "left_out.csv").read_text()
    assert f"{other},tulip," in (run / "split.csv").read_text()
    card = (run / "MODEL_CARD.md").read_text()
    assert "Left out: 1 (1 left out in a review)." in card
    assert "A review has decisions on 2 photos: 0 kept, 1 left out, 1 with another label. Those" in card
    facts = read_checkpoint(run / "best.ckpt")[KEY]
    assert facts["review"]["relabel"] == 1
    assert facts["data"]["review"] == str(tmp_path / "review.csv")
    assert main(["validate", "--ckpt_path", str(run / "best.ckpt"), "--data.workers", "0"]) == 0
    caplog.clear()
    caplog.set_level(logging.INFO)
    more = ["fit", "--ckpt_path", str(run / "last.ckpt"), "--unfreeze.head_epochs", "2"]
    decide(drawings, Path("review.csv"), (third, "exclude", ""))  # another review under the same name
    decide(drawings, Path("other.csv"), (third, "exclude", ""))
    assert main([*more, "--data.review", "other.csv"]) == 0
    assert f"Changed for this resume: --data.review from {tmp_path / 'review.csv'} to" in caplog.text
    assert "3 photos of this run took part with another label or on another side before" in caplog.text


def test_the_words_count() -> None:
    assert in_words({}) == "review.csv has decisions on 0 photos: 0 kept, 0 left out, 0 with another label"


def test_two_spellings_of_one_photo_are_refused(root: Path, tmp_path: Path) -> None:
    (root / "rose/rose_0001.png").rename(root / "rose/r\u00f3se.png")
    composed, apart = "rose/r\u00f3se.png", "rose/ro\u0301se.png"
    digest = sha256_of(root / composed)
    file = tmp_path / "review.csv"
    write_csv(file, HEADER, [Decision(composed, "keep", "", digest), Decision(apart, "exclude", "", digest)])
    with pytest.raises(
        FlowersError, match=r"--data\.review: .*'rose/r\u00f3se\.png' is listed in two spellings"
    ):
        module(root, review=str(file))
    write_csv(file, HEADER, [Decision(apart, "exclude", "", digest)])  # one spelling may be another system's
    assert composed in {entry.path for entry in module(root, review=str(file)).left_out}
