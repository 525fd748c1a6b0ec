"""A grid's page, looked at in a browser: nothing missing, tables that sort, no error, no network."""

import base64
import json
import re
import shutil
from urllib.parse import unquote

import pytest
from test_analysis import LADDER, write_grid
from test_statistics import rates_grid

from analysis.report import report
from launch import app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def runs(tmp_path):
    write_grid(tmp_path)
    for number, folder in enumerate(sorted(tmp_path.glob("ffnification*"))):
        environment = {"torch": "2.15.0", "threads": 1, "started": number, "commit": "abc" if number else "def"}
        (folder / "environment.json").write_text(json.dumps(environment))
    return tmp_path


def test_the_page_holds_all_that_it_shows(runs):
    page, meta = report(runs, "ffnification", "digits")
    assert (meta.grid, meta.data) == ("ffnification", "digits")
    for part in (
        "Which slot buys accuracy?",
        "attention (the base) reaches 96.11 % top-1",
        "+1.11 [+0.43, +1.80]",
        "no winner is named",
        "pooling seed 1: loss is not finite",
        'href="../ffnificationdigitsgelu0/"',
        "def (1 run), abc (26 runs)",
        "Pairs of variants",
        "by test loss",
        "model",
    ):
        assert part in page, part
    assert not re.search(r"(src|href)=\"(https?:)?//", page) and "@import" not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data, _ in pictures)
    titles = [words for _, words in pictures]
    assert len(set(titles)) == len(titles) and titles[0].startswith("Against attention"), titles
    assert any("epoch" in words or "val" in words for words in titles), titles


def test_names_are_text_not_markup(tmp_path):
    odd = "<script>alert(1)</script>"
    write_grid(
        tmp_path, {"attention": ([90.0, 91.0], 1), "gelu": ([90.5, "died of <b>"], 1)}, data=odd.replace("/", "")
    )
    page, _ = report(tmp_path, "ffnification")
    assert "<script>alert" not in page and "died of &lt;b&gt;" in page


@pytest.mark.parametrize("ladder", [{"attention": ([None, None], 1)}, {"gelu": ([95.0], 0)}])
def test_a_page_of_nothing_says_so(tmp_path, ladder):
    write_grid(tmp_path, ladder)
    page, _ = report(tmp_path, "ffnification")
    assert "No conclusion for ffnification on digits" in page


def test_a_page_of_mixed_and_half_finished_runs(runs):
    (runs / "ffnificationdigitsgelu0" / "result.json").write_text('{"state": "do')
    (runs / "ffnificationdigitsidentity0" / "config.json").write_text('{"schema": 2}')
    page, _ = report(runs, "ffnification")
    assert "gelu seed 0: result.json is half-written" in page and "has schema 2" in page and "Preliminary" in page


def test_learning_rates_have_a_table_of_their_own(tmp_path):
    rates_grid(
        tmp_path, {"attention": {0.004: [(90, 80)], 0.001: [(80, 99)]}, "gelu": {0.004: [(90, 80)], 0.001: ["x"]}}
    )
    page, _ = report(tmp_path, "ffnification")
    assert page.count('<section class="declared">') == 2 and "each variant at its best learning rate" in page
    assert "90.00 (1)" in page and "lr 0.001" in page


def test_the_command_writes_it_beside_the_grid(runs, capsys):
    with pytest.raises(SystemExit) as ended:
        app(["report", "ffnification", "--runs", str(runs)])
    path = runs / "grids" / "ffnification@digits.html"
    assert ended.value.code == 0 and path.read_text().startswith("<!doctype html>")
    assert str(path) in capsys.readouterr().out
    elsewhere = runs.parent / "my pages" / "page.html"
    elsewhere.parent.mkdir()
    with pytest.raises(SystemExit):
        app(["report", "ffnification", "--runs", str(runs), "--out", str(elsewhere)])
    links = [unquote(link) for link in re.findall(r'<a href="([^"]+)"', elsewhere.read_text())]
    assert len(links) == 27 and all((elsewhere.parent / link).is_dir() for link in links)
    with pytest.raises(ValueError, match="cannot write here"):
        app(["report", "ffnification", "--runs", str(runs), "--out", str(runs / "no" / "page.html")])


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_a_browser_shows_it_and_sorts_its_tables(runs):
    from playwright.sync_api import sync_playwright

    path = runs / "page.html"
    path.write_text(report(runs, "ffnification")[0], encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        problems, asked = [], []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        page.goto(path.as_uri())
        table = page.locator("section.declared table").first

        def column(number):
            return table.locator("tbody tr").evaluate_all(f"rows => rows.map(row => row.cells[{number}].textContent)")

        assert column(0) == list(LADDER)  # as declared, until asked otherwise
        table.locator("th button", has_text="top-1").click()
        rising = [float(text.split(" ")[0]) for text in column(3)]
        assert rising == sorted(rising) and len(rising) == len(LADDER)
        assert table.locator("th[aria-sort=ascending]").inner_text().startswith("top-1")
        table.locator("th button", has_text="top-1").click()
        assert [float(text.split(" ")[0]) for text in column(3)] == rising[::-1]
        table.locator("th button", has_text="difference").click()  # numbers, not their texts; the base has none
        found = column(4)
        numbers = [float(text.split(" ")[0].replace("−", "-")) for text in found[:-1]]
        assert numbers == sorted(numbers) and numbers[0] < 0 < numbers[-1] and found[-1] == ""
        table.locator("th button", has_text="variant").click()
        assert column(0) == sorted(LADDER)
        widths = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
        assert min(widths) > 600
        assert problems == [] and set(asked) <= {"file", "data"}
        page.set_viewport_size({"width": 390, "height": 800})  # a phone: tables scroll, the page does not
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
