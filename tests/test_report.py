"""A grid's page, looked at in a browser: nothing missing, no error, no network."""

import json
import re
import shutil
import sys

import pytest
from grids import key, write_grid
from test_statistics import rates_grid

from analysis import report
from analysis.report import write_report
from launch import app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(autouse=True)
def kernel(tmp_path_factory, monkeypatch):
    """No kernel or configuration of the user's comes in between."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp("jupyter")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_grid(root)
    for number, folder in enumerate(sorted(root.glob("?" * 16))):
        environment = {"torch": "2.15.0", "threads": 1, "started": number, "commit": "abc" if number else "def"}
        (folder / "environment.json").write_text(json.dumps(environment))
    return root


@pytest.fixture(scope="module")
def page(runs):
    return write_report(runs, "ffnification", "digits")


def test_the_page_holds_all_that_it_shows(runs, page):
    assert page == runs / "grids" / "ffnification@digits.html"
    text = page.read_text()
    for part in (
        "Which slot buys accuracy?",
        "+1.11 [+0.43, +1.80]",
        "no winner is named",
        "pooling seed 1: loss is not finite",
        key("gelu", 0),
        "def (1 run)",
        "Configuration of the base",
    ):
        assert part in text, part
    assert not re.search(r"(src|href)=\"(https?:)?//", text) and "@import" not in text and "import(" not in text
    assert text.count("data:image/png;base64,") >= 4


def test_a_report_without_its_libraries_says_what_to_install(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(ValueError, match=r"a report needs papermill.*: pip install -e '\.\[notebooks\]'"):
        write_report(runs, "ffnification")


def test_learning_rates_have_a_table_of_their_own(tmp_path):
    runs, meta = rates_grid(
        tmp_path, {"attention": {0.004: [(90, 80)], 0.001: [(80, 99)]}, "gelu": {0.004: [(90, 80)], 0.001: ["x"]}}
    )
    assert "| attention | 80.00 (1) | 90.00 (1) |" in report.learning_rates(runs, meta)
    assert "| gelu | – | 90.00 (1) |" in report.learning_rates(runs, meta)


def test_the_command_writes_the_page_where_it_is_asked(runs, capsys):
    elsewhere = runs.parent / "my pages" / "page.html"
    elsewhere.parent.mkdir()
    app(["report", "ffnification", "--runs", str(runs), "--out", str(elsewhere)], standalone_mode=False)
    assert str(elsewhere) in capsys.readouterr().out
    with pytest.raises(ValueError, match="no such folder"):
        write_report(runs, "ffnification", out=runs / "no" / "page.html")


def test_collect_prints_its_table_where_nothing_can_be_written(runs, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("analysis.tables.to_csv", refuse)
    app(["collect", "ffnification", "--runs", str(runs)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "parallel_branch" in said and "not kept, cannot write here (Read-only file system)" in said


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_a_browser_shows_it_without_errors(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page()
        problems, asked = [], []
        shown.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        shown.goto(page.as_uri())
        assert problems == [] and set(asked) <= {"file", "data"}
        shown.set_viewport_size({"width": 390, "height": 800})  # a phone: tables scroll, the page does not
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
