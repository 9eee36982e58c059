"""A run's folder is its own: what is no run is neither moved nor written into, and locks harm nothing."""

import json
import os

import pytest

from pbsd.run import RunFolder
from pbsd.run_paths import FolderInUse, check_output_dir, folder_part, is_run_folder, lock_folder, move_aside

MANIFEST = json.dumps({"method": "pbsd", "sessions": []})


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A home folder and, elsewhere, a working folder with the folder above it."""
    (tmp_path / "above" / "working").mkdir(parents=True)
    (tmp_path / "home" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    monkeypatch.chdir(tmp_path / "above" / "working")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "output_dir is ''"),
        (" ", "output_dir is ' '"),
        (None, "output_dir is ''"),
        ("a\0b", "name a folder that the run has for itself"),
        (".", "is not the name of a folder"),
        ("./", "is not the name of a folder"),
        ("..", "is not the name of a folder"),
        ("x/..", "is not the name of a folder"),
        ("/", "is not the name of a folder"),
        ("../working", "is the working folder"),
        ("../../above", "holds the working folder"),
        ("~", "is the home folder"),
        ("{tmp}/home", "holds the home folder"),
        ("file", "is a file"),
        ("file/run", "is a file"),
        ("dangling", "is a link to nothing"),
        ("link", "is the working folder"),
    ],
)
def test_names_that_are_refused(places, name, words):
    open("file", "w").close()
    os.symlink("nowhere", "dangling")
    os.symlink(".", "link")
    before = sorted(path.relative_to(places) for path in places.rglob("*"))
    with pytest.raises(ValueError, match=words):
        check_output_dir(name if name is None else name.replace("{tmp}", str(places)))
    assert sorted(path.relative_to(places) for path in places.rglob("*")) == before


@pytest.mark.parametrize("name", ["run", "runs/x", "../other", "~/run", "a b", ".hidden"])
def test_names_that_are_taken(places, name):
    assert check_output_dir(name).name == name.rpartition("/")[2]


CONTENTS = {
    "a text file": ({"notes.txt": "x"}, False),
    "a model": ({"config.json": "{}", "model.safetensors": "x"}, False),
    "a recipe": ({"config.yaml": "beta: 1"}, False),
    "rows": ({"train.jsonl": "{}", "test.jsonl": "{}"}, False),
    "a web extension": ({"manifest.json": '{"name": "x", "version": "1"}', "background.js": ""}, False),
    "another program's runs": ({"manifest.json": "{}", "log.txt": "", "runs": ""}, False),
    "another program's list": ({"manifest.json": "[1]", "model": ""}, False),
    "another's settings beside our names": ({"started.json": '{"when": 1}', "log.txt": "", "metrics.jsonl": ""}, False),
    "a repository": ({".git": ""}, False),
    "a run": ({"manifest.json": MANIFEST, "notes.txt": "mine"}, True),
    "a run with a damaged manifest": ({"manifest.json": "\0\0", "metrics.jsonl": "", "config.yaml": ""}, True),
    "a damaged manifest among other things": ({"manifest.json": "\0\0", "notes.txt": ""}, False),
    "an evaluation": ({"evaluation.json": '{"settings": {}, "sessions": []}', "records.jsonl": ""}, True),
    "a study's run": ({"started.json": '{"key": "k", "options": {}}', "log.txt": ""}, True),
    "a run killed at its first file": ({".manifest.json.tmp": "{"}, True),
    "nothing": ({}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_only_what_is_a_run_is_moved_aside(tmp_path, name):
    files, ours = CONTENTS[name]
    folder = tmp_path / "run"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_text(content)
    assert is_run_folder(folder) == ours
    if ours:
        move_aside(folder)
        assert not files or {path.name for path in (tmp_path / "run.1").iterdir()} == files.keys()
        return
    for refused in (check_output_dir, move_aside, lambda path: RunFolder(path).start(resume=False)):
        with pytest.raises(ValueError, match="is not a run's folder: it holds .* left as it is"):
            refused(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == files
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_with_what_the_run_reads_is_not_moved(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "rows.jsonl").write_text("")
    (tmp_path / "run" / "manifest.json").write_text(MANIFEST)
    assert check_output_dir(tmp_path / "run", ["org/model", None, str(tmp_path)])
    for name in (tmp_path / "run", tmp_path / "run" / "model", f"gsm8k@{tmp_path}/run/rows.jsonl"):
        with pytest.raises(ValueError, match="which this command reads"):
            check_output_dir(tmp_path / "run", ["org/model", str(name)])


def adapter(folder, base):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return str(folder)


def test_a_folder_with_the_base_of_what_the_run_reads_is_not_moved(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text(MANIFEST)
    base = str(tmp_path / "run" / "model")
    on_base = adapter(tmp_path / "one", base)
    for name in (on_base, adapter(tmp_path / "two", on_base)):
        with pytest.raises(ValueError, match=r"output_dir .* holds .*/run/model', which this command reads"):
            check_output_dir(tmp_path / "run", ["org/model", name])
    circle = adapter(tmp_path / "circle", str(tmp_path / "circle"))
    for name in (circle, adapter(tmp_path / "hub", "org/model"), adapter(tmp_path / "none", None)):
        assert check_output_dir(tmp_path / "run", [name])
    (tmp_path / "none" / "adapter_config.json").write_text("[]")
    assert check_output_dir(tmp_path / "run", [str(tmp_path / "none")])  # loading it says what is wrong


def test_a_name_with_an_at_sign_is_a_path_too(tmp_path):
    (tmp_path / "run" / "model@2").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text(MANIFEST)
    with pytest.raises(ValueError, match="which this command reads"):
        check_output_dir(tmp_path / "run", [f"{tmp_path}/run/model@2"])


def test_earlier_runs_are_numbered_and_nothing_is_overwritten(tmp_path):
    os.symlink("nowhere", tmp_path / "run.1")
    (tmp_path / "run.2").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(MANIFEST)
    move_aside(tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == ["run.1", "run.2", "run.3"]
    assert os.listdir(tmp_path / "run.2") == []


def test_a_lock_does_not_follow_a_link_or_cut_a_file(tmp_path):
    (tmp_path / "precious").write_text("content")
    os.symlink(tmp_path / "precious", tmp_path / ".run.lock")
    with pytest.raises(ValueError, match=r"\.run\.lock must be the lock of run, but is a link"):
        RunFolder(tmp_path / "run").lock()
    (tmp_path / ".other.lock").write_text("content")
    os.link(tmp_path / ".other.lock", tmp_path / ".third.lock")
    RunFolder(tmp_path / "other").lock().close()
    RunFolder(tmp_path / "third").lock().close()
    (tmp_path / ".folder.lock").mkdir()
    with pytest.raises(ValueError, match="is a link or a folder"):
        RunFolder(tmp_path / "folder").lock()
    assert (tmp_path / "precious").read_text() == (tmp_path / ".other.lock").read_text() == "content"


def test_a_lock_is_held_by_one(tmp_path):
    with lock_folder(tmp_path / "run", "somebody writes here"):
        with pytest.raises(FolderInUse, match="run: somebody writes here"):
            lock_folder(tmp_path / "run", "somebody writes here")
    lock_folder(tmp_path / "run", "nobody").close()


@pytest.mark.parametrize("name", ["..", "../../x", "/etc/passwd", "...", "", "a/../../b", ".hidden"])
def test_a_name_is_one_part_of_a_path(tmp_path, name):
    assert (tmp_path / folder_part(name)).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize(
    ("name", "part"), [("gsm8k", "gsm8k"), ("bfcl:simple", "bfcl-simple"), ("Qwen3-1.7B", "Qwen3-1.7B")]
)
def test_usual_names_stay(name, part):
    assert folder_part(name) == part
