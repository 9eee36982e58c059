"""Result files and the table made of them alone, on files written by hand."""

import gzip
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from pbsd.compare.files import CHOICES, CURVES, RESULTS, RUNS, TABLE, ResultFiles, read_rows
from pbsd.compare.findings import read_findings
from pbsd.compare.statistics import CellValues, crossed_interval
from pbsd.compare.table import make_table, write_table

CORRECT = {
    # (method, world, seed): correct ones of 4 samples, by problem
    ("a", "dense", 0): [4, 2, 0], ("a", "dense", 1): [4, 4, 1],
    ("b", "dense", 0): [2, 2, 0], ("b", "dense", 1): [3, 2, 0],
    ("c", "dense", 0): [4, 4, 4], ("c", "dense", 1): [4, 4, 3],
    ("a", "sparse", 0): [1, 0, 0], ("a", "sparse", 1): [2, 0, 0],
    ("b", "sparse", 0): [0, 0, 0], ("b", "sparse", 1): [1, 1, 0],
}  # fmt: skip
CURVE = {"a": [0.2, 0.6, 0.5], "b": [0.2, 0.3, 0.4], "c": [0.2, 0.2, 0.8]}
STUDY = {
    "methods": {"a": {}, "b": {}, "c": {}},
    "cells": [
        {"tasks": ["tools"], "worlds": ["dense"], "scales": ["1m"], "methods": ["a", "b", "c"], "seeds": [0, 1]},
        {"tasks": ["tools"], "worlds": ["sparse"], "scales": ["1m"], "methods": ["a", "b"], "seeds": [0, 1]},
    ],
    "budget": {"generated_tokens": 200, "max_steps": 20},
    "test": {"problems": 5, "samples": 4},  # two of them left out, as over a prompt budget
    "checkpoint": "last",
}

TRIAL = {
    "name": "tuning/a/tools/dense/1m/trial0/seed9", "key": "trial", "options": {}, "problems": [], "steps": 20,
    "curve": [{"step": 0, "generated_tokens": 0, "accuracy": 0.2}], "metrics": [{"step": 10, "loss": 0.5}],
    "seconds": 3.0,
}  # fmt: skip


def identity(method, world, seed):
    return {"method": method, "world": world, "task": "tools", "scale": "1m", "seed": seed}


def finished(runs, prompts=16):
    """Runs as `ResultFiles.write` takes them; method c generates nothing."""
    for (method, world, seed), counts in runs.items():
        tokens = [0, 0, 0] if method == "c" else [0, 100, 200]
        yield identity(method, world, seed), {
            "name": f"final/{method}/tools/{world}/1m/seed{seed}", "key": f"{method}-{world}-{seed}", "options": {},
            "problems": [[place, 4, count, 50] for place, count in enumerate(counts)],
            "curve": [
                {"step": 10 * place, "generated_tokens": spent, "accuracy": accuracy}
                for place, (spent, accuracy) in enumerate(zip(tokens, CURVE[method], strict=True))
            ],
            "metrics": [{"step": 10, "loss": 0.5}],
            "steps": 20, "generated_tokens": tokens[-1], "ended_by": "steps" if method == "c" else "tokens",
            "prompts_per_step": prompts if method == "b" else 16, "alarms": ["length"] if method == "b" else [],
        }  # fmt: skip


@pytest.fixture
def written(tmp_path):
    def write(runs=CORRECT, choices=(), study=STUDY, prompts=16, folder="study"):
        done = list(finished(runs, prompts))
        keys = ("steps", "generated_tokens", "ended_by", "prompts_per_step", "alarms")
        summaries = [{**who, **{key: result[key] for key in keys}} for who, result in done]
        files = ResultFiles(tmp_path / folder)
        files.write({"study": study, "choices": list(choices), "runs": summaries}, [TRIAL], done)
        return tmp_path / folder

    return write


def rows_of(text, title):
    """The cells of the first table after a text, by their row's first cell."""
    lines = text[text.index(title) :].split("\n")
    start = next(place for place, line in enumerate(lines) if line.startswith("| ---"))
    found = {}
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        first, *others = [cell.strip() for cell in line.strip("|").split("|")]
        found[first] = others
    return found


def test_two_methods_over_both_cells(written):
    """Over dense and sparse: a has 15/24 and 3/24, mean 37.5%; b 9/24 and 2/24, 22.9%; a leads by 14.6 points, with the
    interval of the paired differences. Ranks: a is first in both."""
    text = make_table(read_findings(written()))
    rows = rows_of(text, "## a, b: 2 cells, 2 seeds")
    a, b = ([np.array([CORRECT[m, w, s] for s in (0, 1)]) / 4 for w in ("dense", "sparse")] for m in "ab")
    lead = crossed_interval([CellValues("x", ours - theirs) for ours, theirs in zip(a, b, strict=True)])
    assert rows["a"][0] == "1.00"
    assert rows["a"][1].startswith("37.5 [")
    assert rows["b"][:1] == ["2.00"]
    assert rows["b"][1].startswith("22.9 [")
    assert rows["b"][2] == f"+14.6 [{100 * lead.low:+.1f}, {100 * lead.high:+.1f}]"


def test_the_problems_are_those_that_were_tested(written):
    """Not those that the study asks for, some of which may be over a prompt budget."""
    assert "T = 1 on 3 test problems with 4 samples each" in make_table(read_findings(written()))


def test_all_methods_where_all_are(written):
    """Dense alone has c: 23/24 = 95.8% leads a (62.5%) by 33.3; ranks c 1, a 2, b 3."""
    rows = rows_of(make_table(read_findings(written())), "## a, b, c: 1 cell, 2 seeds")
    assert [rows[method][0] for method in "abc"] == ["2.00", "3.00", "1.00"]
    assert rows["c"][2].startswith("-33.3 [")


def test_by_world(written):
    rows = rows_of(make_table(read_findings(written())), "## a, b: 2 cells, 2 seeds\n")
    assert set(rows) == {"a", "b"}
    parts = rows_of(make_table(read_findings(written())).split("## a, b: 2 cells")[1], "By task, world and scale")
    assert parts["world sparse"][0] == "12.5 (rank 1.0)"
    assert parts["world sparse"][1].startswith("8.3; +4.2 [")
    assert parts["task tools"][0] == "37.5 (rank 1.0)"


def test_tokens_and_drops(written):
    """Dense: the best final accuracy is c's .8, so the level is .72: a and b never reach it, c does after
    10 + 10 * .52/.6 = 18.7 steps. Sparse: a's .5 gives .45, which a passes at 100 * .25/.4 = 62.5 tokens, and b never.
    Drops: a .1; others none. b's best, .4, is passed by a at 50 tokens, a quarter of b's 200."""
    text = make_table(read_findings(written()))
    tokens = rows_of(text, "### Generated tokens to 90%")
    assert tokens["tools dense 1m"] == ["never", "never", "19 steps"]
    assert tokens["tools sparse 1m"] == ["62", "never", ""]
    drops = rows_of(text, "### Drop")
    assert drops["tools dense 1m"] == ["10.0", "0.0", "0.0"]
    assert drops["largest"] == drops["largest of a run"] == ["10.0", "0.0", "0.0"]
    assert rows_of(text, "### Tokens of a to the best")["b"] == ["2 of 2", "0.25", "0.25"]


def test_the_cell_in_which_the_first_method_is_slowest_is_told(written):
    """As above, but in dense b has its best after half the tokens: a's share is a half there, a quarter in sparse."""
    folder = written()
    rows = read_rows(folder / CURVES)
    for row in rows:
        if (row["method"], row["world"], row["step"]) == ("b", "dense", 10):
            row["validation_accuracy"] = 0.4
    (folder / CURVES).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    shares = rows_of(make_table(read_findings(folder)), "### Tokens of a to the best")
    assert shares["b"] == ["2 of 2", "0.38", "0.50"]


def test_unequal_prompts_per_step_are_reported(written):
    assert "per step is equal for all methods" in make_table(read_findings(written()))
    text = make_table(read_findings(written(prompts=8)))
    assert "**not equal for all methods**" in text
    assert rows_of(text, "## What training used")["b"] == ["4", "20", "200", "tokens 4", "length 4", "8"]


def test_a_drop_of_one_seed_that_the_mean_hides_is_in_the_table(written):
    """Seed 0 falls from 0.6 to 0.5, seed 1 rises from 0.6 to 0.7: their mean, 0.6 and 0.6, has no drop."""
    folder = written()
    rows = read_rows(folder / CURVES)
    for row in rows:
        if (row["method"], row["seed"], row["step"]) == ("a", 1, 20):
            row["validation_accuracy"] = 0.7
    (folder / CURVES).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    drops = rows_of(make_table(read_findings(folder)), "### Drop")
    assert (drops["largest"][0], drops["largest of a run"][0]) == ("0.0", "10.0")
    assert drops["deepest fall on the way, of a run"] == ["10.0", "0.0", "0.0"]


def test_a_fall_that_was_made_up_for_is_in_the_table(written):
    """Method b in one run: 0.5, then 0.2, and it ends at its best."""
    folder = written()
    rows = read_rows(folder / CURVES)
    own = [row for row in rows if (row["method"], row["seed"], row["world"]) == ("b", 1, "dense")]
    for row, accuracy in zip(own, (0.5, 0.2, 0.9), strict=True):
        row["validation_accuracy"] = accuracy
    (folder / CURVES).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    drops = rows_of(make_table(read_findings(folder)), "### Drop")
    assert (drops["largest of a run"][1], drops["deepest fall on the way, of a run"][1]) == ("0.0", "30.0")


def test_unequal_generated_tokens_are_reported(written):
    """Of a and b, since c generates none: 200 each is equal; 205 are 2.5% more in the dense cell."""
    folder = written()
    assert "Mean generated tokens differ" not in make_table(read_findings(folder))
    choices = json.loads((folder / CHOICES).read_text())
    for run in choices["runs"]:
        if (run["method"], run["world"]) == ("b", "dense"):
            run["generated_tokens"] = 205
    (folder / CHOICES).write_text(json.dumps(choices))
    text = make_table(read_findings(folder))
    assert "differ by more than 2%, of the most and the least:\n\n- tools dense 1m: b 205, a 200\n" in text


def test_what_is_missing_is_said_and_only_common_seeds_are_compared(written):
    runs = {key: counts for key, counts in CORRECT.items() if key not in [("b", "dense", 1), ("a", "sparse", 0)]}
    folder = written(runs)
    text = make_table(read_findings(folder))
    assert "## Missing: 2 of 10 runs" in text
    assert "- tools dense 1m: seeds 1 of b" in text
    assert "## a, b: 2 cells, 1 seed\n" in text
    rows = rows_of(text, "## a, b: 2 cells")
    assert rows["a"][1] == f"{100 * (6 / 12 + 2 / 12) / 2:.1f}"
    assert write_table(folder).endswith("8 of 10 runs, 2 are missing")


def test_with_runs_missing_each_method_meets_the_first_where_both_are(written):
    """c has one seed of dense, 12/12, where a has 6/12, and b has not: no seed is common to all three. b meets a in the
    table of these two, above. Where no run is missing there is no such table."""
    left_out = [("b", "dense", 0), ("c", "dense", 1)]
    text = make_table(read_findings(written({key: v for key, v in CORRECT.items() if key not in left_out})))
    rows = rows_of(text, "## a and each other method")
    assert rows == {"c": ["1", "1", "100.0", "50.0", "-50.0"]}
    assert rows_of(text, "The lead of a by cell") == {"c": ["-50.0", ""]}
    assert "each other method" not in make_table(read_findings(written()))


def test_choices_are_shown(written):
    trials = [{"options": {}, "validation_accuracy": 0.5}, {"options": {}, "validation_accuracy": None}]
    cell = {"task": "tools", "world": "dense", "scale": "1m"}
    choices = [
        {"method": "a", **cell, "chosen": {"learning_rate": 0.001}, "trials": trials},
        {"method": "b", **cell, "chosen": None, "trials": trials},
        {"method": "c", **cell, "chosen": {"beta": 1}, "chosen_for": "z"},
        {"method": "d", **cell, "chosen": {"beta": 2}, "decided_in": {**cell, "world": "sparse"}},
    ]
    rows = rows_of(make_table(read_findings(written(choices=choices))), "## Chosen options")
    assert rows["a"][:3] == ["tools", "dense", "1m"]
    assert rows["a"][3:] == ["learning_rate 0.001", "50.0 -"]
    assert rows["b"][3] == "open"
    assert rows["c"][3:] == ["beta 1", "taken over from another study's z"]
    assert rows["d"][3:] == ["beta 2", "taken over from sparse 1m"]


def test_what_other_options_would_have_cost(written):
    """Over two places of a scale 50 and 10: mean 30, lowest 10; a place with an open trial counts for none of them, and
    another scale is counted by itself."""

    def choice(world, scale, slow, fast):
        trials = [
            {"options": {"learning_rate": rate}, "validation_accuracy": accuracy}
            for rate, accuracy in ((0.001, slow), (0.01, fast))
        ]
        return {"method": "a", "task": "tools", "world": world, "scale": scale, "chosen": None, "trials": trials}

    choices = [
        choice("dense", "1m", 0.4, 0.5), choice("sparse", "1m", 0.6, 0.1), choice("noisy", "1m", 0.9, None),
        choice("dense", "4m", 0.7, 0.2),
    ]  # fmt: skip
    text = make_table(read_findings(written(choices=choices)))
    lines = text[text.index("### What other options would have cost") :].split("\n")[6:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line] == [
        ["1m", "a", "learning_rate 0.001", "2", "50.0", "40.0"],
        ["1m", "a", "learning_rate 0.01", "2", "30.0", "10.0"],
        ["4m", "a", "learning_rate 0.001", "1", "70.0", "70.0"],
        ["4m", "a", "learning_rate 0.01", "1", "20.0", "20.0"],
    ]


def test_no_run_at_all_makes_a_table_too(written):
    assert "## Missing: 10 of 10 runs" in make_table(read_findings(written({})))


def test_equal_runs_give_equal_bytes(written):
    first, second = written(folder="one"), written(folder="two")
    for name in (RESULTS, CURVES, CHOICES):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    head = (first / RESULTS).read_bytes()[:10]
    assert head[3] == 0  # no name
    assert head[4:8] == bytes(4)  # no time
    assert read_rows(first / RESULTS)[0] == {
        **identity("a", "dense", 0), "problem_id": 0, "num_samples": 4, "num_correct": 4, "generated_tokens": 50
    }  # fmt: skip


def test_damaged_or_inconsistent_files_are_named(written):
    folder = written()
    whole = {name: (folder / name).read_bytes() for name in (RESULTS, CURVES, CHOICES)}

    def damaged(name, content):
        for other, own in whole.items():
            (folder / other).write_bytes(own)
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError) as refusal:
            read_findings(folder)
        return str(refusal.value)

    assert re.search(f"{RESULTS}: cannot be read", damaged(RESULTS, whole[RESULTS][:40]))
    assert "not a choices file" in damaged(CHOICES, b"{}")
    assert "cannot be read as choices" in damaged(CHOICES, b"{")
    lines = gzip.decompress(whole[RESULTS]).decode().splitlines()
    assert "tested on different problems" in damaged(RESULTS, gzip.compress("\n".join(lines[1:]).encode()))
    none = json.dumps({**json.loads(lines[0]), "num_samples": 0})
    assert "a problem without samples" in damaged(RESULTS, gzip.compress("\n".join([none, *lines[1:]]).encode()))
    assert "not of the same runs" in damaged(RESULTS, gzip.compress("\n".join(lines[3:]).encode()))


def test_files_hold_the_runs_that_they_were_made_of(written, tmp_path):
    """All but how long runs took and the training metrics of trials."""
    assert ResultFiles(tmp_path / "empty").runs() == {}
    trial = {key: value for key, value in TRIAL.items() if key != "seconds"} | {"metrics": []}
    expected = [trial, *(result for _, result in finished(CORRECT))]
    assert ResultFiles(written()).runs() == {run["key"]: run for run in expected}


def test_files_that_do_not_hold_their_runs_are_refused(written):
    folder = written()
    rows = gzip.decompress((folder / RUNS).read_bytes()).decode().splitlines(keepends=True)
    damaged = bytearray((folder / RUNS).read_bytes())
    damaged[60:66] = bytes(6)
    other = json.dumps({**json.loads(rows[3]), "steps": 21}) + "\n"
    for content, message in (
        (None, "results.jsonl.gz would be overwritten, and runs.jsonl.gz, .* is not beside it"),
        (bytes(damaged), "runs.jsonl.gz: cannot be read"),
        (gzip.compress("".join([*rows, other]).encode()), f"two different results of {json.loads(rows[3])['name']}"),
        (gzip.compress(b"[]\n"), "a row is not a run"),
        (gzip.compress(b"{}\n"), "a row is not a run"),
    ):
        (folder / RUNS).unlink() if content is None else (folder / RUNS).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ResultFiles(folder).runs()
    (folder / RUNS).write_bytes(gzip.compress("".join(rows + rows).encode()))
    assert len(ResultFiles(folder).runs()) == len(rows) == 11


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "accelerate"):
            raise ImportError(f"{name} is not for tables")
sys.meta_path.insert(0, Refuse())
from pbsd.cli import main
sys.exit(main(["compare", "study/study.yaml", "--table"]))
"""


def test_the_table_needs_no_torch(written):
    """`pbsd compare STUDY --table` where there are no runs, in a process that cannot import torch or transformers."""
    folder = written()
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / TABLE).read_text() == make_table(read_findings(folder))
    assert "no runs in runs/compare/study" in done.stdout
