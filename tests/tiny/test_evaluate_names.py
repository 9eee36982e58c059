"""`pbsd evaluate`: names are checked before anything is made, and no secret is recorded."""

import json
import os

import pytest

from pbsd.cli import main
from pbsd.evaluate.measure import Request, default_folder


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["m", "--benchmark", "../../x"], "no benchmark is called '../../x'"),
        (["m", "--benchmark", "bfcl:../x"], "no benchmark is called"),
        (["m", "--benchmark", "reasoning-gym:../x"], "no task '../x'"),
        (["{tmp}/nowhere", "--benchmark", "gsm8k", "--local", "{tmp}/rows"], "nowhere"),
        (["m", "--benchmark", "gsm8k", "--local", "{tmp}/no-rows"], "no-rows"),
    ],
)
def test_nothing_is_made_for_a_name_that_is_refused(tmp_path, monkeypatch, capsys, flags, words):
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "test.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    monkeypatch.chdir(tmp_path / "here" / "deep")
    before = sorted(tmp_path.rglob("*"))
    assert main(["evaluate", *(flag.replace("{tmp}", str(tmp_path)) for flag in flags)]) == 2
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("model", ["..", "/", "../..", "runs/x/model", "org/model"])
def test_a_result_lies_below_the_results_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = default_folder(Request(model, "bfcl:simple"))
    assert os.path.normpath(folder) == str(folder)
    assert folder.parts[:2] == ("runs", "evaluate")
    assert len(folder.parts) == 4


def test_restart_moves_an_evaluation_and_nothing_else(tmp_path, recipe, capsys):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "test.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    command = [
        "evaluate", str(tmp_path / "model"), "--benchmark", "gsm8k", "--local", str(rows), "--n", "1",
        "--max_completion_length", "4", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main([*command, "--restart"]) == 2
    assert "--out" in (error := capsys.readouterr().err) and "is not a run's folder: it holds notes.txt" in error
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    assert main(command) == 0
    (tmp_path / "out" / "evaluation.json").write_bytes(b"\0" * 50)
    assert main(command) == 2
    assert "evaluation.json: not JSON (zero bytes" in capsys.readouterr().err
    assert main([*command, "--restart"]) == 0
    assert (tmp_path / "out.1" / "records.jsonl").is_file()
