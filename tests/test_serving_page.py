"""The page and /docs of `serve` in a real browser: what is shown, at a desktop's and a phone's width."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import TOKEN, drawing, encoded, running, without

from flowers_pl.data.drawings import draw_flower
from flowers_pl.serving.guard import RequestLimits
from flowers_pl.serving.models import ServedModel

DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 800}


class Visit:
    """A visit to a server: the page, what it asked for, and what went wrong in it."""

    def __init__(self, browser: Any, client: httpx.Client, path: str, size: dict[str, int]) -> None:
        self.context = browser.new_context(viewport=size, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.own = str(client.base_url).rstrip("/")
        self.page.goto(self.own + path)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    @property
    def elsewhere(self) -> list[str]:
        """What was asked of other hosts."""
        own = (f"{self.own}/", f"blob:{self.own}/", "data:")
        return [url for url in self.asked if not url.startswith(own)]

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def give(self, *pictures: tuple[str, bytes], way: str = ".choose") -> None:
        """Choose files, and wait until they have been classified."""
        files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in pictures]
        self.page.wait_for_selector(way, state="attached")
        self.page.wait_for_function("document.querySelector('.model').textContent !== ''")
        self.page.set_input_files(way, files)
        self.page.wait_for_selector(".shown:not([hidden])")
        if len(pictures) > 1:
            self.page.wait_for_function(
                "document.querySelector('.state').textContent.endsWith('classified.')"
            )

    def fits(self) -> bool:
        """Whether nothing is cut off or must be scrolled to at the side."""
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_one_picture(
    browser: Any, client: httpx.Client, plain: ServedModel, size: dict[str, int], tmp_path: Path
) -> None:
    answer = client.post("/classify", files=[("files", ("rose.png", drawing(1)))]).json()["results"][0]
    with Visit(browser, client, "/", size) as visit:
        visit.give(("rose.png", drawing(1)), way=".photograph" if size is PHONE else ".choose")
        visit.page.wait_for_selector(".heat[src]")
        said = visit.text(".model")
        assert "Model test-run, 3 classes (daisy, rose, tulip): 90.0 % correct on 50 drawings" in said
        shares = visit.text("#probabilities")
        for name, share in answer["probabilities"].items():
            assert name in shares
            assert f"{100 * share:.0f}%" in shares
        heat = "getComputedStyle(document.querySelector('.heat')).opacity"
        assert visit.page.evaluate(heat) == "0.5"
        visit.page.fill("#strength input[type=number]", "0.2")
        visit.page.keyboard.press("Tab")
        visit.page.wait_for_function(f"{heat} === '0.2'")
        photo, map_ = (visit.page.locator(selector).bounding_box() for selector in (".photo", ".heat"))
        assert photo == map_  # the one lies on the other
        assert visit.page.is_visible(".doubt") == answer["unknown"]
        assert visit.page.is_hidden(".many")
        assert visit.fits()
        visit.page.screenshot(path=tmp_path / "one.png", full_page=True)
        assert visit.elsewhere == visit.faults == []
        assert not [url for url in visit.asked if "gradio_api" in url]


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_many_pictures(browser: Any, client: httpx.Client, size: dict[str, int], tmp_path: Path) -> None:
    pictures = [(f"rose {number}.png", drawing(number)) for number in range(11)]
    pictures += [("=words.txt", b"words"), ("tulip.jpg", encoded(draw_flower("tulip", 3, 64), "JPEG"))]
    with Visit(browser, client, "/", size) as visit:
        visit.give(*pictures)
        assert "12 of 13 pictures classified." in visit.text(".state")
        rows = visit.page.locator(".many tbody tr")
        assert rows.count() == 13
        assert rows.locator("img").count() == 13
        assert "not a picture in a known format" in rows.nth(11).inner_text()
        rows.nth(12).click()
        visit.page.wait_for_function("document.querySelector('.about').textContent.includes('tulip.jpg')")
        visit.page.wait_for_selector(".heat[src]")
        rows.nth(11).locator("button").focus()
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector(".doubt:has-text('cannot be read')")
        with visit.page.expect_download() as download:
            visit.page.click(".save")
        download.value.save_as(tmp_path / "predictions.csv")
        assert visit.fits()
        visit.page.screenshot(path=tmp_path / "many.png", full_page=True)
        assert visit.elsewhere == visit.faults == []
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == ["path", "label", "daisy", "rose", "tulip", "unlike", "unknown", "error"]
    assert [row["path"] for row in table] == [name if name[0] != "=" else f"'{name}" for name, _ in pictures]
    answers = client.post("/classify", files=[("files", one) for one in pictures]).json()["results"]
    for row, answer in zip(table, answers, strict=True):
        assert (row["label"], row["error"]) == (answer["label"] or "", answer["error"] or "")
        for name, share in answer["probabilities"].items():
            assert float(row[name]) == pytest.approx(share, abs=2e-5)


def test_pictures_are_dropped_and_pasted(browser: Any, client: httpx.Client) -> None:
    give = """([kind, bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], kind + ".png", {type: "image/png"}));
        const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: transfer, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: transfer});
        window.dispatchEvent(event);
    }"""
    with Visit(browser, client, "/", DESKTOP) as visit:
        visit.page.wait_for_function("document.querySelector('.model')?.textContent")
        for kind in ("drop", "paste"):
            visit.page.evaluate(give, [kind, list(drawing(4))])
            visit.page.wait_for_selector(f".about:has-text('{kind}.png')")
            visit.page.wait_for_selector(".heat[src]")
        assert visit.faults == []


DROP = """names => {
    for (const several of names) {
        const transfer = new DataTransfer();
        for (const [name, bytes] of several) transfer.items.add(new File([new Uint8Array(bytes)], name));
        window.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
    }
}"""


def named(*names: str) -> list[tuple[str, list[int]]]:
    return [(name, list(drawing(number))) for number, name in enumerate(names)]


def test_pictures_dropped_while_others_are_classified_come_after_these(
    browser: Any, client: httpx.Client
) -> None:
    with Visit(browser, client, "/", DESKTOP) as visit:
        visit.page.wait_for_function("document.querySelector('.model')?.textContent")
        names = visit.page.locator(".many tbody td:nth-child(2)")
        for _ in range(2):  # the second time the table begins anew
            visit.page.evaluate(DROP, [named("a", "b"), named("c"), named("d", "e")])
            visit.page.wait_for_selector(".state:has-text('5 of 5 pictures classified.')")
            assert names.all_inner_texts() == ["a", "b", "c", "d", "e"]
            assert visit.page.is_visible(".save")
        visit.page.evaluate(DROP, [named("f"), named("g")])
        visit.page.wait_for_selector(".state:has-text('2 of 2 pictures classified.')")
        assert names.all_inner_texts() == ["f", "g"]
        assert visit.page.is_visible(".save")
        visit.page.evaluate(DROP, [named("h")])
        visit.page.wait_for_selector(".about:has-text('h')")
        assert visit.page.is_hidden(".save")
        assert visit.faults == []


@pytest.mark.slow
def test_pictures_after_a_lost_request_are_classified(browser: Any, plain: ServedModel) -> None:
    asked: list[int] = []

    def lose(route: Any) -> None:
        asked.append(len(asked))
        route.abort() if asked[-1] in (0, 2, 3, 4, 5) else route.continue_()

    limits = RequestLimits(max_files=1)
    with running(plain, limits, page=True) as client, Visit(browser, client, "/", DESKTOP) as visit:
        visit.page.route("**/classify?heatmap=false", lose)
        visit.give(*[(name, drawing(number)) for number, name in enumerate("abc")])
        assert "2 of 3 pictures classified." in visit.text(".state")
        remarks = visit.page.locator(".many tbody td:nth-child(5)").all_inner_texts()
        assert remarks[1] == "The server cannot be reached."
        assert "reached" not in remarks[0] + remarks[2]
        assert len(asked) == 7


def test_a_picture_of_something_else_is_called_that_in_words(browser: Any, plain: ServedModel) -> None:
    def far(photos: Any) -> Any:
        shares = plain.compute(photos)[0]
        return shares, shares[:, 0] * 0 + 7

    with (
        running(without(plain, compute=far), page=True) as client,
        Visit(browser, client, "/", PHONE) as visit,
    ):
        visit.give(("x.png", drawing(1)))
        visit.page.wait_for_selector(".doubt:has-text('Probably none of these')")
        assert "7.00" in visit.text(".doubt")


def test_a_model_that_lacks_maps_and_novelty_says_so(browser: Any, plain: ServedModel) -> None:
    bare = without(plain, compute=lambda photos: (plain.compute(photos)[0], None), explain=None)
    with running(bare, page=True) as client, Visit(browser, client, "/", DESKTOP) as visit:
        visit.give(("x.png", drawing(1)))
        visit.page.wait_for_selector(".about:has-text('no heat maps')")
        assert "cannot tell pictures of something else" in visit.text(".about")
        assert visit.page.is_hidden(".heat")


def test_names_of_files_are_text_not_html(browser: Any, client: httpx.Client) -> None:
    name = '<img src=x onerror="document.title=1">.png'
    with Visit(browser, client, "/", DESKTOP) as visit:
        visit.give((name, drawing(1)), (name, b"words"))
        assert visit.page.locator(".many tbody tr").nth(0).locator("td").nth(1).inner_text() == name
        assert visit.page.title() == "flowers_pl"


@pytest.mark.slow
def test_a_browser_enters_with_the_token(browser: Any, plain: ServedModel) -> None:
    with running(plain, token=TOKEN, page=True) as client, Visit(browser, client, "/", PHONE) as visit:
        visit.page.fill("#token", "wrong")
        visit.page.click("button")
        visit.page.wait_for_selector("p:has-text('not the token')")
        visit.page.fill("#token", TOKEN)
        visit.page.click("button")
        visit.give(("rose.png", drawing(1)))
        visit.page.wait_for_selector(".heat[src]")
        assert not [url for url in visit.asked if TOKEN in url]
        (cookie,) = visit.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")


def test_the_docs_ask_no_other_host(browser: Any, client: httpx.Client) -> None:
    with Visit(browser, client, "/docs", DESKTOP) as visit:
        visit.page.wait_for_selector("text=/classify")
        visit.page.click("text=/classify")
        visit.page.wait_for_timeout(500)
        assert visit.elsewhere == visit.faults == []


@pytest.mark.slow
def test_no_other_site_may_frame_the_page(browser: Any, client: httpx.Client) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_content(f'<iframe src="{client.base_url}"></iframe>')
    page.wait_for_timeout(1500)
    assert all(frame.locator(".drop").count() == 0 for frame in page.frames)
    context.close()
