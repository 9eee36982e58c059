"""`pbsd doctor` passes every recipe that we ship, in both forms.

Those of the laboratory run here as they are. The Qwen3 recipes need weights and data of the hub: here they pass with
`--no_weights`, the form that is for them. `smollm2_bfcl.yaml` needs what `make smollm2` downloads: here a model of the
same shape (for the dry step a smaller one) and rows of the same columns stand in its folders.
"""

import json
from pathlib import Path

import pytest
from conftest import CHAT_TEMPLATE, tiny_model
from transformers import LlamaConfig

from pbsd.cli import main
from pbsd.lab.base_model import build_tokenizer
from pbsd.recipe import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SMOLLM2 = "smollm2_bfcl.yaml"
OF_THE_HUB = [path for path in RECIPES if path.name.startswith("qwen3_")]
HERE = [path for path in RECIPES if path not in OF_THE_HUB]
FEWER_ROWS = ("--dataset_train_size", "32", "--dataset_test_size", "4")


@pytest.fixture
def smollm2(tmp_path, monkeypatch):
    """The folders that `make smollm2` fills, with stand-ins."""
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model = tiny_model(tokenizer)
    model.save_pretrained("models/smollm2-135m-instruct")
    tokenizer.save_pretrained("models/smollm2-135m-instruct")
    tool = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    Path("data/bfcl").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 100)):
        rows = [
            {
                "prompt": f"{json.dumps(tool)} add {number}", "privileged_context": f"add(a={number})", "tools": [tool],
                "answer": json.dumps([{"name": "add", "arguments": {"a": [number]}}]),
            }
            for number in range(first, first + 40)
        ]  # fmt: skip
        Path(f"data/bfcl/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def assert_passes(capsys, *command):
    status = main(["doctor", *map(str, command)])
    out = capsys.readouterr().out
    assert "mend" not in out, out
    assert status == 0


def test_every_recipe_is_here():
    assert {path.name for path in HERE} >= {"quickstart.yaml", SMOLLM2, "arithmetic_sdpo.yaml"}
    assert len(HERE) + len(OF_THE_HUB) == len(RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_without_weights(path, request, capsys, tmp_path):
    if path.name == SMOLLM2:
        request.getfixturevalue("smollm2")
        shape = LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
        )  # fmt: skip
        shape.save_pretrained("models/smollm2-135m-instruct")
    assert_passes(capsys, path, "--no_weights")


@pytest.mark.parametrize("path", [path for path in HERE if path.name != SMOLLM2], ids=lambda path: path.name)
def test_with_weights_and_a_dry_step(path, capsys):
    assert_passes(capsys, path, *FEWER_ROWS)


def test_smollm2_with_weights(smollm2, capsys):
    """The stand-in has learnt nothing, so its dry step runs and earns no reward; everything before it passes."""
    path = next(path for path in HERE if path.name == SMOLLM2)
    main(["doctor", str(path), *FEWER_ROWS])
    out = capsys.readouterr().out
    assert "one dry step: loss" in out
    assert all(line.startswith("mend one dry step") for line in out.splitlines() if line.startswith("mend")), out


@pytest.mark.parametrize(
    "flags", [[], ["--max_prompt_length", "16"], ["--teacher_prompt_template", "{{ privileged_context }} " * 3]]
)
def test_lengths_without_a_budget_are_those_of_the_rows(flags, capsys):
    """The quickstart has no budget: what is told is the longest prompt of its rows plus the completion."""
    quickstart = next(path for path in RECIPES if path.name == "quickstart.yaml")
    main(["doctor", str(quickstart), "--no_weights", *FEWER_ROWS, *flags])
    run, config = load_recipe(quickstart, [*FEWER_ROWS, *flags])
    template = config.teacher_prompt_template
    tokenizer = build_tokenizer()
    longest = 0
    for row in run.rows("train"):
        teacher = template.replace("{{ privileged_context }}", row["privileged_context"])
        longest = max(longest, len(tokenizer.encode(teacher.replace("{{ prompt }}", row["prompt"]))))
    assert f"prompts and completions of at most {longest + 40} tokens" in capsys.readouterr().out


def test_a_hub_model_without_budgets_says_what_to_set(tmp_path, capsys):
    recipe = next(path for path in OF_THE_HUB if path.name == "qwen3_1.7b_math.yaml")
    text = "".join(line for line in recipe.read_text().splitlines(True) if not line.startswith("max_prompt_length"))
    path = tmp_path / recipe.name
    path.write_text(text)
    assert main(["doctor", str(path), "--no_weights"]) == 1
    assert "set max_prompt_length and max_teacher_prompt_length" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "foo", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}, "custom code"),
        ({"model_type": "foo"}, "foo"),
        ({}, "model_type"),
        ({"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8}, "GPT2Config lacks"),
        ({"model_type": "t5"}, "makes no causal language model"),
    ],
)
def test_models_that_are_not_known_are_a_finding(config, words, recipe, tmp_path, capsys):
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["doctor", str(recipe), "--no_weights"]) == 1
    out = capsys.readouterr().out
    assert words in out
    assert "ok   data" in out
