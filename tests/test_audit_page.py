"""The audit's page in a browser: errors are mended by clicks and by keys, and what it saves is read back."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from flowers_pl.audit import html
from flowers_pl.audit.findings import UNLIKE, Asked, Fault, Findings, LabelCheck, LookAlikes, SuspectLabel
from flowers_pl.audit.html import SIZE, render_page
from flowers_pl.audit.pictures import LADDER, make_pictures
from flowers_pl.cli.app import main
from flowers_pl.core.files import read_csv, sha256_of
from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.drawing_folder import write_drawings
from flowers_pl.data.drawings import draw_flower
from flowers_pl.data.reviews import Decision, read_review

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PLANTED = {
    "rose/planted é.png": "daisy",
    'rose/=cmd,"x".png': "sunflower",
    "tulip/\udcff.png": "rose",
    "daisy/a\\xff.png": "dandelion",
    "daisy/<script>alert(1)<!--.png": "tulip",
}


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings]:
    """Drawings with planted errors, and what an audit that finds them all would say."""
    root = tmp_path_factory.mktemp("page") / "photos"
    write_drawings(root, 6, seed=3, size=96)
    for seed, (path, kind) in enumerate(PLANTED.items()):
        draw_flower(kind, 100 + seed, 96).save(root / path)
    shutil.copy(root / "tulip/tulip_0001.png", root / "tulip/copy.png")
    labels = ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    suspects = [
        SuspectLabel(path, path.partition("/")[0], kind, 0.02, 0.9, -0.88) for path, kind in PLANTED.items()
    ]
    findings = Findings(str(root), dict.fromkeys(labels, 8), dict.fromkeys(labels, 8), [])
    findings.faults = [Fault(UNLIKE, "dandelion/dandelion_0002.png", "is 0.5 away")]
    findings.labels = LabelCheck(labels, 40, 0.9, [[0] * 5] * 5, [[0.0] * 5] * 5, 5.0, suspects)
    near = {label: [f"{label}/{label}_000{number}.png" for number in range(3)] for label in labels}
    findings.asked = {
        path: Asked(
            own := path.partition("/")[0],
            sha256_of(root / path),
            {own: near[own], (other := PLANTED.get(path, "rose")): near[other]},
        )
        for path in findings.in_question()
    }
    return root, findings


@pytest.fixture
def page(browser: Browser, mended: tuple[Path, Findings], tmp_path: Path) -> Iterator[Page]:
    """The page, opened from its file in a profile of its own; it must ask for nothing and raise nothing."""
    file = tmp_path / "audit.html"
    file.write_text(render_page(mended[1], most=50), encoding="utf-8")
    yield from opened(browser, file)


def opened(browser: Browser, file: Path, width: int = 1280, height: int = 900, **more: Any) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    page, wrong, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    assert wrong == []
    assert [url for url in asked if not url.startswith(("data:", file.as_uri(), "blob:"))] == []
    context.close()


def left(page: Page) -> str:
    return page.locator("#left").inner_text()


def saved(page: Page, by_key: bool = False) -> Path:
    with page.expect_download() as download:
        page.keyboard.press("s") if by_key else page.click("#save")
    assert download.value.suggested_filename == "review.csv"
    return Path(download.value.path())


def expected(findings: Findings, others: dict[str, tuple[str, str]] | None = None) -> dict[str, Decision]:
    made = {path: ("relabel", kind) for path, kind in PLANTED.items()} | (others or {})
    return {path: Decision(path, *what, findings.asked[path].sha256) for path, what in made.items()}


@pytest.mark.slow
def test_errors_are_mended_by_clicks(page: Page, mended: tuple[Path, Findings]) -> None:
    assert left(page) == "6 of 6 left"
    for path, kind in PLANTED.items():
        row = page.locator(".photo", has_text=Path(path).name.replace("\udcff", "\\xff"))
        row.get_by_role("button", name=f"It is a {kind}").click()
    outlier = page.locator(".photo", has_text="dandelion_0002.png")
    outlier.locator("select").select_option(label="rose")
    assert left(page) == "All decided: save review.csv"
    outlier.get_by_role("button", name="Keep").click()
    found = {one.path: one for one in read_review(saved(page))}
    assert found == expected(mended[1], {"dandelion/dandelion_0002.png": ("keep", "")})


def test_errors_are_mended_by_keys_alone(page: Page, mended: tuple[Path, Findings]) -> None:
    for _ in PLANTED:
        page.keyboard.press("3")  # the likely class
    page.keyboard.press("2")
    assert left(page) == "All decided: save review.csv"
    page.keyboard.press("u")
    assert left(page) == "1 of 6 left"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#view .name").inner_text() == list(PLANTED)[-1]
    page.keyboard.press("2")  # and on to the last one
    page.keyboard.press("Control+z")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("0")  # with four other classes there is no further list
    page.keyboard.press("1")
    found = {one.path: one for one in read_review(saved(page, by_key=True))}
    assert found == expected(mended[1], {"dandelion/dandelion_0002.png": ("keep", "")})


def test_decisions_survive_a_reload_of_the_same_audit_only(
    page: Page, mended: tuple[Path, Findings], tmp_path: Path
) -> None:
    page.keyboard.press("3")
    page.keyboard.press("2")
    page.reload()
    assert left(page) == "4 of 6 left"
    assert page.locator("#view .name").inner_text() == "tulip/\\xff.png"  # the first that is not decided
    assert page.locator("#warning").is_hidden()
    other = replace(
        mended[1], asked={path: replace(one, sha256="0" * 64) for path, one in mended[1].asked.items()}
    )
    (tmp_path / "audit.html").write_text(render_page(other, most=50), encoding="utf-8")
    page.reload()
    assert left(page) == "6 of 6 left"


def test_two_tabs_agree(page: Page) -> None:
    second = page.context.new_page()
    second.goto(page.url)
    page.keyboard.press("3")
    second.wait_for_function("document.getElementById('left').textContent.startsWith('5 of 6')")
    assert second.locator(".done").count() == 1


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            "Object.defineProperty(window, 'localStorage',"
            " {get() { throw new DOMException('', 'SecurityError') }})",
            "does not let the page store anything",
        ),
        (
            "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError') }",
            "storage is full, so a reload loses your decisions: save review.csv",
        ),
    ],
)
def test_where_nothing_can_be_stored_the_page_says_so(page: Page, script: str, sentence: str) -> None:
    page.add_init_script(script)
    page.reload()
    assert sentence in page.locator("#warning").inner_text()
    page.keyboard.press("3")
    assert left(page) == "5 of 6 left"
    assert len(read_review(saved(page))) == 1


def test_the_view_shows_neighbours_of_both_classes(page: Page) -> None:
    titles = page.locator("#view h3").all_inner_texts()
    assert titles == ["Most like it among rose", "Most like it among daisy"]
    assert page.locator("#view .near img").count() == 6
    sizes = page.locator("#view img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert all(0 < size <= 320 for size in sizes)


def test_all_classes_can_be_chosen_by_keys_where_there_are_many(
    browser: Browser, mended: tuple[Path, Findings], tmp_path: Path
) -> None:
    many = {**mended[1].files, **{f"class {number:02}": 1 for number in range(40)}}
    (tmp_path / "audit.html").write_text(
        render_page(replace(mended[1], files=many, readable=many), 50), "utf-8"
    )
    for page in opened(browser, tmp_path / "audit.html"):
        page.keyboard.press("9")
        page.keyboard.press("0")
        page.keyboard.type("no such")
        page.keyboard.press("Enter")
        assert page.locator("#view input").get_attribute("aria-invalid") == "true"
        page.locator("#view input").select_text()
        page.keyboard.type("class 39")
        page.keyboard.press("Enter")
        labels = [one.label for one in read_review(saved(page))]
        assert labels == ["class 02", "class 39"]
        left = page.locator("#left").inner_text()
        page.keyboard.press("0")
        page.keyboard.type("class 38")
        page.keyboard.press("Escape")  # nothing is chosen
        assert page.locator("#left").inner_text() == left
        page.keyboard.down("1")
        page.keyboard.down("1")  # a key that is held decides once
        page.keyboard.up("1")
        assert len(read_review(saved(page))) == 3


def test_on_a_phone_a_tap_opens_the_view(
    browser: Browser, mended: tuple[Path, Findings], tmp_path: Path
) -> None:
    (tmp_path / "audit.html").write_text(render_page(mended[1], most=50), encoding="utf-8")
    for page in opened(browser, tmp_path / "audit.html", 390, 844, is_mobile=True, has_touch=True):
        assert page.locator("#view").is_hidden()
        page.locator(".asked img").nth(1).tap()
        assert page.locator("#view .name").inner_text() == list(PLANTED)[1]
        page.locator("#view").get_by_role("button", name="It is a sunflower").tap()
        assert page.locator("#view .name").inner_text() == "tulip/\\xff.png"
        page.locator("#close").tap()
        assert page.locator("#view").is_hidden()
        assert left(page) == "5 of 6 left"
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        hidden = """all => all.filter(one => one.scrollHeight > one.clientHeight + 1).length"""
        assert page.locator(".photo").evaluate_all(hidden) == 0


def test_what_is_left_for_the_next_audit_is_not_asked_about(
    browser: Browser, mended: tuple[Path, Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "ASKED", 2)
    paths = list(PLANTED)
    asked = {
        path: replace(one, neighbours={"tulip": [paths[2]], "daisy": ["daisy/daisy_0001.png"]})
        if path == paths[0]
        else one
        for path, one in mended[1].asked.items()
    }
    findings = replace(mended[1], asked=asked, look_alikes=[LookAlikes([paths[0], paths[3]], 0.99)])
    (tmp_path / "audit.html").write_text(render_page(findings, most=50), "utf-8")
    for page in opened(browser, tmp_path / "audit.html"):
        assert left(page) == "2 of 2 left"
        assert (
            page.locator(".photo", has_text=Path(paths[3]).name).locator("img").count() == 1
        )  # a look-alike
        page.keyboard.press("3")
        page.keyboard.press("3")
        assert left(page) == "All decided: save review.csv"
        assert [one.path for one in read_review(saved(page))] == paths[:2]


@pytest.mark.parametrize("where", ["#view", ".photo >> nth=0"])
def test_a_double_click_decides_on_one_photo(page: Page, where: str) -> None:
    page.locator(where).get_by_role("button", name="Leave out").dblclick()
    assert left(page) == "5 of 6 left"
    page.keyboard.press("u")
    assert left(page) == "6 of 6 left"


CONTRAST = """selector => {
    const linear = (level) => level <= .04045 ? level / 12.92 : ((level + .055) / 1.055) ** 2.4;
    const bare = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const over = ([r, g, b, a = 1], under) =>
        [r, g, b].map((level, place) => a * level + (1 - a) * under[place]);
    const light = (levels) => {
        const [r, g, b] = levels.map((level) => linear(level / 255));
        return .2126 * r + .7152 * g + .0722 * b + .05;
    };
    const [found, part] = selector.split("::");
    const element = document.querySelector(found);
    const grounds = [];
    for (let one = element; one; one = one.parentElement)
        grounds.push(bare(getComputedStyle(one).backgroundColor));
    const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    const ground = grounds.reduceRight((under, one) => over(one, under), canvas);
    const text = over(bare(getComputedStyle(element, part && `::${part}`).color), ground);
    const both = [light(text), light(ground)].sort((one, other) => other - one);
    return both[0] / both[1];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_the_contrast_of_wcag(
    browser: Browser, mended: tuple[Path, Findings], tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "audit.html").write_text(render_page(mended[1], most=50), encoding="utf-8")
    for page in opened(browser, tmp_path / "audit.html", color_scheme=scheme):
        page.keyboard.press("3")
        page.evaluate("warn('A warning.')")
        texts = ["#warning", "h2 span", "nav span", "#save", ".photo.done .name::before", ".photo .name"]
        texts += ["button[aria-pressed=true]", "button[aria-pressed=false]"]
        contrasts = {text: round(page.evaluate(CONTRAST, text), 2) for text in texts}
        assert min(contrasts.values()) >= 4.5, contrasts  # AA
        page.evaluate("warn('')")


@pytest.mark.release
def test_5000_findings_scroll(browser: Browser, tmp_path: Path) -> None:
    root, count = tmp_path / "photos", 5000
    (root / "rose").mkdir(parents=True)
    (root / "tulip").mkdir()
    for number in range(40):
        draw_flower("rose", number, 160).save(root / f"rose/{number}.jpg")
    for number in range(40, count):
        (root / f"rose/{number}.jpg").hardlink_to(root / f"rose/{number % 40}.jpg")
    paths = [f"rose/{number}.jpg" for number in range(count)]
    sizes = {"rose": count, "tulip": 0}
    suspects = [SuspectLabel(path, "rose", "tulip", 0.0, 1.0, -1.0) for path in paths]
    check = LabelCheck(["rose", "tulip"], count, 0.5, [[0] * 2] * 2, [[0.0] * 2] * 2, 5.0, suspects)
    findings = Findings(str(root), sizes, sizes, [], labels=check)
    findings.asked = {path: Asked("rose", "0" * 64, {"rose": paths[:3]}) for path in paths}
    file = tmp_path / "audit.html"
    file.write_text(render_page(findings, most=50), encoding="utf-8")
    assert file.stat().st_size <= SIZE
    for page in opened(browser, file):
        assert left(page) == "5,000 of 5,000 left"
        drawn = page.locator(".photo").count
        assert 0 < drawn() < 40
        for place in (0.5, 1.0, 0.25):
            page.evaluate("place => scrollTo(0, place * document.documentElement.scrollHeight)", place)
            page.wait_for_function(
                """() => { const seen = [...document.querySelectorAll('.entry')].filter(one => {
                             const { top, bottom } = one.getBoundingClientRect();
                             return bottom > 0 && top < innerHeight });
                          return seen.length && seen.every(one => one.querySelector('img')?.naturalWidth) }"""
            )
            assert drawn() < 60
        for _ in range(50):
            page.keyboard.press("3")
        assert left(page) == "4,950 of 5,000 left"
        assert len(read_csv(saved(page))) == 50


def test_the_photos_in_question_are_looked_through_once_a_rung(tmp_path: Path) -> None:
    class Counted(list[str]):
        times = 0

        def __iter__(self) -> Iterator[str]:
            Counted.times += 1
            return super().__iter__()

    absent = [f"{number}.png" for number in range(300)]
    make_pictures(tmp_path, Counted(absent[:3]), lambda _: absent, 10**7)
    assert Counted.times < 10  # and not once for each photo


def test_the_pictures_take_no_more_room_than_there_is(tmp_path: Path) -> None:
    for number in range(8):  # noise is what WebP can do least about
        Image.effect_noise((400, 300), 90).convert("RGB").save(tmp_path / f"{number}.png")
    paths = [f"{number}.png" for number in range(8)]

    def others(neighbours: int) -> list[str]:
        return paths[4 : 4 + neighbours]

    large, rung = make_pictures(tmp_path, paths[:4], others, 10**7)
    assert (rung, len(large)) == (LADDER[0], 7)
    picture = Image.open(io.BytesIO(base64.b64decode(large["0.png"])))
    assert (picture.format, picture.size) == ("WEBP", (320, 240))
    room = sum(map(len, large.values())) // 3
    small, rung = make_pictures(tmp_path, paths[:4], others, room)
    assert sum(map(len, small.values())) <= room
    assert rung not in (LADDER[0], LADDER[-1])


@pytest.mark.release
def test_from_planted_errors_to_mended_labels_and_on_to_what_is_new(
    browser: Browser, real_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit finds them, keys mend them, training takes them, the next audit asks only what is new.

    What the page of that one saves has the earlier decisions, too.
    """
    monkeypatch.chdir(tmp_path)
    write_drawings(Path("photos"), 30, seed=3, size=96)
    planted = {"rose/0.png": "daisy", "rose/1.png": "sunflower"}
    for path, kind in planted.items():
        draw_flower(kind, 100 + 2 * int(path[5]), 96).save(f"photos/{path}")
    args = ["audit", "--data.root", "photos", "--data.image_size", "96", "--data.workers", "0"]
    args += ["--model.weights", str(real_weights)]
    assert main(args) == 0
    first = json.loads(Path("audit/audit.json").read_text())["asked"]
    assert planted.keys() <= first.keys()
    assert list(first["rose/0.png"]["neighbours"]) == ["rose", "daisy"]
    assert all(path.startswith("daisy/") for path in first["rose/0.png"]["neighbours"]["daisy"])
    for page in opened(browser, Path("audit/audit.html").resolve()):
        for _ in first:
            name = page.locator("#view .name").inner_text()
            page.keyboard.press("3" if name in planted else "1")  # 3 is the likely class
        shutil.copy(saved(page, by_key=True), "review.csv")
    decisions = {one.path: one for one in read_review("review.csv")}
    assert {path: one.label for path, one in decisions.items() if one.action == "relabel"} == planted
    assert all(one.sha256 == sha256_of(Path("photos", path)) for path, one in decisions.items())
    data = FlowersDataModule(root="photos", image_size=32, workers=0, review="review.csv")
    data.prepare_data()
    data.setup("fit")
    labels = {photo.path: photo.label for photo in data.placed}
    assert {path: labels[path] for path in planted} == planted

    draw_flower("tulip", 999, 96).save("photos/rose/1.png")  # another photo under its name
    assert main([*args, "--review", "review.csv", "--output", "again"]) == 0
    second = json.loads(Path("again/audit.json").read_text())
    assert "rose/1.png" in second["asked"]
    assert not second["asked"].keys() & (decisions.keys() - {"rose/1.png"})
    assert second["reviewed"]["unused"] == 1
    for page in opened(browser, Path("again/audit.html").resolve()):
        while page.locator("#view .name").inner_text() != "rose/1.png":
            page.keyboard.press("ArrowRight")
        page.keyboard.press("2")
        rows = {one.path: one for one in read_review(saved(page))}
    assert rows.pop("rose/1.png").action == "exclude"
    assert rows == {path: one for path, one in decisions.items() if path != "rose/1.png"}
