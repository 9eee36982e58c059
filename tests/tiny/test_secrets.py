"""Canaries in the environment, the arguments, the home folder, the recipe and in names are in no file of a run."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import HELD_OUT, ROWS, contains_answer, tiny_model
from huggingface_hub import HfApi

from pbsd.cli import main
from pbsd.compare.execute import _log_file
from pbsd.hub import public_name, write_model_card
from pbsd.recipe import load_recipe

CANARY = "c4n4ry"
JUDGE = """
import os

def judge(prompts, completions, log_extra):
    told = {"said": f"asked with {os.environ['JUDGE_API_KEY']}, see {os.environ['HOME']}/cache", "api_key": "c4n4ry"}
    log_extra("judge", [told] * len(completions))
    log_extra("cache", [f"read {os.environ['HOME']}/cache"] * len(completions))
    if any(ord(prompt[4]) % 2 for prompt in prompts):  # of "say g:"
        raise RuntimeError(f"{os.environ['JUDGE_API_KEY']} is refused, see {os.environ['HOME']}/judge.log")
    return [0.5] * len(completions)
"""
"""A reward whose errors and extras tell the key of its service and the home folder."""


@pytest.fixture
def canaries(recipe, tmp_path, monkeypatch):
    """The tiny recipe with a secret in every place where one can stand; its folders lie elsewhere than the home."""
    home = tmp_path.parent / f"{tmp_path.name}-home-{CANARY}"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(f"hf_{CANARY}InTheHomeFolder")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / ".cache" / "huggingface" / "token"))
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_SETTING", "JUDGE_API_KEY"):
        monkeypatch.setenv(name, f"{CANARY}-in-{name}")
    (tmp_path / "the_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    values = yaml.safe_load(recipe.read_text())
    with recipe.open("w") as file:
        yaml.safe_dump(
            {
                **values,
                "reward_funcs": ["pbsd.lab.arithmetic:reward", "the_judge:judge"], "reward_weights": [1.0, 0.0],
                "hub_token": f"{CANARY}-in-the-recipe", "max_steps": 2, "save_steps": 1, "report_to": "tensorboard",
                "model_init_kwargs": {"token": f"{CANARY}-nested", "cache_dir": f"{home}/cache"},
                "run_name": f"https://me:{CANARY}-in-a-name@host/x", "use_peft": True,
                "lora_target_modules": ["q_proj", "v_proj"],
            },
            file,
        )  # fmt: skip
    return recipe


def files_with_canaries(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path.relative_to(folder)) for path in files if CANARY.encode() in path.read_bytes()]


def train(recipe: Path, folder: Path, *flags: str) -> None:
    flags = ("--output_dir", str(folder), "--hub_token", f"{CANARY}-in-an-argument", *flags)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("sys.argv", ["pbsd", "train", str(recipe), *flags])
        assert main(["train", str(recipe), *flags]) == 0


def test_no_file_of_a_run_and_no_page_has_a_canary(canaries, tmp_path):
    _, config = load_recipe(canaries, ["--hub_token", f"{CANARY}-in-an-argument"])
    assert config.hub_token == f"{CANARY}-in-an-argument"  # they are there to be found
    assert config.model_init_kwargs["token"] == f"{CANARY}-nested"
    train(canaries, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert {"manifest.json", "config.yaml", "samples.jsonl", "summary.json", "optimizer.pt", "method_state.pt"} <= names
    assert any("tfevents" in name for name in names)
    assert "training_args.bin" not in names
    assert files_with_canaries(tmp_path / "run") == []
    samples = (tmp_path / "run" / "samples.jsonl").read_text()
    assert "error" in samples and "*** is refused, see ~/judge.log" in samples
    assert "asked with ***, see ~/cache" in samples and "read ~/cache" in samples
    command = json.loads((tmp_path / "run" / "manifest.json").read_text())["sessions"][0]["command"]
    assert command[-2:] == ["--hub_token", "***"]
    assert command[1:4] == ["train", str(canaries), "--output_dir"]
    (tmp_path / "page").mkdir()
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page" / "report.html")]) == 0
    assert files_with_canaries(tmp_path / "page") == []


def test_a_page_of_a_run_that_an_earlier_version_wrote_has_none(canaries, tmp_path):
    train(canaries, tmp_path / "run", "--max_steps", "1")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sessions"][0]["command"] = [
        "pbsd",
        "train",
        "--hub_token",
        CANARY,
        f"--dataset_name=https://me:{CANARY}@host",
    ]
    path.write_text(json.dumps(manifest))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text() + f"hub_token: {CANARY}\n")
    (tmp_path / "page").mkdir()
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page" / "report.html")]) == 0
    assert files_with_canaries(tmp_path / "page") == []


@pytest.mark.parametrize("peft", ["true", "false"])
def test_what_is_pushed_has_no_canary_and_no_path_of_this_machine(canaries, tmp_path, monkeypatch, caplog, peft):
    """The hub gets the files of a model; of an adapter the base's name without its folders."""
    hub = tmp_path / "hub"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, revision, commit_message):
        for pattern in allow_patterns:
            for path in Path(folder_path).glob(pattern):
                hub.mkdir(exist_ok=True)
                shutil.copy(path, hub)

    def upload_file(self, *, repo_id, path_in_repo, path_or_fileobj, revision, commit_message):
        hub.mkdir(exist_ok=True)
        (hub / path_in_repo).write_bytes(path_or_fileobj)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=f"me/{name}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "upload_file", upload_file)
    push = ("--push_to_hub", "--hub_model_id", "mine", "--max_steps", "1", "--use_peft", peft)
    train(canaries, tmp_path / "run", *push)
    weights = "adapter_model.safetensors" if peft == "true" else "model.safetensors"
    assert {"README.md", "tokenizer.json", weights} <= {path.name for path in hub.iterdir()}
    assert files_with_canaries(hub) == []
    assert [path.name for path in hub.iterdir() if str(tmp_path).encode() in path.read_bytes()] == []
    if peft == "true":
        assert json.loads((hub / "adapter_config.json").read_text())["base_model_name_or_path"] == "model"
    assert "not pushed" not in caplog.text


def test_what_is_no_file_of_a_model_is_not_pushed_and_named(canaries, tmp_path, monkeypatch, caplog):
    from pbsd.hub import push_model

    train(canaries, tmp_path / "run", "--max_steps", "1", "--use_peft", "false")
    folder = tmp_path / "run" / "model"
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / ".env").write_text("x")
    pushed = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: pushed.append(options))
    with caplog.at_level(logging.WARNING):
        push_model(folder, load_recipe(canaries)[1])
    assert not {"training_args.bin", ".env"} & set(pushed[0]["allow_patterns"])
    assert "not pushed, as they are no files of a model: .env, training_args.bin" in caplog.text


def test_a_trainer_in_python_writes_none_either(config, tokenizer, tmp_path):
    """`save_model`, checkpoints and the card that `pbsd` does not call by itself."""
    from pbsd import PBSDTrainer

    args = config(
        save_strategy="steps", save_steps=1, hub_token=f"{CANARY}-token", run_name=f"https://me:{CANARY}@host/x"
    )
    trainer = PBSDTrainer(tiny_model(tokenizer), args, ROWS, HELD_OUT, contains_answer, tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert trainer.args is args
    assert args.hub_token == f"{CANARY}-token"
    assert files_with_canaries(tmp_path / "run") == []


def test_transformers_own_push_writes_no_secret(make_trainer, tmp_path, monkeypatch):
    """It pickles the options into the folder that it uploads."""
    trainer = make_trainer(save_strategy="steps", save_steps=1, max_steps=1, hub_token=CANARY)
    trainer.train()
    trainer.hub_model_id = "me/x"
    trainer.push_in_progress = None
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: SimpleNamespace(upload_folder=lambda **_: None))
    trainer._push_from_checkpoint(str(tmp_path / "run" / "checkpoint-1"))
    assert files_with_canaries(tmp_path / "run") == []
    options = torch.load(tmp_path / "run" / "training_args.bin", weights_only=True)
    assert options["beta"] == trainer.args.beta


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/model", "org/model"),
        ("/home/me/models/mine", "mine"),
        ("~/models/mine", "mine"),
        ("./mine", "mine"),
        ("https://me:pass@host/model", "https://***@host/model"),
        ("", ""),
    ],
)
def test_names_of_models_for_others(name, shown):
    assert public_name(name) == shown


def test_the_card_names_a_base_of_the_laboratory(make_trainer, tmp_path):
    from pbsd.api import model_folder

    trainer = make_trainer()
    for name, words, base in (
        (model_folder("lab/arithmetic-0.2m"), "from the local model `lab/arithmetic-0.2m` by", None),
        (str(tmp_path / "some" / "where"), "from the local model `where` by", None),
        ("org/model", "from `org/model` by", "org/model"),
        ("", "from a model by", None),
    ):
        trainer.model.config._name_or_path = name
        write_model_card(tmp_path / "card", trainer)
        card = (tmp_path / "card" / "README.md").read_text()
        assert words in card
        assert yaml.safe_load(card.split("---")[1]).get("base_model") == base
        assert "/home" not in card and str(tmp_path) not in card and "site-packages" not in card


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (f"hub_token: {CANARY}", "options.hub_token"),
        (f"model_init_kwargs: {{token: {CANARY}}}", "options.model_init_kwargs.token"),
        (f"run_name: 'https://me:{CANARY}@host'", "options.run_name"),
    ],
)
def test_a_study_with_a_secret_is_refused(tmp_path, capsys, options, place):
    """Its options are written into every run's recipe and into the result files."""
    path = tmp_path / "study.yaml"
    path.write_text(f"methods: {{pbsd: {{}}}}\noptions: {{{options}}}\n")
    assert main(["compare", str(path), "--work", str(tmp_path / "work")]) == 2
    error = capsys.readouterr().err
    assert f"{place} is or holds a secret" in error
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]


def test_a_studys_log_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", f"{CANARY}-{CANARY}")
    with _log_file(tmp_path / "log.txt"):
        logging.getLogger("x").error("https://me:%s@host refused %s", CANARY, f"{CANARY}-{CANARY}")
    assert "refused ***" in (tmp_path / "log.txt").read_text()
    assert files_with_canaries(tmp_path) == []
