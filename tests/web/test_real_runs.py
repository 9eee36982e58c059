"""Runs that `pbsd train` really wrote, of methods with and without pairs, and the command itself."""

import json

import pytest

from pbsd.cli import main
from pbsd.report.files import read_lines

expect = pytest.importorskip("playwright.sync_api").expect
PBSD_ONLY = ("preset", "loss_type", "nll_coef", "num_teacher_generations")


def test_trained_runs_become_a_page(recipe, tmp_path, show, capsys):
    folders = [tmp_path / method for method in ("pbsd", "grpo")]
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith("output_dir")]
    for folder in folders:
        options = [line for line in lines if folder.name == "pbsd" or not line.startswith(PBSD_ONLY)]
        recipe.write_text("\n".join([*options, f"method: {folder.name}", f"output_dir: {folder}"]))
        assert main(["train", str(recipe), "--eval_strategy", "steps", "--eval_steps", "3"]) == 0
    out = tmp_path / "page.html"
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    assert "open it in a browser" in capsys.readouterr().out

    page = show(html=out.read_text("utf-8"))
    samples = read_lines(tmp_path / "pbsd" / "samples.jsonl", [])
    expect(page.get_by_role("status")).to_contain_text(f"{len(samples)} pairs of {len(samples)}")
    summary = json.loads((tmp_path / "pbsd" / "summary.json").read_text())
    figure = page.locator("figure[data-chart=before-after]")
    figure.get_by_text("Numbers behind this chart").click()
    expect(figure.locator("tbody tr")).to_have_count(2)
    cells = [cell.inner_text() for cell in figure.locator("tbody tr").first.locator("td").all()]
    before = summary["accuracy"]["before_interval"]
    assert cells[0].startswith(f"{100 * before['estimate']:.1f}")
    for chart in ("curves", "signals", "ratios", "stability"):
        found = page.locator(f"figure[data-chart={chart}]")
        found.scroll_into_view_if_needed()
        expect(found.locator("svg.main-svg").first).to_be_visible()


def test_what_is_no_run_is_one_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "neither a run" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
