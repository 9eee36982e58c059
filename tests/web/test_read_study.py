"""What the report makes of a study: leads, ranks, costs, training metrics, alarms. No browser."""

import gzip
import json

import pytest

from pbsd.compare.findings import read_findings
from pbsd.compare.table import make_table
from pbsd.report.commands import report
from pbsd.report.sections import sections
from pbsd.report.study import read_study, told_apart
from web.folders import PLANNED, lines, write_planned_study, write_study

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
DENSE = "arithmetic · dense · 0.2m"


def parts(*folders):
    """The page's sections by their ids."""
    studies = told_apart([read_study(folder, folder.name) for folder in folders])
    return {part.id: part for part in sections([], studies, [trial for study in studies for trial in study.trials])}


def table(part, caption):
    (found,) = [found for found in part.tables if found.caption.startswith(caption)]
    return [list(row) for row in found.rows]


def test_methods_are_ranked_with_paired_leads(tmp_path):
    """pbsd has 1 .5 .5 1 on the four problems and opsd .25 .5 .25 0, under both seeds: differences .75 0 .25 1, mean
    .5. Seeds do not differ, so the variance is that over problems, .625 / 3 / 4, with 3 degrees of freedom: half width
    3.1824 * .22822 = .7263. opsd's own .25 has the half width .3248, on the logit scale .3248 / .1875 = 1.7323 about
    -ln 3: .0557 to .6533. With one seed, as where sft is, there is no interval."""
    part = parts(write_planned_study(tmp_path / "s"))["comparison"]
    two, three = (
        table(part, f"{number} methods, 1 world, {seeds}: average rank")
        for number, seeds in ((2, "2 seeds each"), (3, "1 seed each"))
    )
    assert [row[:2] for row in two] == [["pbsd", "1.00"], ["opsd", "2.00"]]
    assert two[1][2:] == ["25.0 [5.6, 65.3]", f"+50.0 [{MINUS}22.6, +122.6]"]
    assert [[row[0], row[1], row[3]] for row in three] == [
        ["pbsd", "1.00", DASH], ["opsd", "2.00", "+50.0"], ["sft", "3.00", "+75.0"],
    ]  # fmt: skip
    (point,) = [
        trace for chart in part.charts for trace in chart.choices[0].plot["data"] if trace["error_x"]["array"][0]
    ]
    assert point["x"] == [pytest.approx(50)] and point["error_x"]["array"] == [pytest.approx(72.63, abs=0.01)]
    assert point["error_x"]["arrayminus"] == point["error_x"]["array"]
    assert all(chart.choices[0].plot["layout"]["xaxis"]["range"][0] < 0 for chart in part.charts)  # zero is in sight


def test_the_best_method_comes_first(tmp_path):
    """Whatever the study compares the others to."""
    other = {"pbsd": "opsd", "opsd": "pbsd"}
    swapped = {key: PLANNED[(other.get(key[0], key[0]), *key[1:])] for key in PLANNED}
    rows = table(parts(write_planned_study(tmp_path / "s", swapped))["comparison"], "2 methods")
    assert [(row[0], row[3].split()[0]) for row in rows] == [("opsd", f"{MINUS}50.0"), ("pbsd", DASH)]


def test_every_lead_is_that_of_the_written_table(tmp_path):
    folder = write_planned_study(tmp_path / "s")
    text = make_table(read_findings(folder)).replace("-", MINUS)
    for caption in ("2 methods", "3 methods"):
        for row in table(parts(folder)["comparison"], caption):
            assert f"| {row[0]} | {row[1]} | {row[2].split()[0]}" in text  # the bounds are on the logit scale here
            assert row[3] == DASH or f"| {row[3]} |" in text


def test_costs_are_those_of_the_curves(tmp_path):
    """90% of the best final validation accuracy, pbsd's .5, is .45: pbsd's mean curve has it half way between 1000 and
    2000 tokens, opsd's at .25 / .4 of the first 1000; sft never has it. opsd's best, .6, pbsd never reaches."""
    part = parts(write_planned_study(tmp_path / "s"))["comparison"]
    assert table(part, "Generated tokens to 90%") == [[DENSE, "1,500", "625", "never"]]
    assert table(part, "Tokens of pbsd to the best") == [["opsd", "0 of 1", "never", "never"]]
    assert table(part, "What training used")[0] == ["pbsd", "2", "20", "2,000", "steps 2", DASH, "2"]
    assert table(part, "What training used")[1] == ["opsd", "2", "20", "2,000", "steps 2", "length_explosion 2", "2"]


def test_a_method_without_a_run_in_a_world_has_no_cost_there(tmp_path):
    """pbsd alone is in `sparse`: 90% of its own .5 after 1500 tokens."""
    finished = {**PLANNED, ("pbsd", "sparse", 2): PLANNED["pbsd", "dense", 2]}
    rows = table(parts(write_planned_study(tmp_path / "s", finished))["comparison"], "Generated tokens to 90%")
    assert rows[1] == ["arithmetic · sparse · 0.2m", "1,500", DASH, DASH]


def test_training_metrics_by_method_over_tokens(tmp_path):
    """The reward of seed s at step t is s / 10 + t / 100: seeds 2 and 10 at step 10 give .3 and 1.1, mean .7."""
    (_, chart) = parts(write_planned_study(tmp_path / "s"))["curves"].charts
    assert chart.pickers == [
        ("Metric", ["Reward of student samples", "Loss", "KL(T || student), nats a completion"])
    ]  # one world: nothing to pick
    rewards, losses, _ = chart.choices
    mean = next(trace for trace in rewards.plot["data"] if trace.get("name") == "pbsd")
    assert mean["x"] == [1000, 2000] and mean["y"] == [pytest.approx(0.7), pytest.approx(0.8)]
    low, high = (
        trace["y"] for trace in rewards.plot["data"] if trace.get("legendgroup") == "pbsd" and "name" not in trace
    )
    assert low == [pytest.approx(0.3), pytest.approx(0.4)] and high == [pytest.approx(1.1), pytest.approx(1.2)]
    assert list(rewards.tables[0].rows[2]) == ["pbsd", "10", "10", "1,000", "1.1"]
    assert {row[0] for row in rewards.tables[0].rows} == {"pbsd", "opsd"}
    # sft generates nothing: its loss is in the table, not over tokens, and the caption says so.
    assert ["sft", "2", "20", "0", "0.1"] in [list(row) for row in losses.tables[0].rows]
    assert "sft" not in [trace.get("name") for trace in losses.plot["data"]]
    assert "since nothing is generated: sft;" in chart.caption


def test_a_metric_that_one_world_lacks_keeps_the_pickers_in_step(tmp_path):
    """Choices are metric by metric with every world in each, which is what the two pickers count by."""
    finished = {**PLANNED, ("sft", "sparse", 2): ((0, 0, 0, 0), (0.2, 0.3, 0.2))}
    (_, chart) = parts(write_planned_study(tmp_path / "s", finished))["curves"].charts
    (_, metrics), (_, worlds) = chart.pickers
    assert len(worlds) == 2
    assert [(c.group, c.name) for c in chart.choices] == [(metric, world) for metric in metrics for world in worlds]
    assert chart.choices[1].plot["data"] == [] and not chart.choices[1].tables[0].rows


def test_alarms_of_a_study_stand_in_the_heat_map(tmp_path):
    part = parts(write_planned_study(tmp_path / "s"))["stability"]
    assert {row[0]: row[6] for row in part.charts[0].choices[0].tables[0].rows} == {
        "pbsd": "0",
        "opsd": "2",
        "sft": "0",
    }
    text = dict(zip(("pbsd", "opsd", "sft"), part.charts[0].choices[0].plot["data"][0]["text"], strict=True))
    assert text == {"pbsd": ["0.0"], "opsd": ["30.0 ⚠2"], "sft": ["10.0"]}
    assert table(part, "Alarms in studies") == [["opsd", DENSE, "length_explosion", "2, 10"]]


def test_missing_runs_are_counted_and_named(tmp_path):
    study = read_study(write_planned_study(tmp_path / "s"), "s")
    assert study.notes == [
        f"5 of 10 planned runs are missing: pbsd ({DENSE}, seed 11), opsd ({DENSE}, seed 11), "
        "pbsd (arithmetic · sparse · 0.2m, seed 2) and 2 more."
    ]
    assert parts(tmp_path / "s")["overview"].tables[0].rows == [["s", "5 of 10", "3", "1", "2"]]


def test_methods_and_seeds_are_in_the_studys_order(tmp_path):
    trials = read_study(write_planned_study(tmp_path / "s"), "s").trials
    assert [(trial.label, trial.seed) for trial in trials] == [
        ("pbsd", "2"), ("opsd", "2"), ("pbsd", "10"), ("opsd", "10"), ("sft", "2"),
    ]  # fmt: skip


def test_a_study_with_nothing_finished_is_a_page(tmp_path):
    html = report([write_planned_study(tmp_path / "s", {})])
    assert "10 of 10 planned runs are missing" in html and "0 of 10" in html


def test_a_study_without_its_training_metrics_says_so(tmp_path):
    folder = write_planned_study(tmp_path / "s", metrics=False)
    assert "metrics.jsonl.gz: not in this folder." in read_study(folder, "s").notes
    assert len(parts(folder)["curves"].charts) == 1


def test_tables_alone_are_shown_without_ranks(tmp_path):
    curves = {("pbsd", "dense", 0): [(10, 100, 0.5), (20, 200, 0.4)]}
    part = parts(write_study(tmp_path / "s", curves, {("pbsd", "dense", 0): (4, 2)}))["comparison"]
    assert not part.charts and not part.tables and "says what it planned" in part.lacking


def test_the_same_method_of_two_studies_is_two(tmp_path):
    """A method may have other options in another study: its seeds are never one study's more."""
    one, two = (write_planned_study(tmp_path / name) for name in ("one", "two"))
    part = parts(one, two)
    (chart,) = part["accuracy"].charts
    rows = {row[0]: row[2] for row in chart.choices[0].tables[0].rows}
    assert rows["pbsd (one)"] == rows["pbsd (two)"] == "2: 75.0, 10: 75.0"
    assert [c.title for c in part["comparison"].charts].count("Lead of pbsd over the others in two") == 2
    colors = {
        trace["name"]: trace["meta"]["color"]
        for trace in part["curves"].charts[0].choices[0].plot["data"]
        if "name" in trace
    }
    lead = part["comparison"].charts[-1].choices[0].plot["data"][0]
    assert lead["name"] == "opsd" and lead["meta"]["color"] == colors["opsd (two)"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda choices: choices["study"].pop("cells"),
        lambda choices: choices["study"].update(cells=[{"tasks": ["arithmetic"]}]),
        lambda choices: choices.update(study=[]),
        lambda choices: choices.pop("runs"),
        lambda choices: choices["runs"][0].pop("method"),
        lambda choices: choices.update(runs=[3]),
        lambda choices: choices["runs"][0].pop("prompts_per_step"),
        lambda choices: choices.update(choices=[{"method": "pbsd"}]),
    ],
)
def test_damaged_choices_name_the_file(tmp_path, damage):
    folder = write_planned_study(tmp_path / "s")
    choices = json.loads((folder / "choices.json").read_text())
    damage(choices)
    (folder / "choices.json").write_text(json.dumps(choices))
    with pytest.raises(ValueError, match=r"choices\.json"):
        report([folder])


def test_a_curve_without_a_number_names_the_folder(tmp_path):
    folder = write_planned_study(tmp_path / "s")
    path = folder / "curves.jsonl.gz"
    rows = [
        json.loads(line) | {"validation_accuracy": None} for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    path.write_bytes(gzip.compress(lines(rows).encode()))
    with pytest.raises(ValueError, match="a table is not as `pbsd compare` writes it"):
        report([folder])


def test_a_metric_line_without_its_run_names_file_and_line(tmp_path):
    folder = write_planned_study(tmp_path / "s")
    (folder / "metrics.jsonl.gz").write_bytes(gzip.compress(lines([{"step": 1}]).encode()))
    with pytest.raises(ValueError, match=r"metrics\.jsonl\.gz, line 1: method must be text"):
        report([folder])
