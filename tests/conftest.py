"""Shared by the tests: a tiny model and tokenizer built here, and rows it can be trained on in seconds."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from light_rewards import contains_answer, lower_case_share
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PrinterCallback

from pbsd import PBSDConfig, PBSDTrainer, SelfDistillationTrainer
from pbsd.lab.base_model import build_tokenizer
from pbsd.methods import METHODS

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer)


def tiny_model(tokenizer, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of about 20,000 parameters over the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


ROWS = [
    {"prompt": f"say {letter}:", "privileged_context": letter * 3, "answer": letter} for letter in "abcdefghijklmnop"
]


HELD_OUT = [{"prompt": f"say {letter}:", "privileged_context": letter * 3, "answer": letter} for letter in "wxyz"]


@pytest.fixture
def config(tmp_path):
    """Makes a `PBSDConfig` for seconds-long runs in a folder of the test's own."""

    def make(**options):
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "preset": "published",
            "loss_type": "bradley_terry",
            "per_device_train_batch_size": 4,
            "max_completion_length": 6,
            "num_generations": 2,
            "num_teacher_generations": 2,
            "num_generations_eval": 2,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return PBSDConfig(**{**defaults, **options})

    return make


@pytest.fixture
def make_trainer(config, tokenizer):
    """Makes a `PBSDTrainer` on the tiny model and rows; `options` go to the config."""

    def make(model=None, rows=ROWS, eval_rows=None, rewards=contains_answer, peft_config=None, **options):
        trainer = PBSDTrainer(
            model=model if model is not None else tiny_model(tokenizer),
            args=config(**options),
            train_dataset=rows,
            eval_dataset=eval_rows,
            reward_funcs=rewards,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


SMALL = {"sdft": {"distillation_topk": 20}}
"""What the defaults of a method need on a vocabulary of 99 tokens."""


@pytest.fixture
def make_method(tmp_path, tokenizer):
    """Makes the trainer of a method by its name, on the tiny model and rows; `options` go to its config."""

    def make(method, rows=ROWS, reward=lower_case_share, folder="run", peft_config=None, **options):
        defaults = {
            "output_dir": str(tmp_path / folder), "max_steps": 2, "per_device_train_batch_size": 4,
            "max_completion_length": 6, "num_generations": 3, "num_generations_eval": 2, "learning_rate": 1e-3,
            "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        }  # fmt: skip
        config = METHODS[method][0](**{**defaults, **SMALL.get(method, {}), **options})
        trainer = SelfDistillationTrainer(
            tiny_model(tokenizer), config, rows, HELD_OUT, reward, tokenizer, peft_config=peft_config
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """Writes the tiny model, a JSON-lines dataset and a recipe into a folder; returns the recipe's path."""
    model = tiny_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for split, rows in (("train", ROWS), ("test", HELD_OUT)):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
model_name_or_path: {tmp_path}/model
dataset_name: {tmp_path}/data
reward_funcs: ["pbsd.lab.arithmetic:reward"]
output_dir: {tmp_path}/run
max_steps: 6
preset: published
loss_type: bradley_terry
nll_coef: 1.0
per_device_train_batch_size: 4
max_completion_length: 6
num_generations: 2
num_teacher_generations: 2
num_generations_eval: 2
learning_rate: 1.0e-3
save_steps: 2
use_cpu: true
"""
    )
    return path
