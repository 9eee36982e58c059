"""Every option is classified by its name: what a resumed run may change, and what determines it."""

from dataclasses import fields

import pytest

from pbsd import determines
from pbsd.config import OPSDConfig, PBSDConfig
from pbsd.determines import BY_CONTENT, DETERMINING, HOW_FAR, ROUNDING, WITHOUT_EFFECT, determining_options
from pbsd.methods import METHODS
from pbsd.recipe import RunArguments

CLASSES = (BY_CONTENT, DETERMINING, HOW_FAR, ROUNDING, WITHOUT_EFFECT)
OPTIONS = sorted({option.name for part in (RunArguments, *(c for c, _ in METHODS.values())) for option in fields(part)})


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_in_one_class(name):
    """A new option (ours or transformers') fails here until somebody says whether it determines a run."""
    assert sum(name in names for names in CLASSES) == 1


def test_no_class_names_an_option_of_ours_that_is_gone():
    assert set(OPTIONS) >= BY_CONTENT | HOW_FAR | ROUNDING


def test_an_unknown_option_determines():
    config = PBSDConfig(output_dir="x", use_cpu=True)
    config.to_dict = lambda: {"an_option_of_next_year": 1, "logging_steps": 5, "eval_seed": 3}
    assert determining_options(config) == {"an_option_of_next_year": 1, "eval_seed": 3}


def test_names_are_not_beginnings():
    """`eval_s` once let eval_seed through, `alarms` what begins with it, `do_` and `log_` likewise."""
    options = determining_options(PBSDConfig(output_dir="x", use_cpu=True))
    assert {"eval_seed", "alarm_window", "seed", "learning_rate"} <= options.keys()
    assert not {"eval_steps", "save_steps", "hub_token", "output_dir"} & options.keys()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 50}, "eval_steps"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 50}, "save_steps"),
        ({"on_alarm": "stop", "save_total_limit": None}, "logging_steps"),
    ],
)
def test_options_that_determine_with_another(options, name):
    """Which checkpoints the best is chosen from; which logs an alarm that ends training sees."""
    assert name not in determining_options(OPSDConfig(output_dir="x", use_cpu=True))
    assert name in determining_options(OPSDConfig(output_dir="x", use_cpu=True, **options))


def test_of_a_recipe_only_what_nothing_else_records():
    run = RunArguments("model", "data", ["math"], lora_alpha=3)
    assert determining_options(run) == {"reward_funcs": ["math"]}


def test_a_change_is_named_with_both_values():
    began = {"method": "opsd", "options": {"beta": 0.1, "seed": 1}, "rows": {"train": {"used": 3}}, "may_change": {}}
    now = {"method": "pbsd", "options": {"beta": 0.2, "seed": 1}, "rows": {"train": {"used": 2}}, "may_change": {}}
    with pytest.raises(ValueError, match="other method, options, rows, beta than") as error:
        determines.refuse_changes(began, now, "runs/x")
    assert 'method "opsd" -> "pbsd"; beta 0.1 -> 0.2' in str(error.value)
    determines.refuse_changes(began, began, "runs/x")


def test_allowed_changes_are_said():
    began = {"may_change": {"max_steps": 4, "num_threads": 1, "reward_code": {"f": "a"}}}
    now = {"may_change": {"max_steps": 6, "num_threads": 1, "reward_code": {"f": "b"}}}
    assert determines.allowed_changes(began, now) == ["max_steps 4 -> 6", "the code of f"]
    assert not determines.goes_as_far(began, now)
    assert determines.goes_as_far(began, {"may_change": {"max_steps": 4, "num_threads": 2}})


def test_an_option_that_determines_at_times_is_compared_where_it_does_in_both():
    """`--resume --on_alarm warn` goes past an alarm that stopped the run; two runs that stop must log alike."""
    stops, goes_on = ({"options": {"seed": 1, **logs}} for logs in ({"logging_steps": 1}, {}))
    determines.refuse_changes(stops, goes_on, "x")
    determines.refuse_changes(goes_on, stops, "x")
    with pytest.raises(ValueError, match="logging_steps 1 -> 2"):
        determines.refuse_changes(stops, {"options": {"seed": 1, "logging_steps": 2}}, "x")
    with pytest.raises(ValueError, match="seed 1 -> null"):
        determines.refuse_changes(stops, {"options": {}}, "x")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (RunArguments("m", "d", ['{"name": "m:f", "api_key": "abc"}']), r"reward_funcs\[0\].api_key"),
        (RunArguments("m", "d", ['{"name": "m:f", "columns": {"a": "token=abc"}}']), r"reward_funcs\[0\].columns.a"),
        (
            PBSDConfig("x", use_cpu=True, teacher_prompt_template="{{ prompt }} https://me:pw@host"),
            "teacher_prompt_tem",
        ),
        (PBSDConfig("x", use_cpu=True, optim_args="password=abc"), "optim_args"),
    ],
)
def test_a_determining_option_with_a_secret_is_refused(options, name):
    """It is in no file, so that another one would be taken for it."""
    with pytest.raises(ValueError, match=rf"^{name}.*put the secret into an environment"):
        determining_options(options)


def test_a_token_of_the_hub_is_no_part_of_what_determines():
    options = {"hub_token": "abc", "model_init_kwargs": {"token": "abc", "dtype": "float32"}}
    found = determining_options(PBSDConfig("x", use_cpu=True, **options))
    assert found["model_init_kwargs"] == {"dtype": "float32"} and "hub_token" not in found


def test_patterns_with_an_assignment_in_them_are_compared():
    """Both were once recorded as `token=***`."""
    one, other = (
        determining_options(RunArguments("m", "d", [f'{{"name": "format", "pattern": "token={letter}"}}']))
        for letter in "ab"
    )
    assert one != other
