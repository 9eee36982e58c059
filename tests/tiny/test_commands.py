"""`pbsd render`, `pbsd doctor` and what a finished run folder holds, as a person would see them."""

import json
import re
from dataclasses import fields
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import HfApi
from transformers import TrainingArguments

from pbsd.cli import main
from pbsd.methods import METHODS
from pbsd.recipe import RunArguments, load_recipe
from pbsd.run import RunFolder


def test_render_shows_both_prompts_with_ids_lengths_and_drops(recipe, capsys):
    assert main(["render", str(recipe), "-n", "2", "--max_teacher_prompt_length", "10", "--overlong", "drop"]) == 0
    out = capsys.readouterr().out
    assert "row 0, student: 6 tokens, no budget" in out
    assert "row 1, teacher: 11 tokens, budget 10 EXCEEDED" in out
    assert "say b:" in out
    assert "bbb" in out
    assert "ids [" in out
    assert "16 of 16 rows are over a prompt budget and would be dropped" in out
    assert "row 2" not in out


def test_render_shows_markup_as_it_is(recipe, capsys, tmp_path):
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps({"prompt": "[red]x[/red] [/b]", "answer": "x"}) + "\n")
    assert main(["render", str(recipe)]) == 0
    assert "[red]x[/red] [/b]" in capsys.readouterr().out


def test_doctor_passes_a_sound_recipe(request, capsys):
    recipe = request.config.rootpath / "recipes" / "quickstart.yaml"
    assert main(["doctor", str(recipe), "--dataset_train_size", "64", "--dataset_test_size", "8"]) == 0
    out = capsys.readouterr().out
    for check in ("machine", "model", "data", "templates", "lengths", "stop tokens", "options", "one dry step"):
        assert f"ok   {check}:" in out
    assert "mend" not in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model_name_or_path", "/nowhere"], "could not be loaded"),
        (["--dataset_name", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--max_completion_length", "2"], "100% of the student's completions hit max_completion_length"),
        (["--teacher_prompt_template", "{{ prompt }}"], "teacher_prompt_template leaves out the privileged context"),
        (["--max_completion_length", "400"], "lower a budget"),
        (["--dataset_test_split", "train"], "held-out prompts are also trained on"),
        (["--pair_policy", "improving"], "no pair was kept"),
        (["--reward_funcs", "os.path:joins"], "did you mean 'join'"),
    ],
)
def test_doctor_names_the_mend(recipe, capsys, flags, words):
    assert main(["doctor", str(recipe), *flags]) == 1
    out = capsys.readouterr().out
    assert words in out
    assert "mend " in out


def with_contexts(folder, contexts):
    rows = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text().splitlines()]
    texts = [contexts[place % len(contexts)] for place in range(len(rows))]
    lines = [json.dumps({**row, "privileged_context": text}) for row, text in zip(rows, texts, strict=True)]
    (folder / "data" / "train.jsonl").write_text("\n".join(lines))
    return len(rows)


@pytest.mark.parametrize("flags", [[], ["--no_weights"]])
@pytest.mark.parametrize("context", [None, "", "  \n"])
def test_doctor_says_once_that_no_row_has_a_context(recipe, tmp_path, capsys, context, flags):
    with_contexts(tmp_path, [context])
    budget = ["--max_prompt_length", "64"] if flags else []
    assert main(["doctor", str(recipe), *budget, *flags]) == 1
    out = capsys.readouterr().out
    assert out.count("no row has a `privileged_context`") == 1
    assert "does teacher_prompt_template use" not in out and "ok   templates" not in out
    if not flags:
        assert out.count("see data, above") == 3  # templates, lengths, one dry step


@pytest.mark.parametrize("flags", [[], ["--no_weights"]])
def test_doctor_notes_rows_without_context(recipe, tmp_path, capsys, flags):
    rows = with_contexts(tmp_path, [" ", "the answer"])
    main(["doctor", str(recipe), *flags])
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "both roles see the same" in line)
    assert line.startswith("note ") and f"; {rows // 2} of {rows} training rows have no privileged_context" in line
    assert "fill them, or leave these rows out" in out and "does teacher_prompt_template use" not in out
    main(["doctor", str(recipe), *flags, "--context", "none"])
    assert "both roles see the same" not in capsys.readouterr().out


def test_doctor_without_weights_reads_contexts_of_messages_and_trls_column(recipe, tmp_path, capsys):
    for context in ([{"role": "user", "content": "see 12"}], "see 12\n"):
        with_contexts(tmp_path, [context])
        main(["doctor", str(recipe), "--no_weights"])
        out = capsys.readouterr().out
        assert "ok   templates: the teacher's prompt ends in" in out and "see 12" in out
    path = tmp_path / "data" / "train.jsonl"
    path.write_text(path.read_text().replace('"privileged_context"', '"golden_response"'))
    main(["doctor", str(recipe), "--no_weights"])
    assert "ok   templates: the teacher's prompt ends in" in capsys.readouterr().out


def test_a_run_does_not_replace_the_base_of_its_adapter(recipe, tmp_path, capsys):
    """Neither of the adapter that it trains, nor of a teacher that is one; `doctor` says so too."""
    short = ["--max_steps", "1", "--save_strategy", "no"]
    full, adapter = tmp_path / "full", tmp_path / "adapter"
    assert main(["train", str(recipe), *short, "--output_dir", str(full)]) == 0
    peft = ["--use_peft", "true", "--lora_target_modules", "q_proj"]
    base = ["--model_name_or_path", f"{full}/model"]
    assert main(["train", str(recipe), *short, *base, *peft, "--output_dir", str(adapter)]) == 0
    weights = (full / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    as_teacher = ["--teacher", "external", "--teacher_model", f"{adapter}/model"]
    for flags in (["--model_name_or_path", f"{adapter}/model"], as_teacher):
        for command in ("train", "doctor"):
            assert main([command, str(recipe), *short, *flags, "--output_dir", str(full)]) != 0
            said = capsys.readouterr()
            assert f"holds '{full}/model', which this command reads" in said.out + said.err
    assert (full / "model" / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "full.1").exists()


def test_what_a_run_folder_holds(recipe, tmp_path, capsys):
    assert main(["train", str(recipe)]) == 0
    folder = tmp_path / "run"
    out = capsys.readouterr().out
    assert "avg@2, T = 1" in out
    assert f"{folder}/" in out.replace("\n", "")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["accuracy"]["difference"].keys() == {"estimate", "low", "high"}
    assert 0 <= summary["accuracy"]["before"] <= 1
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]["tokens/generated_total"] == summary["generated_tokens"] > 0
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == sum(line["pairs/kept"] for line in metrics)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["initial_weights_sha256"]) == 64
    assert manifest["rows"]["train"].items() >= {"used": 16, "dropped": 0}.items()
    again, config = load_recipe(folder / "config.yaml")
    assert (again.dataset_name, config.max_steps) == (str(tmp_path / "data"), 6)
    assert yaml.safe_load((folder / "config.yaml").read_text())["beta"] == config.beta
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert (folder / "model" / "model.safetensors").is_file()


def test_a_run_says_where_it_starts_and_where_completions_end(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--max_steps", "1"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}/run: training starts from the beginning"
    assert second == "completions end at '<eos>'"


def test_only_the_model_is_pushed(recipe, tmp_path, monkeypatch):
    """The run folder holds training prompts; what goes to the hub is the model's folder, card included."""
    pushed = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=f"me/{name}"))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: pushed.append(options))
    assert main(["train", str(recipe), "--max_steps", "1", "--push_to_hub", "--hub_model_id", "mine"]) == 0
    assert [(push["repo_id"], push["folder_path"]) for push in pushed] == [("me/mine", tmp_path / "run" / "model")]
    names = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"samples.jsonl", "metrics.jsonl"}


def test_files_are_strict_json_where_a_figure_is_undefined(recipe, tmp_path):
    """One held-out problem has no interval: null in the files, not NaN, which most readers refuse."""

    def refuse(word):
        raise AssertionError(f"{word} in a JSON file")

    assert main(["train", str(recipe), "--max_steps", "1", "--dataset_test_size", "1"]) == 0
    folder = tmp_path / "run"
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=refuse)
    assert summary["accuracy"]["difference"]["low"] is None
    for name in ("metrics.jsonl", "samples.jsonl"):
        for line in (folder / name).read_text().splitlines():
            json.loads(line, parse_constant=refuse)


def test_two_runs_in_one_folder_are_refused(recipe, tmp_path, capsys):
    with RunFolder(tmp_path / "run").lock():
        assert main(["train", str(recipe)]) == 2
    assert "another run is writing here" in capsys.readouterr().err


def test_debug_shows_the_traceback(recipe):
    with pytest.raises(ValueError, match="could not be loaded"):
        main(["--debug", "train", str(recipe), "--model_name_or_path", "/nowhere"])


@pytest.mark.parametrize("method", METHODS)
def test_options_are_all_listed_once_with_their_defaults(method, capsys):
    assert main(["options", method]) == 0
    listed = re.findall(r"^  (\w+) (?:= (.*)|\(required\))$", capsys.readouterr().out, re.MULTILINE)
    config = METHODS[method][0]
    ours = {option.name for option in fields(config) if option.init} - {f.name for f in fields(TrainingArguments)}
    names = [name for name, _ in listed]
    assert len(set(names)) == len(names)
    assert ours | {option.name for option in fields(RunArguments)} <= set(names)
    for name, value in listed:
        if hasattr(config, name):
            assert json.loads(value) == getattr(config(), name)


def test_options_of_an_unknown_method(capsys):
    assert main(["options", "gpro"]) == 2
    assert "unknown method 'gpro'" in capsys.readouterr().err
