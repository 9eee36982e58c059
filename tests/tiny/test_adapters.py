"""Training that starts from an adapter: what the teacher is, what is trained, and that what is saved loads to the same
logits by plain PEFT."""

import json
import logging
import shutil

import pytest
import torch
from conftest import ROWS, contains_answer, tiny_model
from peft import AutoPeftModelForCausalLM, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pbsd import PBSDTrainer
from pbsd.cli import main

IDS = torch.arange(5, 25)[None]


@torch.no_grad()
def logits(model):
    was_training = model.training
    model.eval()
    found = model(input_ids=IDS).logits
    model.train(was_training)
    return found


def lora(seed=3, **options):
    return LoraConfig(
        **{"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    )


@pytest.fixture
def base(tokenizer, tmp_path):
    """A base model's folder."""
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def make_sft(base, folder, name="default", **options):
    """A trained adapter's folder, as plain PEFT saves it, and its logits."""
    torch.manual_seed(7)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(**options), adapter_name=name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return logits(model)


@pytest.fixture
def sft(base, tmp_path):
    folder = tmp_path / "sft"
    return str(folder), make_sft(base, folder)


def loaded(folder, base):
    """What plain PEFT makes of a saved folder, by the two usual ways, which agree."""
    automatic = logits(AutoPeftModelForCausalLM.from_pretrained(folder))
    by_hand = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder))
    assert torch.equal(automatic, by_hand)
    return automatic


def teacher_logits(trainer):
    with trainer.engine.teacher.acting() as module:
        return module(input_ids=IDS).logits


WAYS = {
    "name": lambda folder, base: folder,
    "object": lambda folder, base: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder),
    "trainable object": lambda folder, base: PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), folder, is_trainable=True
    ),
    "object of another name": lambda folder, base: PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), folder, adapter_name="sft"
    ),
}
CONFIGS = {
    "continued": None,
    "stacked": lora(r=3, lora_alpha=7),
    "stacked elsewhere": lora(target_modules=["o_proj", "down_proj"], use_rslora=True),
    "stacked partly": lora(target_modules=["v_proj", "up_proj"], r=2, rank_pattern={"up_proj": 5}),
    "stacked on one layer": lora(layers_to_transform=[1]),
}


@pytest.mark.parametrize(
    ("way", "training", "teacher"),
    [
        *((way, training, "initial") for way in WAYS for training in ("continued", "stacked")),
        *(("name", training, "initial") for training in CONFIGS if training not in ("continued", "stacked")),
        *(("name", training, "ema") for training in ("continued", "stacked")),
    ],
)
def test_an_adapter_is_where_training_starts(base, sft, make_trainer, caplog, tmp_path, way, training, teacher):
    """Student and teacher start as base plus adapter. After three steps the student has moved and the initial teacher
    has not; the saved folder has the student's logits by plain PEFT."""
    folder, expected = sft
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        trainer = make_trainer(
            model=WAYS[way](folder, base),
            peft_config=CONFIGS[training],
            max_steps=3,
            teacher=teacher,
            learning_rate=1e-2,
        )
    said = "training goes on with this adapter" if training == "continued" else "a new adapter (LORA"
    assert f"the model is an adapter (LORA, rank 4) on the base {base}" in caplog.text and said in caplog.text
    assert torch.allclose(logits(trainer.engine.student), expected, atol=1e-5)
    assert torch.allclose(teacher_logits(trainer), expected, atol=1e-5)
    whole = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    trained = logits(trainer.engine.student)
    assert (trained - expected).abs().max() > 1e-3
    assert torch.allclose(teacher_logits(trainer), expected, atol=1e-5) == (teacher == "initial")
    assert all(torch.equal(p, whole[name]) for name, p in trainer.model.named_parameters() if name in whole)
    trainer.save_model(str(tmp_path / "out"))
    assert torch.allclose(loaded(tmp_path / "out", base), trained, atol=1e-4)
    assert (loaded(tmp_path / "out", base) - expected).abs().max() > 1e-3


def test_a_stacked_adapters_folder_is_a_start_again(base, sft, make_trainer, tmp_path):
    """Three adapters, one on the other, are saved as one of rank 4 + 3 + 2."""
    folder = sft[0]
    for round, config in enumerate((lora(r=3), lora(r=2, lora_alpha=1))):
        trainer = make_trainer(model=folder, peft_config=config, max_steps=2, output_dir=str(tmp_path / f"r{round}"))
        trainer.train()
        folder = str(tmp_path / f"out{round}")
        trainer.save_model(folder)
        trained = logits(trainer.engine.student)
        assert torch.allclose(loaded(folder, base), trained, atol=1e-4)
    config = json.loads((tmp_path / "out1" / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (9, base)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("way", "training"),
    [*(("name", training) for training in CONFIGS), ("object of another name", "continued")],
)
def test_a_resumed_run_is_the_same_bit_for_bit(base, sft, make_trainer, tmp_path, way, training):
    """Killed after its second step of four; also a checkpoint's folder loads by plain PEFT to the student's logits."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "teacher": "ema"}
    finals = []
    for name in ("whole", "killed"):
        trainer = make_trainer(
            model=WAYS[way](sft[0], base), peft_config=CONFIGS[training], output_dir=str(tmp_path / name), **options
        )
        if name == "killed":
            shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
            trainer.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-2"))
        else:
            trainer.train()
        assert torch.allclose(loaded(tmp_path / name / "checkpoint-4", base), logits(trainer.engine.student), atol=1e-4)
        finals.append({key: p.detach().clone() for key, p in trainer.model.named_parameters()})
    assert all(torch.equal(value, finals[1][key]) for key, value in finals[0].items())


def test_by_recipe_and_evaluated(base, recipe, sft, tmp_path, capsys):
    """`pbsd train` from the adapter's folder, which has no tokenizer of its own, and `pbsd evaluate` of the result.
    Numbers trained, of two layers: 4 (32 + 32) + 4 (32 + 16) = 448 for q and v at rank 4, 16 (32 + 32) = 1024."""
    folder, expected = sft
    for name, flags in (("continued", []), ("stacked", ["--use_peft", "true", "--lora_target_modules", "q_proj"])):
        out = tmp_path / name
        common = [
            "--model_name_or_path",
            folder,
            "--output_dir",
            str(out),
            "--max_steps",
            "2",
            "--learning_rate",
            "1e-2",
        ]
        assert main(["train", str(recipe), *common, *flags]) == 0
        model = AutoPeftModelForCausalLM.from_pretrained(out / "model")
        assert (logits(model) - expected).abs().max() > 1e-4
        capsys.readouterr()
        main(["doctor", str(recipe), *common, *flags])
        main(["doctor", str(recipe), *common, *flags, "--no_weights", "--max_prompt_length", "20"])
        shown = capsys.readouterr().out
        assert "ok   one dry step" in shown and "model: PeftModelForCausalLM with" in shown
        assert f"{896 if name == 'continued' else 2048} trained" in shown.replace(",", "")
    rows = "".join(json.dumps({"question": f"say {c}", "answer": f"#### {i}"}) + "\n" for i, c in enumerate("abcd"))
    (tmp_path / "test.jsonl").write_text(rows)
    evaluated = ["--benchmark", "gsm8k", "--local", str(tmp_path / "test.jsonl"), "--n", "2"]
    assert main(["evaluate", str(tmp_path / "stacked" / "model"), *evaluated, "--max_completion_length", "5"]) == 0


def test_a_stacked_run_is_resumed_by_its_command(recipe, sft, tmp_path):
    """Stopped after its second step of three, it ends with the same file as one left alone."""
    flags = ["--model_name_or_path", sft[0], "--use_peft", "true", "--save_steps", "1"]
    (tmp_path / "one.yaml").write_text(recipe.read_text() + "\ndataset_test_split: null\n")
    for folder, steps in (("whole", ["3"]), ("parts", ["2", "3"])):
        for round, limit in enumerate(steps):
            run = ["--output_dir", str(tmp_path / folder), "--max_steps", limit, *(["--resume"] if round else [])]
            assert main(["train", str(tmp_path / "one.yaml"), *run, *flags]) == 0
    files = [tmp_path / folder / "model" / "adapter_model.safetensors" for folder in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_tokenizer_in_the_adapters_folder_comes_first(base, sft, tokenizer, tmp_path, config):
    tokenizer.chat_template = "{{ 'own' }}"
    tokenizer.save_pretrained(sft[0])
    trainer = PBSDTrainer(sft[0], config(), ROWS, reward_funcs=contains_answer)
    assert trainer.processing_class.chat_template == "{{ 'own' }}"


def test_embeddings_that_grew_with_the_adapter(base, tokenizer, tmp_path, make_trainer):
    """Supervised training added three tokens; their rows are saved with the adapter."""
    tokenizer.add_tokens(["<a>", "<b>", "<c>"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = get_peft_model(model, lora(modules_to_save=["embed_tokens", "lm_head"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    trainer = make_trainer(model=str(tmp_path / "grown"))
    assert torch.allclose(logits(trainer.engine.student), logits(adapted), atol=1e-5)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    tokenizer.save_pretrained(tmp_path / "out")
    saved = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(saved), logits(trainer.engine.student), atol=1e-4)


# Refusals


def refused(make_trainer, words, **options):
    with pytest.raises(ValueError, match=words):
        make_trainer(**options)


def test_adapters_that_could_not_be_saved_as_one(base, sft, make_trainer, tmp_path):
    for config, words in (
        (lora(use_dora=True), "peft_config has use_dora=True"),
        (lora(modules_to_save=["lm_head"]), "peft_config has modules_to_save"),
        (lora(bias="all"), "peft_config has bias='all'"),
        (LoHaConfig(target_modules=["q_proj"]), "peft_config has peft_type LOHA"),
    ):
        refused(make_trainer, f"cannot be stacked.*{words}.*Leave out peft_config", model=sft[0], peft_config=config)
    make_sft(base, tmp_path / "dora", use_dora=True)
    refused(make_trainer, "the model's adapter has use_dora", model=str(tmp_path / "dora"), peft_config=lora())
    assert make_trainer(model=str(tmp_path / "dora")).engine.teacher.weights


def test_a_base_that_is_not_what_it_is_called(base, sft, make_trainer):
    """Merged in memory it still has the base's name, by which a new adapter on it would be saved."""
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft[0]).merge_and_unload()
    refused(make_trainer, "the model in memory is not what .* holds", model=merged, peft_config=lora())
    moved = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft[0], is_trainable=True)
    with torch.no_grad():
        moved.get_base_model().model.norm.weight.add_(0.5)
    refused(make_trainer, "model.norm.weight differs", model=moved)
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    make_trainer(model=half, peft_config=lora())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_init_that_changes_the_base(base, make_trainer, init):
    model = AutoModelForCausalLM.from_pretrained(base)
    refused(
        make_trainer,
        f"init_lora_weights='{init}' changes the base",
        model=model,
        peft_config=lora(init_lora_weights=init),
    )


def test_weights_that_would_be_trained_and_not_saved(base, sft, make_trainer):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft[0], is_trainable=True)
    model.get_base_model().model.norm.weight.requires_grad_(True)
    refused(make_trainer, "1 parameters would be trained and not saved .*norm", model=model)


def test_two_active_adapters(base, sft, make_trainer):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft[0])
    model.add_adapter("other", lora())
    model.base_model.set_adapter(["default", "other"])
    refused(make_trainer, "2 active adapters .default, other.", model=model)


def test_an_adapter_that_transformers_loaded(sft, make_trainer):
    model = AutoModelForCausalLM.from_pretrained(sft[0])
    for config in (None, lora()):
        refused(make_trainer, "an adapter that transformers loaded into it", model=model, peft_config=config)


def test_damaged_folders_are_named(base, sft, make_trainer, tmp_path):
    def damaged(name, change, **values):
        folder = tmp_path / name
        shutil.copytree(sft[0], folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        change(folder)
        return str(folder)

    def nothing(folder):
        pass

    for name, change, values, words in (
        (
            "json",
            lambda f: (f / "adapter_config.json").write_text("{"),
            {},
            "json/adapter_config.json could not be read",
        ),
        ("weights", lambda f: (f / "adapter_model.safetensors").unlink(), {}, "could not be loaded on its base"),
        ("zeroed", lambda f: (f / "adapter_model.safetensors").write_bytes(b"\0" * 64), {}, "zeroed"),
        ("nobase", nothing, {"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ("gone", nothing, {"base_model_name_or_path": "/nowhere/base"}, "the base '/nowhere/base', which could not be"),
        ("more", nothing, {"target_modules": ["q_proj", "v_proj", "o_proj"]}, "does not fit its base"),
        ("chain", nothing, {"base_model_name_or_path": sft[0]}, "which is an adapter itself"),
        ("both", lambda f: shutil.copy(f"{base}/model.safetensors", f), {}, "both an adapter .* and a whole model"),
    ):
        refused(make_trainer, words, model=damaged(name, change, **values))


def test_an_external_teacher_may_be_an_adapter(base, sft, tokenizer, make_trainer):
    tokenizer.save_pretrained(sft[0])
    trainer = make_trainer(teacher="external", teacher_model=sft[0])
    assert torch.allclose(teacher_logits(trainer), sft[1], atol=1e-5)
    trainer.train()


def test_the_bases_revision_is_saved_with_a_new_adapter(base, make_trainer):
    trainer = make_trainer(model=base, model_init_kwargs={"revision": "v2"}, peft_config=lora())
    assert trainer.model.peft_config["default"].revision == "v2"


def test_the_callers_peft_config_is_left_alone(base, make_trainer):
    config = lora()
    for _ in range(2):
        make_trainer(model=AutoModelForCausalLM.from_pretrained(base), peft_config=config)
    assert config.base_model_name_or_path is None


def test_the_tokenizer_of_an_adapters_base(base, sft, config):
    """The adapter's folder has none: it is its base's."""
    trainer = PBSDTrainer(sft[0], config(), ROWS, reward_funcs=contains_answer)
    assert trainer.processing_class.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
