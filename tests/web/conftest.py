"""A real headless Chromium for the pages: Debian's, which `make test` installs where it may."""

import os
import shutil
import warnings
from contextlib import contextmanager

import pytest

from pbsd.report.commands import report
from pbsd.report.elements import Section
from pbsd.report.explorer import explorer
from pbsd.report.page import render
from pbsd.report.runs import read_run
from web.folders import pair, sample, write_run

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'pbsd[dev]'")
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        reason = "WEB TESTS NOT RUN: no chromium on this machine; `make chromium` as root installs Debian's"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextmanager
def opener(browser, folder):
    """Yields a function that opens a report of folders (or a page as HTML) from a file, offline; any error in a page,
    or anything it wanted to load, fails at the end."""
    contexts, pages = [], []

    def open_page(*folders, html=None, width=1280, height=900, scheme="light", **options):
        path = folder / f"page-{len(pages)}.html"
        path.write_text(html if html is not None else report(folders, **options), "utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.errors = []
        page.on("console", lambda message: message.type in ("error", "warning") and page.errors.append(message.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or page.errors.append(request.url))
        page.add_init_script(WATCH)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    found = [page.errors + page.evaluate("window.violations") for page in pages if not page.is_closed()]
    for context in contexts:
        context.close()
    assert not any(found), found


@pytest.fixture
def show(browser, tmp_path):
    with opener(browser, tmp_path) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of pbsd and one of grpo in another world, whose accuracy fell, with an alarm."""
    folder = tmp_path_factory.mktemp("runs")
    alarm = {"step": 5, "rule": "reward_collapse", "message": "reward fell below half of its best"}
    return [
        write_run(folder / "a", samples=[pair(step) for step in (1, 2, 3)], curve=[(2, 0.6), (4, 0.9)]),
        write_run(folder / "b", seed=1, samples=[pair()], curve=[(2, 0.8), (4, 0.7)]),
        write_run(
            folder / "c", method="grpo", data="lab/tools", samples=[sample()], curve=[(3, 0.9)], after=(1, 1, 1, 1),
            alarms=[alarm],
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page_of_runs(browser, runs, tmp_path_factory):
    """For tests that only read: running plotly.js takes a second a page."""
    with opener(browser, tmp_path_factory.mktemp("page")) as open_page:
        yield open_page(*runs)


@pytest.fixture
def explore(show):
    """Opens a page of runs with the explorer alone: without charts, plotly.js need not run."""

    def open_page(*folders, max_pairs=10_000, max_bytes=10**8, **window):
        explorers = {folder.name: explorer(read_run(folder, folder.name), max_pairs, max_bytes) for folder in folders}
        return show(html=render("pairs", [Section("manifest", "Manifest")], explorers), **window)

    return open_page
