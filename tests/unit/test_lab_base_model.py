"""The tiny base model: tokenizer, the packaged checkpoint and its measured rates, and the build."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pbsd.lab import arithmetic, base_model, checkpoint_path
from pbsd.lab.base_model import build_base, build_tokenizer
from pbsd.lab.tiny_model import MAX_NEW_TOKENS, new_model, role_prompt, success_rate

NAME = "arithmetic-0.2m"


@pytest.fixture(scope="module")
def packaged():
    folder = checkpoint_path(NAME)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", ["Q: 47+38-16\nA:", " a  b , c . ' s #### -1\n\n ", "", "\n", "don't ; [x]  !"])
def test_tokenizer_round_trip_is_exact_also_after_saving(text, tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    for tokenizer in (build_tokenizer(), AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_special_tokens_are_distinct_and_unknown_characters_are_marked():
    tokenizer = build_tokenizer()
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(special) == 3
    assert None not in special
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]
    assert tokenizer.decode([*tokenizer.encode(" 1"), tokenizer.eos_token_id], skip_special_tokens=True) == " 1"


def test_packaged_checkpoint_is_small_fp32_and_stops_at_eos(packaged):
    model, tokenizer = packaged
    folder = checkpoint_path(NAME)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 150_000 < model.num_parameters() < 250_000
    settings = model.generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 1.0, 0)
    assert settings.top_p in (None, 1.0)
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_unknown_checkpoint_names_those_that_exist():
    with pytest.raises(ValueError, match=NAME):
        checkpoint_path("arithmetic-9b")


def test_base_leaves_room_for_the_student_and_a_lead_for_the_teacher(packaged):
    """500 held-out test problems: the standard error of a rate is at most .023."""
    problems = arithmetic.rows("test", 500)
    student = success_rate(*packaged, problems, "student")
    teacher = success_rate(*packaged, problems, "teacher")
    assert 0.30 <= student <= 0.60
    assert teacher >= student + 0.15


def test_success_rate_scores_the_completion_and_not_the_prompt(packaged):
    """An untrained model solves nothing even where the teacher's prompt holds the answer."""
    _, tokenizer = packaged
    assert success_rate(new_model(tokenizer, 0), tokenizer, arithmetic.rows("test", 50), "teacher") == 0.0


def test_success_rate_is_repeatable_and_leaves_the_global_generator_alone(packaged):
    problems = arithmetic.rows("test", 40)
    before = torch.random.get_rng_state()
    first = success_rate(*packaged, problems, "student", seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert success_rate(*packaged, problems, "student", seed=5) == first


def test_no_solution_is_longer_than_the_generation_budget():
    """The longest solution has three equations such as ' 47+8=55' and ends in ' #### 55': 4 x 8 = 32 characters."""
    longest = max(len(row["privileged_context"]) for row in arithmetic.rows("validation", 3000))
    assert longest == 32
    assert longest + 1 <= MAX_NEW_TOKENS


def test_batch_labels_are_the_completion_with_its_eos_alone():
    tokenizer = build_tokenizer()
    pool = arithmetic.rows("train", 1)
    for share, role in ((0.0, "student"), (1.0, "teacher")):
        arguments = {
            **base_model.DEFAULTS,
            "batch_size": 2,
            "teacher_share": share,
            "flawed_share": 0.0,
            "student_rows": 1,
            "teacher_rows": 1,
        }
        batch = base_model._batch(tokenizer, pool, arguments, step=0)
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        expected = [*tokenizer.encode(pool[0]["privileged_context"]), tokenizer.eos_token_id]
        assert labels[labels != -100].tolist() == expected
        assert ids.tolist() == tokenizer.encode(role_prompt(pool[0], role)) + expected


def tiny_build(folder, steps=6, **options):
    return build_base(folder, steps=steps, batch_size=4, student_rows=50, teacher_rows=50, eval_samples=4, **options)


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_build_is_deterministic_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    report = tiny_build(tmp_path / "whole")
    assert report == json.loads((tmp_path / "whole" / "build.json").read_text())
    assert report["validation"]["samples"] == 4

    monkeypatch.setattr(base_model, "_SAVE_EVERY", 2)
    real_batch = base_model._batch

    def interrupted_batch(tokenizer, pool, arguments, step):
        if step == 3:
            raise KeyboardInterrupt
        return real_batch(tokenizer, pool, arguments, step)

    monkeypatch.setattr(base_model, "_batch", interrupted_batch)
    with pytest.raises(KeyboardInterrupt):
        tiny_build(tmp_path / "resumed")
    monkeypatch.setattr(base_model, "_batch", real_batch)
    with pytest.raises(ValueError, match=r"steps 6 \(asked 7\)"):
        tiny_build(tmp_path / "resumed", steps=7)
    tiny_build(tmp_path / "resumed")

    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "resumed" / "training_state.pt").exists()

    tiny_build(tmp_path / "other", seed=1)
    assert any(not torch.equal(whole[name], value) for name, value in weights(tmp_path / "other").items())


def test_a_finished_build_is_kept_and_other_arguments_are_refused(tmp_path):
    report = tiny_build(tmp_path, steps=1)
    assert tiny_build(tmp_path, steps=1) == report
    with pytest.raises(ValueError, match=r"steps 1 \(asked 2\)"):
        tiny_build(tmp_path, steps=2)


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("learning_rate", 0.0), ("teacher_share", 1.5)])
def test_arguments_out_of_range_are_refused(name, value, tmp_path):
    with pytest.raises(ValueError, match=name):
        build_base(tmp_path, **{name: value})
