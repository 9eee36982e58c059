"""The routers of a mixture of experts: no jitter in scores, and transformers' load-balancing loss over a whole step."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROWS, tiny_model
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from pbsd.records import Batch
from pbsd.scoring import enable_scoring
from pbsd.scoring.router import router_balance

CONFIGS = {"mixtral": MixtralConfig, "qwen3_moe": Qwen3MoeConfig, "olmoe": OlmoeConfig, "gpt_oss": GptOssConfig}


def mixture(tokenizer, kind="mixtral", seed=0, **options):
    """A random mixture of four experts, two per token, of about 40,000 parameters."""
    torch.manual_seed(seed)
    config = CONFIGS[kind](
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256, num_experts=4,
        num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2,
        sliding_window=64 if kind == "gpt_oss" else None,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5, output_router_logits=True, router_aux_loss_coef=0.1, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if kind == "gpt_oss" else "sdpa")
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.student.parameters()])


def by_transformers(model, batch: Batch):
    """Their auxiliary loss on the same sequences, padded, without the last tokens, from which nothing is predicted."""
    rows = [batch.prompts[r.prompt].student_ids + r.completion_ids[:-1] for r in batch.rollouts]
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    outputs = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
    return load_balancing_loss_func(outputs.router_logits, 4, 2, mask)


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_is_transformers_loss_of_the_whole_step(make_trainer, tokenizer, kind):
    """Over 4 prompts of 2 + 2 completions in four micro-batches: coef * aux of the 16 padded rows, and its gradient."""
    trainer = make_trainer(model=mixture(tokenizer, kind), train_batch_tokens=1)
    student = trainer.engine.student
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:4], 0)
    parts = trainer.engine.parts(batch, 1)
    assert len(parts) == 4 and enable_scoring(student).packed
    expected = 0.1 * by_transformers(student, batch)
    (expected_slope,) = torch.autograd.grad(expected, [gate(student)])
    trainer._count_routing(batch)
    assert trainer._metrics.values["loss/router_aux"] == [pytest.approx(expected.item(), rel=1e-4)]
    shares = []
    for part in parts:
        with trainer.balance.collecting():
            trainer.method.loss(student, part)
        shares.append(trainer.balance.share)
    assert sum(shares).item() == pytest.approx(expected.item(), rel=1e-4)
    (slope,) = torch.autograd.grad(sum(shares), [gate(student)])
    torch.testing.assert_close(slope, expected_slope, rtol=1e-3, atol=1e-6)
    assert slope.abs().max() > 1e-4


def gate(model):
    return next(p for name, p in model.named_parameters() if "gate.weight" in name or "router.weight" in name)


def test_micro_batches_do_not_matter(make_trainer, tokenizer):
    """Also where a part has no pair (then its forward pass is of no use) and where the step has none at all."""
    found = []
    for size, accumulation, tokens in ((4, 1, 16384), (1, 4, 16384), (4, 1, 1)):
        trainer = make_trainer(
            model=mixture(tokenizer), per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            train_batch_tokens=tokens, max_steps=3, pair_policy="improving", optim="sgd", learning_rate=0.1,
        )  # fmt: skip
        trainer.train()
        found.append((weights(trainer), [entry for entry in trainer.state.log_history if "loss" in entry]))
    kept = [entry["pairs/kept"] for entry in found[0][1]]
    assert any(0 < number < 16 for number in kept) and 0 in kept
    for other_weights, logs in found[1:]:
        torch.testing.assert_close(other_weights, found[0][0], atol=2e-6, rtol=0)
        for one, other in zip(found[0][1], logs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
            assert one.get("loss/router_aux") == pytest.approx(other.get("loss/router_aux"), abs=1e-6)


def test_it_changes_training_and_the_saved_model_says_so(make_trainer, tokenizer, tmp_path):
    found = []
    for coef in (0.1, 0.0):
        model = mixture(tokenizer)
        model.router_aux_loss_coef = coef
        trainer = make_trainer(model=model, optim="sgd", learning_rate=0.1)
        trainer.train()
        found.append(weights(trainer))
        trainer.save_model(str(tmp_path / "saved"))
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.output_router_logits
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_a_step_without_pairs_changes_nothing(make_trainer, tokenizer):
    def rewards(completions, **_):
        return [0.0] * len(completions)

    trainer = make_trainer(model=mixture(tokenizer), rewards=rewards, pair_policy="improving")
    before = weights(trainer).clone()
    trainer.train()
    assert torch.equal(weights(trainer), before)


def test_another_auxiliary_loss_is_refused_by_name(make_trainer, tokenizer):
    model = mixture(tokenizer)
    forward = type(model).forward

    class Other(type(model)):
        def forward(self, *args, **kwargs):
            outputs = forward(self, *args, **kwargs)
            outputs.aux_loss = outputs.aux_loss * 3
            return outputs

    model.__class__ = Other
    with pytest.raises(ValueError, match="output_router_logits asks for the auxiliary loss of the router of Other"):
        make_trainer(model=model)


def test_dense_models_and_models_that_do_not_ask_have_none(tokenizer):
    assert router_balance(tiny_model(tokenizer)) is None
    silent = mixture(tokenizer)
    silent.config.output_router_logits = False
    assert router_balance(silent) is None


def test_router_jitter_is_not_in_the_scores(make_trainer, tokenizer):
    """Mixtral multiplies the router's input by noise in training mode: scores would be of another policy's samples."""
    noisy = {}
    for disable in (True, False):
        model = mixture(tokenizer, router_jitter_noise=0.3)
        model.config.output_router_logits = False
        trainer = make_trainer(model=model, rows=ROWS, disable_dropout=disable)
        trainer.train()
        noisy[disable] = max(e["health/sampler_gap"] for e in trainer.state.log_history if "loss" in e)
    assert noisy[True] < 1e-5 < 1e-3 < noisy[False]


SCRIPT = """
import sys; sys.path[:0] = [{tests!r}, {tests!r} + "/unit"]
import json, os, torch
torch.set_num_threads(1)
from conftest import ROWS, build_tokenizer, lower_case_share
from test_router import mixture
from pbsd import PBSDConfig, PBSDTrainer
from pbsd.run import leave_process_group

processes, tokenizer = int(os.environ.get("WORLD_SIZE", 1)), build_tokenizer()
config = PBSDConfig(
    output_dir={out!r}, max_steps=2, per_device_train_batch_size=4 // processes, max_completion_length=6,
    num_generations=2, num_teacher_generations=2, preset="pairs", optim="sgd", learning_rate=0.1, use_cpu=True,
    save_strategy="no", disable_tqdm=True,
)
trainer = PBSDTrainer(mixture(tokenizer), config, ROWS, None, lower_case_share, tokenizer)
trainer.train()
if trainer.is_world_process_zero():
    weights = torch.cat([p.detach().flatten() for p in trainer.engine.student.parameters()]).tolist()
    logs = [entry["loss/router_aux"] for entry in trainer.state.log_history if "loss" in entry]
    json.dump([weights, logs], open({out!r} + ".json", "w"))
leave_process_group()
"""


def test_two_processes_equal_one(tmp_path, request):
    found = []
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        script, out = tmp_path / f"{name}.py", tmp_path / name
        script.write_text(SCRIPT.format(tests=str(request.config.rootpath / "tests"), out=str(out)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(
            [sys.executable, *launcher, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == 0, done.stdout.decode()[-5000:]
        found.append(json.loads(out.with_suffix(".json").read_text()))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-6)
