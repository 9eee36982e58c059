"""The page in a real browser: what a person sees, reads with a screen reader, and does with the keyboard."""

import gzip
import itertools
import json
import re

import pytest

from pbsd.report.elements import Section
from pbsd.report.page import render
from web.folders import PLANNED, pair, write_planned_study, write_run, write_study
from web.seen import drawn, numbers, rows

expect = pytest.importorskip("playwright.sync_api").expect

MINUS = "\N{MINUS SIGN}"
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    "<svg onload=window.hacked=1>",
    "<!--<script>",
    "]]>'\"`${window.hacked=1}",
    "<a href='javascript:window.hacked=1'>click</a>",
    "<a href='https://evil.example/'>click</a>",
    "abc\u202edef\u2066ghi\x00\ud800\u00ad\u3164\ufe0f\U000e01ef",
)


def test_tables_show_the_numbers_of_the_files(page_of_runs):
    """a: .5, .6, .9, .75. Both seeds peak at 4 and 2 with .9 and .8, mean .85; both end at .75: the mean drop is .10.
    c peaks at .9 and ends at 1/8."""
    page = page_of_runs
    assert rows(page, "Runs")[0] == ["a", "pbsd", "lab/arithmetic", "0", "finished", "600", "12"]
    assert numbers(page, "before-after")[0] == [
        "a", "50.0 [21.4, 78.6]", "75.0 [20.6, 97.2]", f"+25.0 [{MINUS}9.1, +53.8]", "4",
    ]  # fmt: skip
    assert numbers(page, "curves")[:4] == [
        ["pbsd", "0", "0", "0", "50.0"],
        ["pbsd", "0", "2", "200", "60.0"],
        ["pbsd", "0", "4", "400", "90.0"],
        ["pbsd", "0", "6", "600", "75.0"],
    ]
    assert numbers(page, "stability") == [
        ["pbsd", "lab/arithmetic", "2", "85.0", "75.0", "10.0", "not recorded"],
        ["grpo", "lab/tools", "1", "90.0", "12.5", "77.5", "1"],
    ]
    assert rows(page, "Alarms") == [["c", "5", "reward_collapse", "reward fell below half of its best"]]


def test_charts_are_drawn_with_what_the_tables_say(page_of_runs):
    page = page_of_runs
    for chart in ("before-after", "final", "curves", "signals", "tokens", "margins", "ratios", "stability"):
        figure = drawn(page, chart)
        assert figure.locator("path.point, .scatterlayer .js-line, .heatmaplayer image, .hm").count() > 0, chart
    heat = page.locator("figure[data-chart=stability]")
    expect(heat.locator(".plot")).to_contain_text("77.5")


def test_a_picker_changes_chart_and_numbers(page_of_runs):
    figure = drawn(page_of_runs, "curves")
    picker = figure.get_by_label("World")
    assert len(numbers(page_of_runs, "curves")) == 8  # four points of each of two seeds
    picker.select_option("lab/tools")
    expect(figure.locator("tbody tr")).to_have_count(3)
    expect(figure.locator(".plot")).to_contain_text("grpo")
    picker.select_option("lab/arithmetic")
    expect(figure.locator(".plot")).not_to_contain_text("grpo")


def test_a_study_compares_its_methods(show, tmp_path):
    """The numbers are derived in test_read_study.py; here they are seen, at a phone's width too."""
    sparse = {(method, "sparse", 2): counts for (method, _, seed), counts in PLANNED.items() if seed == 2}
    page = show(write_planned_study(tmp_path / "study", {**PLANNED, **sparse}), width=360)
    ranking = rows(page, "2 methods, 2 worlds, 1 or 2 seeds each: average rank and accuracy in %")
    assert [row[:2] for row in ranking] == [["pbsd", "1.00"], ["opsd", "2.00"]]
    assert ranking[1][3].startswith("+50.0")
    lead = drawn(page, "lead-1")
    expect(lead.locator(".ytick text")).to_have_text(["opsd"])
    lead.get_by_label("Worlds").select_option("world dense")
    assert numbers(page, "lead-1")[1] == ["opsd", "2.00", "25.0 [5.6, 65.3]", f"+50.0 [{MINUS}22.6, +122.6]"]

    metrics = drawn(page, "metrics")
    expect(metrics.locator(".legend")).to_contain_text("opsd")
    assert numbers(page, "metrics")[0] == ["pbsd", "2", "10", "1,000", "0.3"]
    metrics.get_by_label("World").select_option("arithmetic · sparse · 0.2m")
    assert len(numbers(page, "metrics")) == 4
    metrics.get_by_role("combobox", name="Metric").select_option("Loss")
    losses = numbers(page, "metrics")  # of the three runs in this world, at two steps
    assert len(losses) == 6 and ["sft", "2", "10", "0", "0.2"] in losses
    expect(metrics.locator(".ytitle")).to_have_text("Loss")
    expect(drawn(page, "stability").locator(".plot")).to_contain_text("30.0 ⚠2")
    page.locator("summary", has_text="Chosen options of study").click()
    assert rows(page, "Chosen options of study") == [["pbsd", "arithmetic", "dense", "0.2m", "beta 0.1", "50.0"]]
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not accessibility_violations(page)


def test_a_study_and_a_run_that_still_goes_on_one_page(show, tmp_path):
    curves = {
        (method, world, seed): [(10, 1000, first), (20, 2000, last)]
        for (method, world, first, last) in (
            ("pbsd", "dense", 0.4, 0.5),
            ("opsd", "dense", 0.6, 0.3),
            ("pbsd", "sparse", 0.2, 0.3),
        )
        for seed in (0, 1)
    }
    results = {key: (1, 2, 1, 0) if key[0] == "opsd" else (4, 2, 2, 4) for key in curves}
    run = write_run(tmp_path / "run", after=None, samples=[pair(), pair(2)])
    (run / "samples.jsonl").write_bytes((run / "samples.jsonl").read_bytes()[:-30])
    page = show(write_study(tmp_path / "study", curves, results), run)
    drops = {(row[0], row[1]): row[5] for row in numbers(page, "stability")}
    assert drops["opsd", "arithmetic · dense · 0.2m"] == "30.0" and drops["pbsd", "arithmetic · dense · 0.2m"] == "0.0"
    assert [row[0] for row in numbers(page, "final")] == ["pbsd", "opsd"]  # best first
    table = rows(page, "Final accuracy in % in all worlds, with the same intervals")
    assert [[cell.split()[0] for cell in row] for row in table] == [
        ["opsd", "25.0", "\N{EN DASH}"],
        ["pbsd", "75.0", "75.0"],
    ]
    page.locator("summary", has_text="Choices of study").click()
    assert rows(page, "Choices of study") == [["pbsd.learning_rate", "0.001"]]

    notes = [note for _, note in rows(page, "Notes on the files")]
    assert notes[0].startswith("samples.jsonl: the last line (2) is cut off")
    assert notes[1] == "summary.json is not there yet: the run is unfinished, step 6 of 6."
    drawn(page, "before-after")
    assert numbers(page, "before-after") == [["run", "50.0 [21.4, 78.6]", "\N{EN DASH}", "\N{EN DASH}", "4"]]


# Foreign text


def opened(page):
    """Opens everything that can be opened, gives handlers time to run, and looks for what must not be there."""
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked === undefined")
    assert page.locator("main img, main a[href^=javascript], svg a").count() == 0


def test_hostile_samples_are_inert_and_readable(explore, tmp_path):
    samples = [
        pair(n, n, chosen=text, rejected=text, prompt=[{"role": text, "content": text}], privileged_context=text)
        for n, text in enumerate(HOSTILE)
    ]
    page = explore(write_run(tmp_path / "run", samples=samples))
    shown = [card.locator(".chosen pre").inner_text() for card in page.get_by_role("article").all()]
    assert shown == [*HOSTILE[:-1], "abc⟨U+202E⟩def⟨U+2066⟩ghi⟨U+0000⟩⟨U+D800⟩⟨U+00AD⟩⟨U+3164⟩⟨U+FE0F⟩⟨U+E01EF⟩"]
    assert page.locator("pre").first.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
    opened(page)


def test_hostile_names_are_inert_in_charts_and_tables(show, tmp_path):
    """Data, method, options, alarms and the page's title."""
    every = " ".join(HOSTILE)
    alarm = {"step": 1, "rule": every, "message": every}
    folder = write_run(
        tmp_path / "run", method=every, data=every, curve=[(2, 0.3)], options={every: every}, alarms=[alarm]
    )
    page = show(folder, title=every)
    assert HOSTILE[0] in rows(page, "Alarms")[0][2] and "⟨U+202E⟩" in rows(page, "Alarms")[0][2]
    expect(page.get_by_role("heading", level=1)).to_contain_text(HOSTILE[0])
    heat = drawn(page, "stability")
    for place in (0.5, 0.6):  # the first may come before plotly.js listens
        box = heat.locator(".nsewdrag").bounding_box()
        page.mouse.move(box["x"] + place * box["width"], box["y"] + place * box["height"])
        page.wait_for_timeout(200)
    expect(heat.locator(".hoverlayer")).to_contain_text("<img src=x")
    expect(drawn(page, "curves").locator(".legend")).to_contain_text("</script><script>")
    opened(page)


def test_hostile_names_of_a_study_are_inert(show, tmp_path):
    """Methods, worlds and alarms come from the study's files."""
    link = HOSTILE[6]  # plotly.js would make it one
    names = {"pbsd": link, "opsd": " ".join(HOSTILE), "dense": HOSTILE[1], "length_explosion": HOSTILE[2]}
    folder = write_planned_study(tmp_path / "study")
    for path in folder.iterdir():
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        for name, hostile in names.items():
            text = text.replace(json.dumps(name), json.dumps(hostile))
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    page = show(folder)
    lead = drawn(page, "lead-0")
    expect(lead.get_by_role("heading")).to_contain_text(f"Lead of {link} over")
    expect(lead.locator(".xtitle")).to_have_text(f"lead of {link}, percentage points")
    expect(drawn(page, "metrics").locator(".legend")).to_contain_text(link[:18])
    drawn(page, "stability")
    assert HOSTILE[2] in rows(page, "Alarms in studies")[0]
    opened(page)


def test_a_very_long_line_is_cut_with_a_button(explore, tmp_path):
    long = "x" * 1_000_000
    page = explore(write_run(tmp_path / "run", samples=[pair(chosen=long)]), width=360)
    pre = page.locator(".chosen pre")
    assert len(pre.inner_text()) == 2000
    assert pre.evaluate("node => node.scrollWidth <= node.clientWidth")  # wrapped
    page.get_by_role("button", name="Show all 1,000,000 characters").click()
    assert pre.evaluate("node => node.textContent.length") == 1_000_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Show less").click()
    assert len(pre.inner_text()) == 2000


def test_the_policy_stops_what_is_not_ours(show):
    """The negative control of every test here that sees no violation: a foreign script and style, put into the page
    by hand, are refused."""
    html = render("page", [Section("manifest", "Manifest")], {})
    page = show(html=html.replace("</main>", "<script>window.hacked=1</script><p style='color:red'>x</p></main>"))
    found = page.evaluate("window.violations")
    assert page.evaluate("window.hacked === undefined")
    assert [violation.split()[0] for violation in found] == ["script-src-elem", "style-src-attr"]
    page.close()  # these violations are meant


# Light, dark, narrow, and for everybody


def luminance(page):
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in color.strip("rgb()").split(","))


def accessibility_violations(page):
    Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
    found = Axe().run(page).response["violations"]
    return [(v["id"], v["impact"], [node["target"] for node in v["nodes"]][:3]) for v in found]


def test_light_is_light_and_accessible(page_of_runs):
    assert luminance(page_of_runs) > 600
    drawn(page_of_runs, "before-after")
    drawn(page_of_runs, "stability")
    numbers(page_of_runs, "before-after")
    assert not accessibility_violations(page_of_runs)


def test_dark_follows_the_system_and_the_picker_overrides_it(show, runs):
    page = show(*runs, scheme="dark")
    assert luminance(page) < 150
    text = drawn(page, "stability").locator(".ytick text").first
    assert not accessibility_violations(page)
    dark = text.evaluate("node => getComputedStyle(node).fill")
    page.get_by_label("Theme").select_option("Light")
    assert luminance(page) > 600
    assert text.evaluate("node => getComputedStyle(node).fill") != dark


def test_accessibility_violations_would_be_seen(explore, tmp_path):
    """The negative control: a picture without a text, pale letters."""
    page = explore(write_run(tmp_path / "run", samples=[pair()]))
    page.evaluate("""() => {
        document.querySelector("#main").append(document.createElement("img"));
        document.querySelector("h2").style.color = "#ddd";
    }""")
    assert {"image-alt", "color-contrast"} <= {name for name, *_ in accessibility_violations(page)}


def test_landmarks_headings_and_captions(page_of_runs):
    page = page_of_runs
    for role in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("navigation", name="Sections")).to_be_visible()
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    numbers(page, "curves")
    for table in page.locator("table").all():
        assert table.locator("caption").inner_text() or not table.is_visible()
        assert table.locator("thead th:not([scope=col])").count() == 0
        assert table.locator("tbody th:not([scope=row])").count() == 0


def test_nothing_is_wider_than_a_phone(page_of_runs):
    """Charts that were drawn wide are drawn anew."""
    page = page_of_runs
    for chart in ("before-after", "curves", "stability"):
        drawn(page, chart)
    numbers(page, "curves")
    page.set_viewport_size({"width": 360, "height": 740})
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    expect(page.locator("figure[data-chart=curves] svg.main-svg").first).to_have_attribute("width", re.compile("^3|^2"))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    chosen, rejected = (page.locator(f".{name}").first.bounding_box() for name in ("chosen", "rejected"))
    assert rejected["y"] >= chosen["y"] + chosen["height"]  # one above the other
    page.set_viewport_size({"width": 1280, "height": 900})
