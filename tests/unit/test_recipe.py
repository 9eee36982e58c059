"""Recipes: every one we ship is parsed, and mistakes name the mend."""

from pathlib import Path

import pytest

from pbsd.recipe import RecipeError, dump_recipe, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
MINIMAL = "model_name_or_path: m\ndataset_name: d\nreward_funcs: [math]\nuse_cpu: true\n"


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "r.yaml"
        path.write_text(MINIMAL + text)
        return path

    return write


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_is_parsed(path):
    run, config = load_recipe(path)
    assert run.rewards()
    assert config.output_dir.startswith("runs/")


def test_flags_win_and_yaml_types_are_read(recipe):
    path = recipe("learning_rate: 3e-4\nbf16: true\nmodel_init_kwargs: {dtype: bfloat16}\nreward_weights: [1, 0.5]\n")
    _, config = load_recipe(path, ["--learning_rate", "1e-3", "--beta=0.25"])
    assert (config.learning_rate, config.beta, config.bf16) == (1e-3, 0.25, True)
    assert config.model_init_kwargs == {"dtype": "bfloat16"}
    assert config.reward_weights == [1.0, 0.5]


def test_null_keeps_the_default_and_a_template_keeps_its_braces_and_breaks(recipe):
    path = recipe('max_prompt_length: null\nteacher_prompt_template: "-- {{ prompt }}\\n{{ privileged_context }}"\n')
    _, config = load_recipe(path)
    assert config.max_prompt_length is None
    assert config.teacher_prompt_template == "-- {{ prompt }}\n{{ privileged_context }}"


def test_null_reaches_options_that_can_be_null(recipe):
    run, config = load_recipe(recipe("dataset_test_split: null\nsave_total_limit: null\nbeta: null\n"))
    assert (run.dataset_test_split, config.save_total_limit, config.beta) == (None, None, 0.1)
    run, _ = load_recipe(recipe("dataset_test_split: null\n"), ["--dataset_test_split", "dev"])
    assert run.dataset_test_split == "dev"


def test_one_file_has_no_held_out_rows(recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p"}\n')
    run, _ = load_recipe(recipe(""), ["--dataset_name", str(tmp_path / "rows.jsonl")])
    assert len(run.rows("train")) == 1
    with pytest.raises(RecipeError, match="no held-out rows"):
        run.rows("test")


def test_resolved_options_read_back_equal(recipe, tmp_path):
    path = recipe("beta: 0.3\nteacher: ema\nreward_weights: [2.0]\nchat_template_kwargs: {enable_thinking: false}\n")
    run, config = load_recipe(path)
    again = tmp_path / "config.yaml"
    again.write_text(dump_recipe(run, config))
    run2, config2 = load_recipe(again)
    assert run2 == run
    assert {**config2.to_dict(), "logging_dir": None} == {**config.to_dict(), "logging_dir": None}


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("learning_rat: 1\n", [], "unknown key learning_rat; did you mean learning_rate"),
        ("", ["--bet", "1"], "unknown flag --bet; did you mean beta"),
        ("learning_rate: fast\n", [], "invalid float value: 'fast'"),
        ("beta: 0\n", [], "beta must be positive"),
        ("loss_type: hinge\n", [], "loss_type"),
        ("teacher: external\n", [], "teacher_model go together"),
        ("label_smoothing: 0.5\n", [], "label_smoothing"),
        ("ema_decay: 1.5\n", [], "weight of the old average"),
        ("num_generations: 0\n", [], "num_generations must be at least 1"),
        ("teacher_prompt_template: '{prompt} {privileged_context}'\n", [], "write {{ prompt }}"),
        ("temperature: -1\n", [], "temperature"),
    ],
)
def test_mistakes(recipe, text, flags, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(text), flags)
    assert words in str(caught.value)


def test_missing_file_missing_key_and_broken_yaml(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    path = tmp_path / "r.yaml"
    path.write_text("model_name_or_path: m\n")
    with pytest.raises(RecipeError, match="dataset_name"):
        load_recipe(path)
    path.write_text("a: [1\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(path)
    path.write_text("- a\n")
    with pytest.raises(RecipeError, match="expected `key: value`"):
        load_recipe(path)
