"""What is a secret, and that it is in nothing that is written; everything else stays as it is."""

import json
import os
from dataclasses import dataclass, fields

import pytest
from transformers import TrainingArguments

from pbsd.config import PBSDConfig
from pbsd.recipe import dump_recipe, load_recipe
from pbsd.redact import is_secret, public, scrub, secrets_in, with_home

SECRETS = [
    "hub_token", "--hub_token", "token", "use_auth_token", "hubToken", "HF_TOKEN", "OPENAI_API_KEY", "api_key",
    "apiKey", "AWS_SECRET_ACCESS_KEY", "password", "client_secret", "Authorization", "GITHUB_PAT", "credentials",
]  # fmt: skip
NO_SECRETS = [
    "eos_token", "pad_token", "image_token", "max_tokens", "generated_tokens", "log_token_ratios", "key", "keys",
    "scoring_batch_tokens", "stop_token_ids", "tokenizer", "PWD", "weights_sha256", "author", "passed", "secretary",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", NO_SECRETS)
def test_names_of_other_things(name):
    assert not is_secret(name)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


CANARY = "canary-5f1d"


@pytest.mark.parametrize(
    "value",
    [
        ["pbsd", "train", "--hub_token", CANARY],
        ["pbsd", "train", f"--hub_token={CANARY}"],
        ["pbsd", "train", "--model_init_kwargs", json.dumps({"token": CANARY})],
        ["pbsd", "train", "--model_init_kwargs=" + json.dumps({"proxies": {"https": f"http://me:{CANARY}@host:1"}})],
        {"reward_funcs": [json.dumps({"name": "m:f", "api_key": CANARY})]},
        {"a": [{"b": {"client_secret": [CANARY]}}]},
        {"dataset_name": f"https://me:{CANARY}@host/rows.jsonl"},
        {"dataset_name": f"https://{CANARY}@host/rows.jsonl"},
        {"dataset_name": f"https://host/rows?x=1&X-Amz-Signature={CANARY}&y=2"},
        {"headers": f"Authorization: Bearer {CANARY}-{CANARY}"},
        {"password": 1234567, "note": CANARY.replace(CANARY, "")},
        "HF_TOKEN=" + CANARY,
    ],
    ids=str,
)
def test_a_secret_is_taken_out_and_found(value):
    assert "canary" not in str(public(value))
    assert "1234567" not in str(public(value))
    assert list(secrets_in(value)) or isinstance(value, list)  # a command line is no options


def test_the_rest_of_a_command_stays():
    plain = ["--beta", "0.3", "--max_token", "5", "--resume"]
    assert public(["pbsd", "--hub_token", CANARY, *plain]) == ["pbsd", "--hub_token", "***", *plain]


@pytest.mark.parametrize(
    "value",
    [
        {"eos_token": "</s>", "beta": 0.1, "teacher": "ema", "tokens": [1, 2], "x": None, "use_auth_token": False},
        "https://host/path?page=2&email=me@host",
        "Basic understanding of a solution; the bearer of this letter",
        "{{ prompt }}\n\n{{ privileged_context }}",
        "org/model@main",
        '{"name": "math", "parse": "boxed"}',
    ],
    ids=str,
)
def test_what_is_no_secret_stays(value):
    assert public(value) == value
    assert not list(secrets_in(value))


def test_values_of_secret_environment_variables_are_taken_out_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_API_KEY", CANARY)
    monkeypatch.setenv("SOME_SETTING", "seldom-1234")
    assert public({"run_name": f"x-{CANARY}"}) == {"run_name": "x-***"}
    assert scrub(f"401 for {CANARY}, seldom-1234") == "401 for ***, seldom-1234"


def test_the_hubs_token_of_the_home_folder_is_taken_out(home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", os.path.join(home, "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with open(os.path.join(home, "token"), "w") as file:
        file.write(CANARY)
    assert scrub(f"refused: {CANARY}") == "refused: ***"


def test_the_home_folder_is_written_short_and_read_back(home):
    value = {"a": f"{home}/x", "b": [home, f"gsm8k@{home}/rows"], "c": f"in {home}/x", "d": f"{home}-other/x"}
    written = {"a": "~/x", "b": ["~", "gsm8k@~/rows"], "c": f"in {home}/x", "d": f"{home}-other/x"}
    assert public(value) == written
    assert with_home(written) == value
    assert scrub(f"File '{home}/x', line 1") == "File '~/x', line 1"


@dataclass
class OfAnotherVersion(PBSDConfig):
    """Options that pbsd does not know, as a later transformers would bring."""

    some_service: str = ""
    some_count: int = 3
    some_kwargs: dict | None = None


def test_an_option_with_text_that_is_not_known_is_not_written(tmp_path):
    """The list says what is written: nobody has to think of a new option's secret."""
    config = OfAnotherVersion(str(tmp_path), use_cpu=True, some_service=CANARY, some_kwargs={"x": CANARY})
    for written in (str(config.to_dict()), config.to_json_string(), str(config.to_sanitized_dict())):
        assert CANARY not in written
    assert config.to_dict()["some_count"] == 3


def test_every_option_of_the_installed_transformers_is_written_but_its_token(tmp_path):
    """So that no option that determines a run is lost: what is left out is named here."""
    config = PBSDConfig(str(tmp_path), use_cpu=True)
    assert {option.name for option in fields(TrainingArguments) if option.init} - config.to_dict().keys() == {
        "hub_token"
    }


def test_a_resolved_recipe_has_no_secret_and_says_what_it_lacks(tmp_path, home):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"""
model_name_or_path: {home}/model
dataset_name: d
reward_funcs: [{{name: "m:f", api_key: {CANARY}}}]
hub_token: {CANARY}
model_init_kwargs: {{dtype: float32, token: {CANARY}, cache_dir: {home}/cache}}
output_dir: {home}/run
use_cpu: true
"""
    )
    run, config = load_recipe(recipe)
    assert (config.hub_token, config.model_init_kwargs["token"]) == (CANARY, CANARY)  # they are still used
    text = dump_recipe(run, config)
    assert CANARY not in text
    assert home not in text
    left = "reward_funcs[0].api_key, hub_token, model_init_kwargs.token"
    assert text.splitlines()[0] == f"# Left out or cut, as they are or hold secrets: {left}"
    recipe.write_text(text)
    again, config = load_recipe(recipe)
    assert (again.model_name_or_path, config.output_dir) == (f"{home}/model", f"{home}/run")
    assert (config.hub_token, config.model_init_kwargs) == (None, {"dtype": "float32", "cache_dir": f"{home}/cache"})


@pytest.mark.parametrize(
    "value",
    [
        {"teacher_prompt_template": "token={{ privileged_context }}"},
        {"leakage_phrases": ["the password=x", "api_key=y"]},
        {"reward_funcs": ['{"name": "format", "pattern": "token=a"}']},
        {"reward_funcs": [{"name": "format", "pattern": "^password=.*$"}]},
        {"student_thinking_prefix": "<think> secret=1"},
        ["pbsd", "--reprompt_template", "token=x", "--tools_template=password=y", "--leakage_phrases", "a", "token=b"],
    ],
    ids=str,
)
def test_a_text_for_the_model_or_a_pattern_stays(value):
    """There `token=a` is no assignment of a secret."""
    assert public(value) == value
    assert isinstance(value, list) or not list(secrets_in(value))  # a command line is no options


def test_other_secrets_in_such_a_text_are_taken_out(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", CANARY)
    value = {"teacher_prompt_template": f"ask https://me:{CANARY}@host", "pattern": f"x{CANARY}"}
    assert "canary" not in str(public(value))
    assert list(secrets_in(value)) == ["teacher_prompt_template", "pattern"]


RECIPE = "model_name_or_path: m\ndataset_name: d\nreward_funcs: [math]\noutput_dir: x\nuse_cpu: true\n"


@pytest.mark.parametrize(
    ("line", "flags", "place"),
    [
        ("hub_token: '***'", [], "hub_token"),
        ("run_name: https://***@host/x", [], "run_name"),
        ("model_init_kwargs: {revision: 'token=***'}", [], "model_init_kwargs.revision"),
        ("teacher_prompt_template: token=***", [], "teacher_prompt_template"),
        ("beta: 0.1", ["--hub_token", "***"], "--hub_token"),
        ("beta: 0.1", ["--run_name=https://***@host"], "--run_name"),
    ],
)
def test_a_recipe_with_what_a_cut_left_is_refused(tmp_path, line, flags, place):
    (tmp_path / "r.yaml").write_text(f"{RECIPE}{line}\n")
    with pytest.raises(ValueError, match=r"holds `\*\*\*`, which stands where a secret was cut") as error:
        load_recipe(tmp_path / "r.yaml", flags)
    assert f"{place}" in str(error.value)


def test_a_recipe_with_stars_in_a_text_is_read_and_written_as_it_is(tmp_path):
    """`config.yaml` is the run's recipe again: its templates and patterns are not cut."""
    template = "token={{ prompt }}\n***\n{{ privileged_context }}"
    (tmp_path / "r.yaml").write_text(f"{RECIPE}teacher_prompt_template: {json.dumps(template)}\n")
    run, config = load_recipe(tmp_path / "r.yaml")
    (tmp_path / "again.yaml").write_text(dump_recipe(run, config))
    assert load_recipe(tmp_path / "again.yaml")[1].teacher_prompt_template == template == config.teacher_prompt_template
