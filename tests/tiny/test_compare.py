"""`pbsd compare` whole, on the packaged base with budgets of a few hundred tokens."""

import contextlib
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tiny_study import STUDY, compare, write_study

from pbsd.cli import main
from pbsd.compare.files import CHOICES, CURVES, RESULTS, RUNS, TABLE, TRAINING, read_choices, read_rows
from pbsd.compare.store import RESULT
from pbsd.compare.study_file import load_study
from pbsd.lab import worlds

FILES = (RESULTS, CURVES, TRAINING, CHOICES, RUNS, TABLE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that was left alone until it was done."""
    folder = write_study(tmp_path_factory.mktemp("compare") / "tiny")
    assert compare(folder) == 0
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """The same with its working folder, to change things in."""
    shutil.copytree(whole, tmp_path / "tiny")
    return tmp_path / "tiny"


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def results_of(folder):
    return {path.parent: path.stat().st_mtime_ns for path in (folder / "work" / "runs").glob(f"*/{RESULT}")}


def test_every_run_is_there_with_its_budget_and_curve(whole):
    """2 methods x 2 seeds x 8 problems x 2 samples. A run ends at the first step past 600 tokens; its curve has the
    base and the first step past each of 200, 400 and 600. Without tokens 6 steps have a point every 2."""
    rows = read_rows(whole / RESULTS)
    assert [tuple(row) for row in rows] == [
        ("method", "world", "task", "scale", "seed", "problem_id", "num_samples", "num_correct", "generated_tokens")
    ] * 32  # fmt: skip
    assert {row["num_samples"] for row in rows} == {2}
    assert {(row["method"], row["seed"]) for row in rows} == {(m, s) for m in ("pbsd", "sft") for s in (0, 1)}
    curves = {}
    for row in read_rows(whole / CURVES):
        curves.setdefault((row["method"], row["seed"]), []).append(row)
    metrics = {}
    for row in read_rows(whole / TRAINING):
        metrics.setdefault((row["method"], row["seed"]), []).append(row)
    assert len({points[0]["validation_accuracy"] for points in curves.values()}) == 1
    for (method, seed), points in curves.items():
        steps, tokens = ([point[key] for point in points] for key in ("step", "generated_tokens"))
        assert [row["step"] for row in metrics[method, seed]] == steps[1:]
        if method == "sft":
            assert (steps, set(tokens)) == ([0, 2, 4, 6], {0})
            continue
        assert [spent // 200 for spent in tokens] == [0, 1, 2, 3]
        # No step before a point was past its multiple: with at most 2 x 2 x 40 tokens a step, the point is within 160.
        assert all(spent % 200 < 160 for spent in tokens)
    assert metrics["pbsd", 0][-1]["tokens/student"] > 0
    assert not any(name.startswith("time/") for row in metrics["pbsd", 0] for name in row)


def test_choices_say_what_was_tried_and_found(whole):
    choices = read_choices(whole / CHOICES)
    assert [(c["method"], len(c["trials"])) for c in choices["choices"]] == [("pbsd", 2), ("sft", 2)]
    for choice in choices["choices"]:
        means = [trial["validation_accuracy"] for trial in choice["trials"]]
        assert choice["chosen"] == choice["trials"][means.index(max(means))]["options"]
    assert [run["ended_by"] for run in choices["runs"]] == ["tokens", "steps"] * 2
    assert {run["prompts_per_step"] for run in choices["runs"]} == {2}
    assert choices["study"]["methods"]["sft"]["trials"] == [{"learning_rate": 0.0}, {"learning_rate": 0.001}]
    assert "| pbsd | 2 |" in (whole / TABLE).read_text()


def test_a_stopped_study_goes_on_and_ends_as_one_left_alone(whole, tmp_path):
    """Stopped twice, each time when a final run has a checkpoint but no result: asked to (it saves, and writes the
    files of what is finished), then killed. Then the same command gives the same bytes, and what was finished is not
    done again."""
    folder = write_study(tmp_path / "tiny")
    words = ["compare", str(folder / "study.yaml"), "--work", str(folder / "work"), "--jobs", "1", "--save_steps", "1"]
    for seed, number, status in ((0, signal.SIGTERM, 143), (1, signal.SIGKILL, -9)):
        with subprocess.Popen([sys.executable, "-m", "pbsd.cli", *words], stderr=subprocess.PIPE, text=True) as process:
            while not unfinished(folder, seed):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.005)
            process.send_signal(number)
            assert process.wait() == status
        assert unfinished(folder, seed)
        assert "## Missing" in (folder / "table.md").read_text()
    before = results_of(folder)
    assert len(before) >= 5
    assert compare(folder) == 0
    assert contents(folder) == contents(whole)
    assert before.items() <= results_of(folder).items()


def unfinished(folder, seed):
    """Final runs of pbsd with a checkpoint of a step in their middle and no result."""
    return [
        path.parent
        for path in (folder / "work" / "runs").glob(f"final-pbsd-*-seed{seed}-*/checkpoint-[2-4]")
        if (path / "trainer_state.json").is_file() and not (path.parent / RESULT).exists()
    ]


def test_finished_runs_are_not_done_again(copied, capsys):
    before = results_of(copied)
    assert compare(copied) == 0
    assert results_of(copied) == before
    assert compare(copied, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "8 of 8 runs are done" in out
    assert "[1/" not in out


def test_a_changed_budget_reuses_nothing(copied, capsys):
    before = results_of(copied)
    write_study(copied, budget={"generated_tokens": 599, "max_steps": 6})
    assert compare(copied, "--dry_run") == 0
    out = capsys.readouterr().out
    assert "0 of 8 runs are done" in out
    assert f"{len(before)} results in" in out
    # Files are made of today's settings only.
    assert compare(copied, "--table") == 0
    assert "0 of 4 runs, 4 are missing" in capsys.readouterr().out
    assert read_rows(copied / RESULTS) == []


def test_a_part_of_a_study(tmp_path, capsys):
    """Tuning of one method; then no final run, since choices are open. Two more runs close them."""
    folder = write_study(tmp_path / "tiny")
    assert compare(folder, "--only", "sft") == 0
    out = capsys.readouterr().out
    assert "[2/2] tuning/sft/arithmetic/dense/packaged/trial1/seed7" in out
    assert "2 tuning runs are not finished: final runs wait" in out
    assert "0 of 4 runs, 4 are missing" in out
    assert compare(folder, "--max_runs", "2") == 0
    out = capsys.readouterr().out
    assert "tuning/pbsd" in out
    assert "final/" not in out
    assert compare(folder, "--only", "s?t", "seed1") == 0
    out = capsys.readouterr().out
    assert "[1/1] final/sft/arithmetic/dense/packaged/seed1" in out
    assert "left 0 s" in out
    assert "1 of 4 runs, 3 are missing" in out
    assert {row["method"] for row in read_rows(folder / RESULTS)} == {"sft"}


def test_a_failed_run_is_named_and_stops_no_other(tmp_path, capsys):
    methods = {
        "sft": {"method": "sft"},
        "lost": {"method": "pbsd", "options": {"reward_weights": [1.0, 2.0]}},
    }
    folder = tmp_path / "tiny"
    folder.mkdir()
    values = {key: value for key, value in STUDY.items() if key != "tuning"}
    (folder / "study.yaml").write_text(yaml.safe_dump({**values, "methods": methods}, sort_keys=False))
    assert compare(folder) == 1
    captured = capsys.readouterr()
    for seed in (0, 1):
        name = f"lost/arithmetic/dense/packaged/seed{seed}"
        assert f"failed: final/{name}: ValueError" in captured.err
    assert "reward_weights has 2 numbers for 1 reward functions" in captured.err
    assert "2 of 4 runs, 2 are missing" in captured.out
    (failure, _) = (folder / "work").glob("runs/*lost*/failure.txt")
    assert "Traceback" in failure.read_text()


def test_a_task_of_ones_own(tmp_path):
    """Rows of a folder instead of the laboratory's: trained, measured on its validation and tested on its test rows."""
    for split, size in (("train", 8), ("validation", 6), ("test", 8)):
        rows = worlds.dataset_rows("arithmetic", split, size)
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "reward_funcs": ["pbsd.lab.arithmetic:reward"], "max_completion_length": 40,
        "teacher_prompt_template": worlds.world("arithmetic", "dense").teacher_prompt_template,
    }  # fmt: skip
    study = write_study(
        tmp_path / "tiny",
        train={"problems": 8},
        methods={"rft": {"method": "rft"}},
        tuning=None,
        tasks={"sums": {"dataset": str(tmp_path), "options": options}},
        cells=[{"tasks": ["sums"], "worlds": ["own"], "scales": ["packaged"], "seeds": [0]}],
    )
    for name in ("train", "validation", "test"):
        assert (tmp_path / f"{name}.jsonl").exists()
    assert compare(study) == 0
    rows = read_rows(study / RESULTS)
    assert [(row["task"], row["world"]) for row in rows] == [("sums", "own")] * 8
    assert max(row["generated_tokens"] for row in rows) > 0


def test_the_table_of_a_clone_is_the_same(whole, tmp_path):
    """Only the study and its three files, and no runs."""
    for name in ("study.yaml", RESULTS, CURVES, CHOICES):
        shutil.copy(whole / name, tmp_path / name)
    assert main(["compare", str(tmp_path / "study.yaml"), "--work", str(tmp_path / "none"), "--table"]) == 0
    assert (tmp_path / TABLE).read_bytes() == (whole / TABLE).read_bytes()


@pytest.fixture
def clone(whole, tmp_path):
    """The study with its files and without its working folder, as a checkout on another machine."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("study.yaml", *FILES):
        shutil.copy(whole / name, folder / name)
    return folder


def test_a_study_goes_on_from_its_files_on_another_machine(whole, clone, capsys):
    """Everything is done there at first; a third seed is then 2 more runs of 6. Without it its 2 runs are refused to be
    lost only where they are in no working folder; dropped, the files are the old ones again, to the byte."""
    assert compare(clone, "--dry_run") == 0
    assert "8 of 8 runs are done" in capsys.readouterr().out
    write_study(clone, cells=[{**STUDY["cells"][0], "seeds": [0, 1, 2]}])
    assert compare(clone) == 0
    out = capsys.readouterr().out
    assert "[2/2] final/sft/arithmetic/dense/packaged/seed2" in out
    assert "tuning/" not in out
    assert len(read_rows(clone / RUNS)) == 4 + 6
    larger = (clone / RUNS).read_bytes()
    write_study(clone)
    shutil.move(clone / "work", clone / "elsewhere")
    assert compare(clone) == 2
    assert "holds 2 runs that are not of this study as it is now, such as final/pbsd" in capsys.readouterr().err
    assert (clone / RUNS).read_bytes() == larger
    shutil.move(clone / "elsewhere", clone / "work")
    assert compare(clone) == 0
    assert contents(clone) == contents(whole)
    (clone / RUNS).write_bytes(larger)
    shutil.rmtree(clone / "work")
    assert compare(clone, "--discard") == 0
    assert contents(clone) == contents(whole)


def test_a_new_method_keeps_the_finished_runs_while_its_trials_are_open(clone, capsys):
    more = {"rft": {"method": "rft", "tune": {"learning_rate": [0.0, 1e-3]}}}
    write_study(clone, methods={**STUDY["methods"], **more})
    assert compare(clone, "--max_runs", "1") == 0
    out = capsys.readouterr().out
    assert "1 tuning runs are not finished: final runs wait" in out
    assert "4 of 6 runs, 2 are missing" in out
    assert len(read_rows(clone / RUNS)) == 5 + 4


def test_files_that_arrive_while_a_study_runs_are_taken_in(whole, tmp_path):
    """Those of a pull, say, between the start and the writing."""
    from pbsd.compare.runner import StudyRunner

    folder = write_study(tmp_path / "tiny")
    runner = StudyRunner(load_study(folder / "study.yaml"), folder / "work", folder)
    for name in FILES:
        shutil.copy(whole / name, folder / name)
    runner.write()
    assert contents(folder) == contents(whole)


def test_the_newest_of_two_results_is_used(copied, capsys):
    """Here and in the files, where one is of an option's old default: the other, whichever it is."""
    (path, *_) = (copied / "work" / "runs").glob(f"final-sft-*/{RESULT}")
    whole = path.read_text()
    result = json.loads(whole)
    result["options"]["max_grad_norm"] += 1
    path.write_text(json.dumps(result))
    assert compare(copied, "--dry_run") == 0
    assert "8 of 8 runs are done" in capsys.readouterr().out
    path.write_text(whole)
    rows = [{**row, "options": result["options"]} if row["key"] == result["key"] else row for row in runs(copied)]
    (copied / RUNS).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    before = contents(copied)[RESULTS]
    assert compare(copied) == 0
    assert "[1/" not in capsys.readouterr().out
    assert contents(copied)[RESULTS] == before
    assert runs(copied) != rows


def runs(folder):
    return read_rows(folder / RUNS)


def test_results_elsewhere_start_from_those_beside_the_study(clone, tmp_path, capsys):
    assert compare(clone, "--out", str(tmp_path / "other")) == 0
    assert "[1/" not in capsys.readouterr().out
    assert {name: (tmp_path / "other" / name).read_bytes() for name in FILES} == contents(clone)


def test_files_without_their_runs_are_not_lost_to_a_first_partial_run(clone, capsys):
    (clone / RUNS).unlink()
    before = (clone / RESULTS).read_bytes()
    assert compare(clone, "--max_runs", "1") == 2
    assert "give another folder by --out" in capsys.readouterr().err
    assert (clone / RESULTS).read_bytes() == before


def test_two_compares_do_not_share_a_folder(copied, capsys):
    from pbsd.compare.store import Store

    with contextlib.closing(Store(copied / "work").lock()):
        assert compare(copied) == 2
    assert "another `pbsd compare` is writing here" in capsys.readouterr().err
    assert compare(copied) == 0


def test_unequal_trials_are_refused_by_the_command(tmp_path, capsys):
    methods = {**STUDY["methods"], "sft": {"method": "sft", "tune": {"learning_rate": [1e-3]}}}
    assert compare(write_study(tmp_path / "tiny", methods=methods)) == 2
    assert "pbsd 2, sft 1" in capsys.readouterr().err


def test_result_files_are_compressed_without_a_date(whole):
    assert (whole / RESULTS).read_bytes()[4:8] == bytes(4)
    assert len(gzip.decompress((whole / RESULTS).read_bytes())) > 32 * 100
