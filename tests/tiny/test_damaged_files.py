"""A damaged or hostile file costs a sentence that names it; nothing of the run is lost, and there is no traceback."""

import json
import shutil

import pytest

from pbsd.cli import main
from pbsd.run import RunFolder


@pytest.fixture
def run_folder(recipe, tmp_path):
    assert main(["train", str(recipe), "--max_steps", "2"]) == 0
    return tmp_path / "run"


def refusal(capsys, *words) -> str:
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


DAMAGE = {
    "empty": lambda content: b"",
    "zeroed": lambda content: b"\0" * len(content),
    "halved": lambda content: content[: len(content) // 2],
    "not UTF-8": lambda content: b"\xff" + content[1:],
    "deep": lambda content: b"[" * 100_000,
    "a list": lambda content: b"[1]",
    "another object": lambda content: b'{"x": 1}',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_is_named_and_nothing_is_lost(run_folder, recipe, capsys, damage):
    path = run_folder / "manifest.json"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()}
    assert str(path) in refusal(capsys, "train", recipe, "--resume", "--max_steps", "4")
    assert {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "another object"])
@pytest.mark.parametrize("name", ["eval_before.json", "metrics.jsonl", "samples.jsonl"])
def test_other_damaged_files_of_a_run_are_named(run_folder, recipe, capsys, damage, name):
    if name.endswith(".jsonl") and damage in ("empty", "halved"):
        pytest.skip("a last line that was being written is left out")
    path = run_folder / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    error = refusal(capsys, "train", recipe, "--resume", "--max_steps", "4")
    assert str(path) in error or (damage == "a list" and name in error)


@pytest.mark.parametrize("problems", [1, [1], [{"row": 0}], [{"row": 0, "unknown": 1}]])
def test_results_of_another_form_are_named(run_folder, recipe, capsys, problems):
    path = run_folder / "eval_before.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "problems": problems}))
    assert f"{path}: damaged" in refusal(capsys, "train", recipe, "--resume", "--max_steps", "4")


def test_a_page_of_zeroed_metrics(run_folder, tmp_path, capsys):
    (run_folder / "metrics.jsonl").write_bytes(b"\0" * 500)
    error = refusal(capsys, "report", run_folder, "--out", tmp_path / "report.html")
    assert f"{run_folder}/metrics.jsonl, line 1: not JSON (zero bytes" in error


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("damage", ["empty", "zeroed", "halved"])
def test_a_damaged_model_is_named(recipe, tmp_path, capsys, name, damage):
    path = tmp_path / "model" / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert f"{tmp_path}/model" in refusal(capsys, "train", recipe)
    assert not (tmp_path / "run").exists()


BOMB = "\n".join(["a: &a0 [x, x]", *(f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 8))])
FILES = {
    "not UTF-8": (b"beta: 1\nseed: \xff\n", "line 2: byte 0xff is not UTF-8"),
    "UTF-16": ("beta: 1".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
    "deep": (b"beta: " + b"[" * 3000, "nested too deep"),
    "aliases": (BOMB.replace("b7: &a7", "reward_funcs:").encode(), "its aliases stand for more than 100,000 values"),
    "zeroed": (b"\0" * 100, "not valid YAML"),
    "a date": (b"seed: 2024-99-99\n", "not valid YAML"),
}


@pytest.mark.parametrize("command", ["train", "render", "doctor", "compare"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_recipe_or_study_is_named(tmp_path, capsys, command, name):
    content, words = FILES[name]
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    error = refusal(capsys, command, path)
    assert f"{path}" in error and words in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "train.jsonl, line 2: byte 0xff is not UTF-8"),
        (b'{"prompt": "a"}\n{"prompt": "b"\n', "train.jsonl, line 2: not JSON"),
        (b'{"prompt": "a"}\n' + b"\0" * 40, "train.jsonl, line 2: not JSON (zero bytes"),
    ],
    ids=["not UTF-8", "cut off", "zeroed"],
)
def test_damaged_rows_are_named_by_line(recipe, tmp_path, capsys, content, words):
    (tmp_path / "data" / "train.jsonl").write_bytes(content)
    assert words in refusal(capsys, "train", recipe)


def test_a_dataset_script_is_named(recipe, tmp_path, capsys):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("import datasets\n")
    error = refusal(capsys, "train", recipe, "--dataset_name", tmp_path / "script")
    assert f"dataset '{tmp_path}/script'" in error and "scripts" in error and "Save its rows as JSON lines" in error


def test_pilots_that_are_not_utf8(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": 1}\n\xff\n')
    error = refusal(capsys, "advise", "--self", tmp_path / "p.jsonl", "--external", tmp_path / "p.jsonl")
    assert "p.jsonl, line 2: byte 0xff" in error


def test_what_no_reader_foresaw_is_a_sentence_and_debug_keeps_the_traceback(recipe, monkeypatch, capsys):
    def broken(*args, **options):
        raise KeyError("column")

    monkeypatch.setattr("pbsd.run.train", broken)
    error = refusal(capsys, "train", recipe)
    assert "KeyError" in error and "--debug" in error
    with pytest.raises(KeyError):
        main(["--debug", "train", str(recipe)])


@pytest.mark.parametrize("output_dir", ["", ".", "/", "..", "{tmp}", "{tmp}/model", "{tmp}/data", "{tmp}/recipe.yaml"])
def test_folders_that_no_run_may_have(recipe, tmp_path, capsys, monkeypatch, output_dir):
    """The working folder is a recipe's, beside the model and the data, as people have it."""
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    above = sorted(path.name for path in tmp_path.parent.iterdir())
    for command in (["train"], ["train", "--resume"]):
        assert "output_dir" in refusal(
            capsys, *command, recipe, "--output_dir", output_dir.replace("{tmp}", str(tmp_path))
        )
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == above


def test_a_run_whose_model_is_the_base_is_not_moved(run_folder, recipe, capsys):
    error = refusal(capsys, "train", recipe, "--model_name_or_path", run_folder / "model")
    assert f"holds '{run_folder}/model', which this command reads" in error
    assert (run_folder / "summary.json").is_file()


def test_a_folder_with_a_text_file_is_left_alone(recipe, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert "it holds notes.txt. It is left as it is" in refusal(capsys, "train", recipe)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_lock_that_is_a_link_cuts_nothing(recipe, tmp_path, capsys):
    (tmp_path / ".run.lock").symlink_to(tmp_path / "data" / "train.jsonl")
    before = (tmp_path / "data" / "train.jsonl").read_text()
    assert "must be the lock of run" in refusal(capsys, "train", recipe)
    assert (tmp_path / "data" / "train.jsonl").read_text() == before


def test_a_base_is_not_built_among_other_files(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    command = ["lab", "build", "--task", "arithmetic", "--scale", "0.2m", "--variant", "dense", "--out"]
    assert "is not a base's folder: it holds notes.txt" in refusal(capsys, *command, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "build.json").write_text("{")
    assert "build.json: not JSON" in refusal(capsys, *command, tmp_path / "out")
    with RunFolder(tmp_path / "out").lock():
        assert "another build is writing here" in refusal(capsys, *command, tmp_path / "out")
