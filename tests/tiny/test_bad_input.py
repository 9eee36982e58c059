"""Every kind of bad input gets one clear sentence with the place and the mend, and no run is lost."""

import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import ROWS, contains_answer, tiny_model
from datasets import Dataset
from transformers import TrainerCallback

from pbsd import PBSDTrainer
from pbsd.cli import main


def rows_with(index, **changes):
    return [{**row, **(changes if place == index else {})} for place, row in enumerate(ROWS)]


def without(column):
    return [{key: value for key, value in row.items() if key != column} for row in ROWS]


def needs_answer(completions, answer):
    return [0.0] * len(completions)


def needs_level(completions, level):
    return [0.0] * len(completions)


CHAT = [{"role": "user", "content": "hello"}]

BEFORE_TRAINING = [
    ("no prompt column", {"rows": without("prompt")}, "row 0: column 'prompt' is missing"),
    ("no reward column", {"rewards": needs_level}, "column 'level' is missing"),
    ("answer column missing", {"rows": without("answer"), "rewards": needs_answer}, "column 'answer' is missing"),
    ("empty prompt", {"rows": rows_with(3, prompt="")}, "row 3: `prompt` is empty"),
    ("prompt not text", {"rows": rows_with(5, prompt=12)}, "row 5: `prompt` must be a string or a list"),
    ("context not text", {"rows": rows_with(2, privileged_context=1.5)}, "row 2: `privileged_context` must be"),
    ("no rows", {"rows": []}, "no usable row"),
    ("all splits", {"rows": {"train": ROWS}}, "expected one split, got all of train"),
    ("streamed", {"rows": Dataset.from_list(ROWS).to_iterable_dataset()}, "streamed datasets are not supported"),
    ("prompt over budget", {"max_prompt_length": 3}, "row 0: the prompt has 6 tokens, max_prompt_length is 3"),
    ("context over budget", {"max_teacher_prompt_length": 8}, "max_teacher_prompt_length is 8"),
    ("all over budget", {"max_prompt_length": 3, "overlong": "drop"}, "(16 were over a prompt budget)"),
    ("no reward", {"rewards": None}, "reward_funcs is missing"),
    ("unknown reward", {"rewards": "maths"}, "did you mean 'math'"),
    ("weights", {"reward_weights": [1.0, 2.0]}, "2 numbers for 1 reward functions"),
    ("template variable", {"teacher_prompt_template": "{{ hint }}"}, "'hint' is undefined"),
    ("peft config", {"peft_config": "lora"}, "peft_config must be a peft.PeftConfig"),
]


@pytest.mark.parametrize(
    ("options", "words"), [case[1:] for case in BEFORE_TRAINING], ids=[c[0] for c in BEFORE_TRAINING]
)
def test_found_before_training(make_trainer, options, words):
    with pytest.raises(ValueError) as caught:
        make_trainer(**options)
    assert words in str(caught.value)


REWARDS = [
    ("wrong length", lambda completions, **_: [1.0], "returned 1 values for 16 completions"),
    ("NaN", lambda completions, **_: [math.nan] * len(completions), "returned nan"),
    ("string", lambda completions, **_: ["1"] * len(completions), "returned '1' (str) at position 0"),
    ("not a list", lambda completions, **_: 1.0, "returned float 1.0"),
    ("always raises", lambda completions, **_: 1 / 0, "ZeroDivisionError"),
]


@pytest.mark.parametrize(("reward", "words"), [case[1:] for case in REWARDS], ids=[case[0] for case in REWARDS])
def test_rewards_that_return_nonsense(make_trainer, reward, words):
    trainer = make_trainer(rewards=reward)
    with pytest.raises(ValueError) as caught:
        trainer.train()
    assert words in str(caught.value)
    assert "reward '<lambda>'" in str(caught.value)


def test_a_reward_that_breaks_late_loses_no_steps(make_trainer, tmp_path):
    """Steps 1 to 3 are worth keeping when the reward function breaks in step 4."""
    calls = iter(range(100))
    trainer = make_trainer(
        rewards=lambda completions, **_: [0.0] * len(completions) if next(calls) < 3 else "broken", max_steps=9
    )
    with pytest.raises(ValueError, match="broken"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").is_file()


def test_a_reward_that_raises_on_some_rows_is_an_error_not_a_zero(make_trainer):
    def picky(completions, answer, **_):
        return [1.0 / (letter != "c") for letter in answer]

    trainer = make_trainer(rewards=picky, per_device_train_batch_size=16, max_steps=1)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["reward/picky/error"] == entry["reward/unjudged"] == 4
    assert entry["pairs/dropped_unjudged"] == 4


def test_overlong_rows_are_dropped_and_counted(make_trainer):
    rows = [*ROWS, {"prompt": "x" * 50, "privileged_context": "", "answer": "x"}]
    trainer = make_trainer(rows=rows, max_prompt_length=20, overlong="drop")
    assert (len(trainer.train_dataset), trainer.train_dataset.dropped) == (16, 1)


def test_chat_rows_without_a_chat_template(config, tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        rows = [{"prompt": CHAT, "privileged_context": "a", "answer": "a"}]
        PBSDTrainer(tiny_model(tokenizer), config(), rows, None, contains_answer, tokenizer)


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_pad_missing_or_equal_to_eos_trains_all_the_same(config, tokenizer, caplog, pad):
    """The very same weights come out as with a pad token of its own: masks come from lengths."""
    results = []
    for token in ("<pad>", pad):
        tokenizer.pad_token = "<pad>"
        model = tiny_model(tokenizer)
        tokenizer.pad_token = token
        trainer = PBSDTrainer(model, config(), ROWS, None, contains_answer, tokenizer)
        trainer.train()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)
    assert "pad token" in caplog.text


def test_no_stop_token_anywhere(config, tokenizer):
    model = tiny_model(tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no completion would end: .* none is named: set tokenizer.eos_token"):
        PBSDTrainer(model, config(), ROWS, None, contains_answer, tokenizer)


def test_external_teacher_of_another_vocabulary(config, tokenizer, tmp_path):
    tiny_model(tokenizer).save_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "other")
    from pbsd.lab.base_model import build_tokenizer

    with pytest.raises(ValueError, match="another vocabulary .*Choose a teacher of the student's model family"):
        PBSDTrainer(
            tiny_model(build_tokenizer()),
            config(teacher="external", teacher_model=str(tmp_path / "other")),
            ROWS, None, contains_answer, build_tokenizer(),
        )  # fmt: skip


def test_model_that_does_not_exist(config):
    with pytest.raises(ValueError, match="model '/nowhere' could not be loaded"):
        PBSDTrainer("/nowhere", config(), ROWS, None, contains_answer)


class FullDisk(TrainerCallback):
    """From the end of step 2 a file of its checkpoint is one that the system refuses to write to, as on a full disk."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_step_end(self, args, state, control, **parts):
        if state.global_step == 2:
            folder = Path(args.output_dir) / "_saving" / "checkpoint-2"
            folder.mkdir(parents=True)
            os.symlink("/dev/full", folder / self.name)


@pytest.mark.parametrize("name", ["optimizer.pt", "method_state.pt", "trainer_state.json"])
def test_disk_full_while_saving_costs_a_checkpoint_not_the_run(make_trainer, tmp_path, caplog, name):
    trainer = make_trainer(max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=5)
    trainer.add_callback(FullDisk(name))
    with caplog.at_level(logging.ERROR):
        trainer.train()
    assert trainer.state.global_step == 3
    assert "checkpoint-2: checkpoint not saved" in caplog.text
    assert "MiB are free" in caplog.text
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-3"]


def test_disk_full_at_the_last_save_says_how_to_go_on(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1)
    trainer.add_callback(FullDisk("optimizer.pt"))
    with pytest.raises(OSError, match="run the same command with --resume"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


def test_disk_full_for_the_metrics_stops_with_a_resumable_run(recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", str(recipe), "--max_steps", "2"]) == 0
    (folder / "metrics.jsonl").rename(tmp_path / "kept.jsonl")
    os.symlink("/dev/full", folder / "metrics.jsonl")
    assert main(["train", str(recipe), "--resume"]) == 2
    assert "make room, then the same command with --resume" in capsys.readouterr().err
    (folder / "metrics.jsonl").unlink()
    (tmp_path / "kept.jsonl").rename(folder / "metrics.jsonl")
    assert main(["train", str(recipe), "--resume"]) == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "none.yaml"], "none.yaml: no such recipe file"),
        (["train", "{recipe}", "--learning_rat", "1"], "unknown flag --learning_rat; did you mean learning_rate"),
        (["train", "{recipe}", "--model_name_or_path", "/nowhere"], "could not be loaded"),
        (["train", "{recipe}", "--dataset_name", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["train", "{recipe}", "--dataset_train_size", "99"], "has 16 rows, fewer than the 99 asked for"),
        (["train", "{recipe}", "--dataset_train_split", "dev"], "dev"),
        (["train", "{recipe}", "--dataset_name", "{recipe}"], "expected a file of type .jsonl, .json, .parquet"),
        (["render", "{recipe}", "--beta", "-1"], "beta must be positive"),
    ],
)
def test_command_line_mistakes_are_one_line(recipe, capsys, words, expected):
    status = main([word.replace("{recipe}", str(recipe)) for word in words])
    error = capsys.readouterr().err
    assert status == 2
    assert expected in error
    assert "Traceback" not in error
