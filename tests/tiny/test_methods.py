"""Every method on the tiny model: it trains, counts its tokens, does not depend on micro-batches and resumes."""

import json
import math
import warnings

import pytest
import torch
from conftest import ROWS, SMALL, tiny_model
from peft import LoraConfig, get_peft_model

import pbsd
from pbsd.api import load_external_teacher
from pbsd.cli import main
from pbsd.methods import METHODS

every_method = pytest.mark.parametrize("method", list(METHODS))


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.student.parameters()])


def logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@every_method
def test_trains_and_logs(make_method, method):
    trainer = make_method(method)
    samples = []
    trainer.on_samples = lambda step, records: samples.extend(records)
    before = weights(trainer).clone()
    trainer.train()
    assert (weights(trainer) - before).abs().max() > 1e-4
    written_by = ("student", "teacher", "handover")
    sampled = sum(entry.get(f"tokens/{who}", 0) for entry in logs(trainer) for who in written_by)
    assert trainer.generated_tokens == logs(trainer)[-1]["tokens/generated_total"] == sampled
    assert (sampled == 0) == (method == "sft")
    assert json.dumps(samples)
    assert all({"prompt", "row"} <= record.keys() for record in samples)
    for entry in logs(trainer):
        assert math.isfinite(entry["loss"])
        assert entry["tokens/trained"] > 0
        assert entry["health/student_entropy"] > 0
        if method != "sft":
            assert {"reward/student", "tokens/student_length", "tokens/student_truncated"} <= entry.keys()
            assert entry["health/sampler_gap"] < 1e-5


@every_method
def test_one_by_four_equals_four_by_one(make_method, method):
    """Also in parts of the token budget: 40 tokens hold one prompt."""
    results = []
    for batch, accumulation, budget in ((4, 1, 16384), (1, 4, 16384), (4, 1, 40)):
        trainer = make_method(
            method, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            train_batch_tokens=budget,
        )  # fmt: skip
        trainer.train()
        results.append((weights(trainer).clone(), logs(trainer)))
    for other_weights, other_logs in results[1:]:
        torch.testing.assert_close(other_weights, results[0][0], atol=5e-6, rtol=0)
        for one, other in zip(results[0][1], other_logs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert one["tokens/trained"] == other["tokens/trained"]


RESUMED = {
    "pbsd": {"teacher": "ema", "ema_decay": 0.5, "loss_type": "bradley_terry"},
    "opsd": {"teacher": "refreshed", "teacher_refresh_steps": 1},
    "sdpo": {"ema_decay": 0.5},
    "grpo": {"beta": 0.1},
    "rft": {"rft_source": "both", "teacher": "ema", "ema_decay": 0.5},
}
"""States that matter: a teacher that moves, or a reference that a fresh start would take from the trained weights."""


@every_method
def test_a_resumed_run_equals_an_uninterrupted_one(make_method, method):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, **RESUMED.get(method, {})}
    whole = make_method(method, folder="whole", **options)
    whole.train()
    resumed = make_method(method, folder="whole", **options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.generated_tokens == whole.generated_tokens
    if whole.engine.teacher is not None:
        for name, value in whole.engine.teacher.weights.items():
            assert torch.equal(resumed.engine.teacher.weights[name], value)


@every_method
def test_external_teachers(make_method, method, tokenizer, tmp_path):
    """An external teacher is a kind like any other; methods without a teacher have no such option."""
    tiny_model(tokenizer, seed=5).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    options = {"teacher": "external", "teacher_model": str(tmp_path / "other"), "max_steps": 1}
    if method == "rft":
        options["rft_source"] = "teacher"
    if method in ("grpo", "online_dpo", "sft"):
        with pytest.raises(TypeError, match="teacher"):
            make_method(method, **options)
        return
    trainer = make_method(method, **options)
    before = weights(trainer).clone()
    trainer.train()
    assert not torch.equal(weights(trainer), before)


@pytest.mark.parametrize("method", ["pbsd", "opsd"])
def test_an_external_teacher_with_more_padding(make_method, method, tokenizer, tmp_path):
    """Padding that the student has not plays no part: a teacher that prefers its own padding to every word learns the
    student the same as without it. With less padding than the student's it is refused."""
    options = {"teacher": "external", "max_steps": 1}
    after = []
    for name, padding in (("plain", 0), ("padded", 28)):
        other = tiny_model(tokenizer, seed=5)
        if padding:
            used = other.get_input_embeddings().num_embeddings
            other.resize_token_embeddings(used + padding, mean_resizing=False)
            with torch.no_grad():
                other.get_output_embeddings().weight[used:] = 3.0 * other.get_output_embeddings().weight[:padding]
        other.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        trainer = make_method(method, teacher_model=str(tmp_path / name), **options)
        trainer.train()
        after.append(weights(trainer))
    torch.testing.assert_close(after[1], after[0])
    adapted = get_peft_model(tiny_model(tokenizer), LoraConfig(target_modules=["embed_tokens", "q_proj"]))
    same = load_external_teacher(trainer.args, tokenizer, adapted)
    assert len(same.get_input_embeddings().weight) == len(tokenizer)
    padded_student = tiny_model(tokenizer)
    padded_student.resize_token_embeddings(len(tokenizer) + 28, mean_resizing=False)
    trainer.args.teacher_model = str(tmp_path / "plain")
    with pytest.raises(ValueError, match="the student could sample ids that the teacher has not. Cut the student's"):
        load_external_teacher(trainer.args, tokenizer, padded_student)


@pytest.mark.parametrize("method", ["opsd", "sdpo", "grpo"])
def test_with_an_adapter_teacher_and_reference_cost_nothing(make_method, method):
    """The initial weights are the model with its adapter off."""
    options = {"grpo": {"beta": 0.1}}.get(method, {"teacher": "initial"})
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_method(method, peft_config=lora, **options)
    trainer.train()
    assert trainer.engine.teacher.weights == {}
    assert any(p.abs().sum() > 0 for n, p in trainer.engine.student.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("name", [name for name in pbsd.__all__ if name.endswith("Trainer")])
def test_named_trainers(name, tokenizer, tmp_path):
    trainer_class = getattr(pbsd, name)
    wrong = pbsd.SFTConfig if name != "SFTTrainer" else pbsd.PBSDConfig
    if name != "SelfDistillationTrainer":
        assert trainer_class.config_class is getattr(pbsd, name.replace("Trainer", "Config"))
        with pytest.raises(ValueError, match=f"{name} takes a"):
            trainer_class(tiny_model(tokenizer), wrong(output_dir=str(tmp_path), use_cpu=True), ROWS)


# Refusals


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("grpo", {"num_generations": 1}, "num_generations must be at least 2"),
        ("grpo", {"num_iterations": 2}, "num_iterations must be 1"),
        ("grpo", {"temperature": 0.6}, "needs temperature=1, top_p=1"),
        ("grpo", {"top_k": 5}, "needs temperature=1, top_p=1"),
        ("grpo", {"loss_type": "cispo"}, "loss_type must be one of dapo"),
        ("online_dpo", {"num_generations": 1}, "a pair needs two completions"),
        ("opsd", {"distillation_alpha": 1.5}, "distillation_alpha must lie in"),
        ("opsd", {"distillation_mode": "topk_logits"}, "needs distillation_topk"),
        ("opsd", {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}, "not with sampled_token"),
        ("sdft", {"distillation_mode": "sampled_token"}, "set distillation_alpha=1"),
        ("sdpo", {"temperature": 0.7}, "set temperature=1"),
        ("sdpo", {"use_successful_as_teacher": False, "teacher": "initial"}, "nothing more than the student"),
        ("sdpo", {"num_generations": 1}, "needs siblings"),
        ("sdpo", {"reprompt_template": "{{ prompt "}, "reprompt_template, line 1"),
        ("sdpo", {"reward": None}, "reward_funcs is missing"),
        ("opsd", {"teacher": "refreshed", "teacher_refresh_margin": 0.1}, "teacher_refresh_margin compares"),
        ("rft", {"teacher": "refreshed", "teacher_refresh_measure": "context"}, "read with teacher_refresh_margin"),
        ("rft", {"teacher": "refreshed", "rft_source": "both", "teacher_refresh_margin": -0.1}, "must be at least 0"),
        ("opsd", {"teacher_refresh_blend": 0.5}, "read with teacher='refreshed'"),
        ("opsd", {"teacher": "refreshed", "teacher_refresh_blend": 0.0}, "must lie in (0, 1]"),
        ("rft", {"teacher": "ema"}, "rft_source='student' has no use for teacher='ema'"),
        ("sft", {"rows": [{"prompt": "p"}]}, "row 0: nothing to learn"),
        ("sft", {"max_completion_length": 3}, "`privileged_context` has 4 tokens with the stop token"),
    ],
)  # fmt: skip
def test_refused(make_method, method, options, words):
    with pytest.raises(ValueError) as caught:
        make_method(method, **options)
    assert words in str(caught.value)


def test_a_preset_fills_what_is_not_given():
    def made(**options):
        return pbsd.PBSDConfig(output_dir="none", use_cpu=True, **options)

    mixed, pairs, published = (made(preset=name) for name in ("mixed", "pairs", "published"))
    assert mixed.to_dict() == made().to_dict()
    assert [(a.preference_coef, a.imitation_coef, a.direct_coef) for a in (mixed, pairs, published)] == [
        (0.0, 1.0, 1.0), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0),
    ]  # fmt: skip
    assert (published.pairing, published.pair_policy, published.nll_coef) == ("cross", "all", 0.0)
    assert (pairs.pairing, pairs.pair_policy, pairs.nll_coef) == ("all", "oriented", 1.0)
    assert (mixed.measures_handover, pairs.measures_handover) == (True, False)
    own = made(preset="pairs", direct_coef=0.5, pairing="cross", adaptive_generations=True)
    assert (own.direct_coef, own.pairing, own.adaptive_generations, own.preference_coef) == (0.5, "cross", True, 1.0)
    assert made(imitation_coef=0.0).measures_handover  # it steers who writes
    assert not made(imitation_coef=0.0, adaptive_generations=False).measures_handover
    with pytest.raises(ValueError, match="preset must be one of mixed, pairs, published; got 'other'"):
        made(preset="other")


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({"teacher": "refreshed", "preset": "published"}, True),
        ({"teacher": "refreshed", "preset": "published", "teacher_refresh_margin": 0.0}, False),
        ({"teacher": "live", "preset": "published"}, True),
        ({"teacher": "live", "preset": "published", "pairing": "all"}, False),
        ({"teacher": "live"}, False),
        ({"teacher": "live", "reward_scale": 0.0}, True),
        (
            {
                "teacher": "live",
                "preset": "published",
                "preference_coef": 0.0,
                "nll_coef": 1.0,
                "loss_type": "squared",
            },
            True,
        ),
        ({"teacher": "live", "coef_schedule": {"reward_scale": [[0, 0.0], [9, 1.0]]}}, False),
    ],
)
def test_a_teacher_that_moves_without_labels_is_warned_of(options, warns):
    """Pairs of one role follow the rewards under any policy; cross pairs under `all` do not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pbsd.PBSDConfig(output_dir="none", use_cpu=True, **options)
    assert any("feedback loop" in str(warning.message) for warning in caught) == warns


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({"num_generations": 2}, True),
        ({"num_generations": 3}, False),
        ({"num_generations": 2, "adaptive_generations": False}, False),
        ({"num_generations": 1, "adaptive_generations": False}, True),
        ({"num_generations": 2, "imitation_prompts": "all"}, False),
    ],
)
def test_a_lone_sample_that_others_cannot_weigh_is_warned_of(options, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pbsd.PBSDConfig(output_dir="none", use_cpu=True, **options)
    assert any("moves the target" in str(warning.message) for warning in caught) == warns


def test_top_k_over_the_vocabulary_is_refused(make_method):
    with pytest.raises(ValueError, match="distillation_topk is 100, the vocabulary has"):
        make_method("sdft", distillation_topk=100).train()


@pytest.mark.parametrize("method", ["opsd", "sdft"])
def test_a_moving_teacher_without_rewards_is_warned_of(make_method, method):
    with pytest.warns(UserWarning, match="feedback loop"):
        make_method(method, teacher="ema")


def test_references_over_the_budget_are_dropped_and_counted(make_method):
    rows = [*ROWS[:4], {"prompt": "p", "completion": "much too long"}]
    trainer = make_method("sft", rows=rows, overlong="drop")
    assert (len(trainer.train_dataset), trainer.train_dataset.dropped) == (4, 1)


# Recipes


@pytest.fixture
def method_recipe(recipe):
    """The recipe of conftest for any method: without the options that are PBSD's."""

    def write(method, *lines):
        own = ("preset", "loss_type", "nll_coef", "num_teacher_generations", "max_steps", "save_steps", "method")
        text = [line for line in recipe.read_text().splitlines() if line.split(":")[0] not in own]
        recipe.write_text("\n".join([*text, f"method: {method}", "max_steps: 1", *lines, ""]))
        return str(recipe)

    return write


@every_method
def test_train_doctor_and_render(method_recipe, method, capsys, tmp_path):
    lines = [f"{key}: {value}" for key, value in SMALL.get(method, {}).items()]
    path = method_recipe(method, *lines, "success_threshold: 0.0")
    assert main(["render", path, "-n", "1"]) == 0
    assert ("row 0, completion: 4 tokens, budget 6" in capsys.readouterr().out) == (method == "sft")
    assert main(["doctor", path]) in (0, 1)  # the random model's completions are cut: a finding of its own
    out = capsys.readouterr().out
    assert f"options: {method}: " in out
    assert "one dry step: loss" in out
    if method not in ("opsd", "grpo", "sft"):
        return
    assert main(["train", path]) == 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["method"] == method
    assert main(["train", str(tmp_path / "run" / "config.yaml"), "--resume"]) == 0


def test_an_option_of_another_method_is_named(method_recipe, capsys):
    assert main(["train", method_recipe("grpo", "teacher_model: x")]) == 2
    error = capsys.readouterr().err
    assert "unknown key teacher_model; it is an option of pbsd, opsd, sdft, sdpo, rft (method: grpo)" in error
    assert main(["train", method_recipe("grpo"), "--method", "gpro"]) == 2
    assert "unknown method 'gpro'; did you mean grpo?" in capsys.readouterr().err
    assert main(["pilot", method_recipe("grpo"), "--out", "x"]) == 2
