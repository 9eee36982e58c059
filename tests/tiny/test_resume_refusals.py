"""What a run does not go on from: damaged checkpoints, lost manifests, another run's options. Each is named."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from conftest import ROWS, contains_answer, lower_case_share
from kill_matrix import contents, train, write_inputs
from test_resume_kills import files

from pbsd.checkpoints import by_step, seal
from pbsd.recipe import load_recipe
from pbsd.run import train as train_here

LORA = ["--use_peft", "--lora_target_modules", "q_proj"]
OTHER_REWARD = "def reward(completions, **columns):\n    return [float(len(text)) for text in completions]\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_inputs(folder)
    for name, flags in (("full", []), ("lora", LORA)):
        status, said, _ = train(folder, name, [*flags, "--teacher", "ema", "--ema_decay", "0.9"])
        assert status == 0, said
    return folder


def unfinished(root, name, of="full"):
    """A copy of a run that was killed after its last checkpoint."""
    shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(root / of, root / name)
    (root / name / "summary.json").unlink()
    return root / name


EMA = ["--teacher", "ema", "--ema_decay", "0.9"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit flipped": flip,
}


def test_every_file_of_a_checkpoint_damaged_the_older_one_is_used(root):
    """Each file with one kind of damage in turn (all kinds of all files: tests/unit/test_checkpoints.py)."""
    names = sorted(path.name for path in (root / "full" / "checkpoint-3").iterdir())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "method_state.pt", "rng_state.pth"} <= {*names}
    whole = contents(root / "full")
    for place, name in enumerate(names):
        kind = list(DAMAGE)[place % len(DAMAGE)]
        folder = unfinished(root, "damaged")
        DAMAGE[kind](folder / "checkpoint-3" / name)
        status, said, _ = train(root, "damaged", [*EMA, "--resume"])
        assert status == 0 and "goes on from checkpoint-2" in said, said
        assert f"checkpoint-3: {name} is {'missing' if kind == 'missing' else 'damaged'}" in said
        shutil.rmtree(folder / "damaged-checkpoint-3")
        assert contents(folder) == whole, (name, kind)


@pytest.mark.parametrize("kind", DAMAGE)
def test_without_a_whole_checkpoint_nothing_is_touched(root, kind):
    folder = unfinished(root, "damaged")
    DAMAGE[kind](folder / "checkpoint-3" / "scheduler.pt")
    DAMAGE[kind](folder / "checkpoint-2" / "optimizer.pt")
    before = files(folder)
    status, said, _ = train(root, "damaged", [*EMA, "--resume"])
    assert status == 2 and "leave out --resume to start from the beginning" in said
    assert "checkpoint-3: scheduler.pt is" in said and "checkpoint-2: optimizer.pt is" in said
    assert files(folder) == before


def test_checkpoints_of_weights_alone_are_refused(root):
    """Saved with save_only_model, resumed without it, and the other way round."""
    assert train(root, "weights", ["--save_only_model"])[0] == 0
    unfinished(root, "weights2", of="weights")
    status, said, _ = train(root, "weights2", ["--resume"])
    assert status == 2 and "saved without optimizer.pt, scheduler.pt, method_state.pt: with save_only_model" in said
    unfinished(root, "weights2")
    status, said, _ = train(root, "weights2", [*EMA, "--save_only_model", "--resume"])
    assert status == 2 and "save_only_model keeps the weights alone" in said


def test_an_old_checkpoint_is_refused_and_can_be_accepted_by_hand(root):
    folder = unfinished(root, "old")
    for checkpoint in by_step(folder).values():
        (checkpoint / "manifest.json").unlink()
    status, said, _ = train(root, "old", [*EMA, "--resume"])
    assert status == 2 and "manifest.json is missing" in said and "import seal" in said
    seal(folder / "checkpoint-3")
    status, said, _ = train(root, "old", [*EMA, "--resume"])
    assert status == 0 and "goes on from checkpoint-3" in said


@pytest.mark.parametrize("flags", [[], ["--learning_rate", "1e-2"]])
def test_a_run_without_its_manifest_is_refused(root, flags):
    folder = unfinished(root, "lost")
    (folder / "manifest.json").unlink()
    before = files(folder)
    status, said, _ = train(root, "lost", [*EMA, "--resume", *flags])
    assert status == 2 and f"{folder}/manifest.json is missing" in said and "checkpoint-3" in said
    assert files(folder) == before


CHANGES = {
    "reward_funcs": ["--reward_funcs", "other_reward:reward"],
    "learning_rate": ["--learning_rate", "1e-2"],
    "eval_seed": ["--eval_seed", "5"],
    "alarm_window": ["--alarm_window", "30"],
    "ema_decay": ["--ema_decay", "0.5"],
    "method": ["--method", "opsd"],
    "weight_decay": ["--weight_decay", "0.1"],
    "rows": ["--dataset_train_size", "8"],
    "initial_weights_sha256": ["--seed", "3", *LORA],
}
OF_AN_ADAPTER = {
    "lora_alpha": ["--lora_alpha", "8"],
    "lora_dropout": ["--lora_dropout", "0.1"],
    "r": ["--lora_r", "2"],
    "target_modules": ["--lora_target_modules", "v_proj"],
}


@pytest.mark.parametrize(("run", "name"), [*(("full", n) for n in CHANGES), *(("lora", n) for n in OF_AN_ADAPTER)])
def test_another_run_is_refused_by_name(root, monkeypatch, run, name):
    (root / "other_reward.py").write_text(OTHER_REWARD)
    monkeypatch.syspath_prepend(str(root))
    folder = unfinished(root, "changed", of=run)
    before = files(folder)
    flags = [*EMA, *(LORA if run == "lora" else []), "--resume", *{**CHANGES, **OF_AN_ADAPTER}[name]]
    status, said, _ = train(root, "changed", flags)
    assert status == 2 and "began with other" in said, said
    assert name in said.partition("began with other ")[2].partition(" than this command gives")[0], said
    assert files(folder) == before


def test_allowed_changes_are_said_and_take_effect(root):
    folder = unfinished(root, "further")
    flags = [*EMA, "--resume", "--max_steps", "5", "--logging_steps", "1", "--save_steps", "1"]
    status, said, _ = train(root, "further", flags)
    assert status == 0 and "goes on from checkpoint-3; this command changes max_steps 3 -> 5" in said
    assert list(by_step(folder)) == [4, 5]  # saved at every step now, two are kept
    status, said, _ = train(root, "further", [*EMA, "--resume", "--max_steps", "4"])
    assert status == 2 and "training is to end at step 4" in said and "checkpoint-5 is beyond that" in said


def test_a_changed_reward_of_the_same_name_is_said(root, monkeypatch):
    """Its author may have fixed it, which only he knows."""
    monkeypatch.syspath_prepend(str(root))
    flags = ["--method", "sft", "--reward_funcs", "my_reward:reward"]
    (root / "my_reward.py").write_text(OTHER_REWARD)
    assert train(root, "fixed", flags)[0] == 0
    (root / "fixed" / "summary.json").unlink()
    (root / "my_reward.py").write_text(OTHER_REWARD + "# fixed\n")
    status, said, _ = train(root, "fixed", [*flags, "--resume"])
    assert status == 0 and "this command changes the code of reward" in said


def test_a_trainer_in_python_refuses_them_too(make_method, tmp_path):
    """An opsd checkpoint in a pbsd run, another reward, a damaged file; `True` takes the newest whole one."""
    options = {"save_strategy": "steps", "save_steps": 1}
    make_method("opsd", **options).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(ValueError, match='other method, .*method "opsd" -> "pbsd"'):
        make_method("pbsd", **options).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="other rewards than"):
        make_method("opsd", reward=contains_answer, **options).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="other rows than"):
        make_method("opsd", rows=ROWS[:12], **options).train(resume_from_checkpoint=checkpoint)
    flip(Path(checkpoint) / "optimizer.pt")
    with pytest.raises(ValueError, match=r"checkpoint-1: optimizer.pt is damaged .*whole one is .*checkpoint-2"):
        make_method("opsd", **options).train(resume_from_checkpoint=checkpoint)
    flip(tmp_path / "run" / "checkpoint-2" / "rng_state.pth")
    with pytest.raises(ValueError, match=r"no whole checkpoint lies in .*rng_state.pth is damaged"):
        make_method("opsd", **options).train(resume_from_checkpoint=True)


def factor_reward(completions, factor=1, **columns):
    return [factor * float(len(text)) for text in completions]


def letter_reward(letter):
    return lambda completions, **columns: [float(letter in text) for text in completions]


class Letter:
    def __init__(self, letter):
        self.letter = letter

    def __call__(self, completions, **columns):
        return [float(self.letter in text) for text in completions]


REWARDS = {
    "functions": (lower_case_share, contains_answer),
    "partial": (partial(factor_reward, factor=1), partial(factor_reward, factor=-1)),
    "objects": (Letter("a"), Letter("e")),
    "closures": (letter_reward("a"), letter_reward("e")),
    "names": ("conftest:lower_case_share", "conftest:contains_answer"),
}


@pytest.mark.parametrize("kind", REWARDS)
def test_another_reward_of_a_trainer_in_python_is_refused(make_method, kind):
    options = {"save_strategy": "steps", "save_steps": 1}
    one, other = REWARDS[kind]
    make_method("grpo", reward=one, **options).train()
    with pytest.raises(ValueError, match="other rewards than"):
        make_method("grpo", reward=other, max_steps=3, **options).train(resume_from_checkpoint=True)
    resumed = make_method("grpo", reward=one, max_steps=3, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


def test_a_trainer_in_python_says_allowed_changes(make_method, caplog):
    options = {"save_strategy": "steps", "save_steps": 1}
    make_method("grpo", **options).train()
    make_method("grpo", max_steps=3, **options).train(resume_from_checkpoint=True)
    assert "training goes on; changed: max_steps 2 -> 3" in caplog.text


def test_a_run_whose_best_checkpoint_is_lost_is_refused(root):
    """Nothing is touched; in a run without load_best_model_at_end no checkpoint is the best."""
    best = ["--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
    flags = ["--method", "grpo", *best, "--learning_rate", "0", "--save_total_limit", "3"]
    assert train(root, "best", flags)[0] == 0
    folder = unfinished(root, "best2", of="best")
    shutil.rmtree(root / "best")
    shutil.copytree(root / "full", root / "best")  # another run, in whose folder this one was
    assert json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())["best_global_step"] == 1
    shutil.rmtree(folder / "checkpoint-1")
    before = files(folder)
    status, said, _ = train(root, "best2", [*flags, "--resume"])
    assert status == 2 and "checkpoint-1: it is missing; it is the best checkpoint of the run so far" in said, said
    assert files(folder) == before


@pytest.mark.parametrize("kind", [*DAMAGE, "tokenizer", "folder", "record"])
def test_a_finished_run_with_a_damaged_model_writes_it_again(root, kind):
    """From its last checkpoint, and names the file; with nothing to do it says so."""
    shutil.rmtree(root / "damaged", ignore_errors=True)
    folder = shutil.copytree(root / "full", root / "damaged")
    whole = contents(root / "full")
    model = folder / "model"
    if kind == "folder":
        shutil.rmtree(model)
    elif kind == "record":
        (folder / "model_files.json").unlink()
    elif kind == "tokenizer":
        (model / "tokenizer.json").unlink()
    else:
        DAMAGE[kind](model / "model.safetensors")
    name = {"folder": "it is", "record": "model_files.json", "tokenizer": "tokenizer.json"}.get(
        kind, "model.safetensors"
    )
    status, said, _ = train(root, "damaged", [*EMA, "--resume"])
    assert status == 0 and f"and the model is written again ({model}: {name}" in said, said
    assert contents(folder) == whole
    assert sorted(path.name for path in model.iterdir()) == sorted(
        path.name for path in (root / "full" / "model").iterdir()
    )
    (model / "README.md").write_text("the user's own")
    status, said, _ = train(root, "damaged", [*EMA, "--resume"])
    assert status == 0 and "the run is finished, so nothing is done" in said
    assert (model / "README.md").read_text() == "the user's own"


def test_a_damaged_model_without_a_checkpoint_is_refused_and_not_pushed(root):
    flags = ["--save_strategy", "no"]
    assert train(root, "alone", flags)[0] == 0
    (root / "alone" / "model" / "model.safetensors").write_bytes(b"")
    before = files(root / "alone")
    status, said, _ = train(root, "alone", [*flags, "--resume", "--push_to_hub"])
    assert status == 2 and "model: model.safetensors is damaged (0 bytes of" in said, said
    assert "no whole checkpoint is there to write the model from again: bring the files back" in said
    assert files(root / "alone") == before


def drop_a_line(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text(""), drop_a_line])
def test_lost_lines_of_metrics_are_named(root, spoil):
    flags = ["--logging_steps", "1"]
    if not (root / "logged").is_dir():
        assert train(root, "logged", flags)[0] == 0
    folder = unfinished(root, "lines", of="logged")
    spoil(folder / "metrics.jsonl")
    status, said, _ = train(root, "lines", [*flags, "--resume"])
    assert status == 0 and "metrics.jsonl: " in said and "had been written when checkpoint-3 was saved" in said, said


def test_another_pattern_that_looks_like_a_secret_is_refused(root):
    """Both were recorded as `token=***`."""
    first, second = (json.dumps({"name": "format", "pattern": f"token={end}"}) for end in ("a", "zz.*"))
    flags = ["--method", "grpo", "--reward_funcs"]
    status, said, _ = train(root, "pattern", [*flags, first])
    assert status == 0, said
    folder = unfinished(root, "pattern2", of="pattern")
    before = files(folder)
    status, said, _ = train(root, "pattern2", [*flags, second, "--resume"])
    assert status == 2 and "began with other" in said and "reward_funcs" in said, said
    assert files(folder) == before


def test_a_run_that_failed_lets_its_folder_go(root, monkeypatch):
    """In the same process, a notebook say, the next one is not told that another run is writing there."""
    monkeypatch.chdir(root)
    run, config = load_recipe(root / "recipe.yaml", ["--output_dir", str(root / "failing"), "--max_steps", "1"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pbsd.run._measured", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError) as error:
            train_here(run, config)
    assert train_here(run, config)["steps"] == 1
    assert error.traceback  # which keeps the failed run's frames, and so its lock, alive
