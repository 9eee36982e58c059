"""What is found out about a model before training: random forward passes, ids and positions that do not exist, rows
that no token has, heads with adapters, weights that cannot move."""

import json
import logging

import pytest
import torch
import transformers as hf
from conftest import HELD_OUT, ROWS, contains_answer, lower_case_share, tiny_model
from peft import LoraConfig, PromptTuningConfig
from torch import nn

from pbsd import OPSDConfig, PBSDConfig, PBSDTrainer, SelfDistillationTrainer
from pbsd.cli import main
from pbsd.model_checks import random_module
from pbsd.rollouts import SampleRequest, SamplingParams, TransformersSampler
from pbsd.scoring import ScoringGroup, score, score_frozen

SIZES = {"vocab_size": 99, "initializer_range": 0.3}
SMALL = {**SIZES, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MOE = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "num_local_experts": 4}
GPT2 = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4}
FAMILIES = {
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, layerdrop=0.3)
    ),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(**SIZES, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.2, attention_dropout=0.2)
    ),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**SMALL, hidden_dropout=0.2, attention_dropout=0.2)),
    "xglm": lambda: hf.XGLMForCausalLM(
        hf.XGLMConfig(vocab_size=99, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, init_std=0.3)
    ),
    "bigcode": lambda: hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**GPT2)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**MOE, router_jitter_noise=0.2)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, intermediate_size=64, attention_dropout=0.3)),
}
GROUP = ScoringGroup(tuple(range(5, 15)), ((20, 21, 22, 23), (30, 31)))


def build(family, tokenizer):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    model.generation_config = hf.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def scores(model):
    with torch.no_grad():
        return score(model, [GROUP], pad_id=0).logprobs_BT


# Random forward passes


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_sampled_policy(family, tokenizer, make_trainer):
    """Without the check they differ in training mode; with it training's scores are evaluation's, to the bit."""
    bare = build(family, tokenizer)
    plain = scores(bare.eval())
    assert any((scores(bare.train()) - plain).abs().max() > 1e-3 for _ in range(5))
    assert random_module(bare)
    trainer = make_trainer(model=build(family, tokenizer), max_completion_length=4)
    student = trainer.engine.student.train()
    for _ in range(5):
        assert torch.allclose(scores(student), plain, atol=1e-5)
    samples = trainer.engine.sampler.sample(
        student, [SampleRequest(GROUP.prompt_ids, 2, (0,))], SamplingParams(max_completion_length=5)
    )[0]
    again = score(student, [ScoringGroup(GROUP.prompt_ids, tuple(s.ids for s in samples))], pad_id=0)
    for ours, sample in zip(again.token_lists(), samples, strict=True):
        assert ours == pytest.approx(sample.logprobs, abs=1e-4)


def test_what_is_switched_off_is_said(tokenizer, make_trainer, caplog):
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        make_trainer(
            model=build("opt", tokenizer), peft_config=LoraConfig(target_modules=["q_proj"], lora_dropout=0.05)
        )
    assert "OPTDecoder.layerdrop 0.3" in caplog.text and "OPTDecoderLayer.dropout 0.1" in caplog.text
    assert "dropout 0.05" in caplog.text


def test_noise_that_sampling_reads_too_is_refused(tokenizer, make_trainer):
    """PhiMoE's routing compares with its router's noise in every mode: without it, it would be another model."""
    torch.manual_seed(0)
    config = hf.PhimoeConfig(**MOE, router_jitter_noise=0.2, input_jitter_noise=0.2, eos_token_id=1, pad_token_id=0)
    model = hf.PhimoeForCausalLM(config)
    before = scores(model.eval())
    with pytest.raises(ValueError, match="gives other values in training mode"):
        make_trainer(model=model)
    assert torch.equal(scores(model.eval()), before)


class Noisy(nn.Module):
    """Adds noise in training that no option of the model tells of."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        hidden = self.inner(hidden)
        return hidden + 0.1 * torch.randn_like(hidden) if self.training else hidden


class Scaled(Noisy):
    """Not random, but another forward in training than in sampling."""

    def forward(self, hidden):
        return self.inner(hidden) * (1.1 if self.training else 1.0)


@pytest.mark.parametrize("kind", [Noisy, Scaled])
def test_what_is_left_is_refused_by_name(model, make_trainer, kind, caplog):
    model.model.layers[1].mlp = kind(model.model.layers[1].mlp)
    with pytest.raises(ValueError, match=rf"model\.layers\.1\.mlp \({kind.__name__}\) gives other values in training"):
        make_trainer(model=model)
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        make_trainer(model=model, disable_dropout=False)
    assert "disable_dropout=False: model.layers.1.mlp" in caplog.text


def test_measuring_draws_no_random_number_of_training(model, make_trainer):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    random_module(model)
    assert torch.equal(torch.get_rng_state(), before)


# Ids


def test_tokens_beyond_the_embedding(tokenizer, model, make_trainer):
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"1 tokens lie beyond the model's 99 .*'<new>' \(99\).*resize_token_emb.*100"):
        make_trainer(model=model)


def test_a_pad_token_beyond_the_embedding(tokenizer, model, make_trainer):
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    with pytest.raises(ValueError, match="'<padding>' .99.: set tokenizer.pad_token = tokenizer.eos_token"):
        make_trainer(model=model)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="1 tokens lie beyond"):  # the token is still there, and could stand in a row
        make_trainer(model=model)


def test_stop_tokens_beyond_the_embedding(tokenizer, model, make_trainer):
    model.generation_config.eos_token_id = 500
    make_trainer(model=model)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no completion would end: .* cannot sample .500."):
        make_trainer(model=model)


def with_padding(tokenizer, bias):
    """A model with 20 rows that no token has; their logits are about `bias`."""
    model = tiny_model(tokenizer)
    model.resize_token_embeddings(len(tokenizer) + 20, mean_resizing=False)
    head = nn.Linear(32, len(tokenizer) + 20)
    head.weight.data.copy_(model.lm_head.weight.data)
    head.bias.data.zero_()[len(tokenizer) :] = bias
    model.lm_head = head
    return model


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 60}, {"generation_kwargs": {"min_length": 1}}])
def test_rows_without_a_token_are_not_sampled(tokenizer, options):
    """They hold nearly all probability here, and the log-probabilities are still the model's own over all rows."""
    model, barred = with_padding(tokenizer, 8.0).eval(), range(len(tokenizer), len(tokenizer) + 20)
    requests = [SampleRequest((5, 6, 7), 8, (1,))]
    for ids in (barred, ()):
        sampler = TransformersSampler(eos_token_ids=[1], pad_token_id=0, max_batch_size=8, barred_ids=ids)
        samples = sampler.sample(model, requests, SamplingParams(max_completion_length=12, **options))[0]
        assert any(token in barred for sample in samples for token in sample.ids) == (not ids)
        if ids and not options.get("generation_kwargs"):
            found = score_frozen(
                model, [ScoringGroup((5, 6, 7), tuple(s.ids for s in samples))], pad_id=0, max_tokens=10**6
            )
            for sample, expected in zip(samples, found, strict=True):
                assert sample.logprobs == pytest.approx(expected, abs=1e-4)


def test_rows_without_a_token_that_hold_much_are_refused(tokenizer, make_trainer, caplog):
    """20 of 119 equal logits are 17%; with -8 each, 20 e^-8 of 99 are 0.007%, and with -6, 0.05%, which is said."""
    with pytest.raises(ValueError, match=r"20 rows .* e.g. 99, and hold 1\d% .*resize_token_embeddings.99."):
        make_trainer(model=with_padding(tokenizer, 0.0))
    for bias, said in ((-8.0, False), (-6.0, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="pbsd"):
            trainer = make_trainer(model=with_padding(tokenizer, bias))
        assert ("they are not sampled" in caplog.text) == said
        assert trainer.engine.sampler.barred.tolist() == list(range(99, 119))


# Positions


def gpt2(tokenizer, window):
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, n_positions=window, **ends))


LONG = [*ROWS[:7], {"prompt": "say a" + "a" * 20 + ":", "privileged_context": "aaa", "answer": "a"}]


@pytest.mark.parametrize("build", [gpt2, lambda tokenizer, window: llama(tokenizer, window)], ids=["table", "rotary"])
def test_rows_over_the_models_positions(build, tokenizer, make_trainer):
    """The last row's teacher prompt has 5 + 21 + 1 + ... tokens, over 24 with a completion of 6."""
    with pytest.raises(
        ValueError, match=r"row 7: the student's prompt of \d+ tokens and a completion of up to 6 .* 24 pos"
    ):
        make_trainer(model=build(tokenizer, 24), rows=LONG)
    trainer = make_trainer(model=build(tokenizer, 24), rows=LONG, overlong="drop", max_steps=1)
    assert (len(trainer.train_dataset), trainer.train_dataset.dropped) == (7, 1)
    trainer.train()
    with pytest.raises(ValueError, match="max_completion_length is 6 and the model has 6 positions"):
        make_trainer(model=build(tokenizer, 6), rows=LONG)
    with pytest.raises(ValueError, match="none of 8 rows fits"):
        make_trainer(model=build(tokenizer, 24), rows=LONG, overlong="drop", max_completion_length=20)
    with pytest.raises(ValueError, match="row 0: the student's prompt"):
        make_trainer(model=build(tokenizer, 24), eval_rows=LONG[-1:])
    with pytest.raises(ValueError, match="row 0: the student's prompt"):
        make_trainer(model=build(tokenizer, 24)).evaluate(LONG[-1:])


def llama(tokenizer, window):
    model = tiny_model(tokenizer)
    model.config.max_position_embeddings = window
    return model


def test_a_completion_that_the_student_finishes_counts(tokenizer, make_trainer):
    """The first row's prompts have 6 and 11 tokens. The default objective lets the student finish half of a teacher's
    completion: 6 + 3 + 6 = 15, beside 11 + 6 = 17."""
    options = {"preset": "mixed", "loss_type": "logistic", "max_completion_length": 12, "max_steps": 1}
    with pytest.raises(ValueError, match=r"prompt of 6 tokens and a completion of up to 18 .*begun by the teacher"):
        make_trainer(model=gpt2(tokenizer, 23), **options)
    make_trainer(model=gpt2(tokenizer, 24), **options).train()


def test_models_without_an_end_of_positions(tokenizer, make_trainer):
    make_trainer(model=build("bloom", tokenizer), rows=LONG, max_steps=1).train()


def test_evaluation_beyond_a_table_of_positions(tokenizer, tmp_path, capsys):
    gpt2(tokenizer, 64).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "1+1", "answer": "#### 2"}) + "\n")
    flags = ["--benchmark", "gsm8k", "--local", str(tmp_path / "test.jsonl"), "--n", "1", "--out", str(tmp_path / "o")]
    assert main(["evaluate", str(tmp_path / "m"), *flags, "--max_completion_length", "60"]) == 2
    assert "the model has 64 positions: lower --max_completion_length to" in capsys.readouterr().err


# Adapters on the head and the embeddings


@pytest.mark.parametrize("objective", ["pbsd", "opsd"])
@pytest.mark.parametrize(
    ("where", "tied"),
    [
        ({"target_modules": ["lm_head", "q_proj"]}, False),
        ({"target_modules": ["embed_tokens", "q_proj"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["embed_tokens"]}, True),
    ],
    ids=["head", "embedding", "saved head", "tied"],
)
@pytest.mark.parametrize("teacher", ["initial", "ema"])
def test_adapters_on_the_head_and_the_embeddings(objective, where, tied, teacher, tokenizer, tmp_path):
    """The default objectives, which compare whole distributions. At first teacher and student are one, so with equal
    prompts their divergence is 0; later the initial teacher's head is still the first one."""
    model = tiny_model(tokenizer)
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    options = {
        "output_dir": str(tmp_path / "run"), "max_steps": 3, "use_cpu": True, "disable_tqdm": True,
        "learning_rate": 1e-2, "max_completion_length": 6, "num_generations": 3, "save_strategy": "no",
        "teacher": teacher, "report_to": "none", "logging_steps": 1, "context": "none",
    }  # fmt: skip
    args = PBSDConfig(**options) if objective == "pbsd" else OPSDConfig(**options)
    trainer = SelfDistillationTrainer(
        model, args, ROWS, HELD_OUT, lower_case_share, tokenizer, peft_config=LoraConfig(r=4, **where)
    )
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = trainer.model.eval()(input_ids=ids).logits
    trainer.train()
    kls = [entry["teacher/token_kl"] for entry in trainer.state.log_history if "teacher/token_kl" in entry]
    if kls:
        assert kls[0] == pytest.approx(0, abs=1e-6) and kls[-1] > 1e-6
    with torch.no_grad(), trainer.engine.teacher.acting() as module:
        assert torch.allclose(module(input_ids=ids).logits, before, atol=1e-5) == (teacher == "initial")


@pytest.mark.parametrize(
    ("config", "words"), [(PBSDConfig, "direct_coef=0"), (OPSDConfig, "distillation_mode='sampled")]
)
def test_models_whose_distributions_cannot_be_kept(config, words, tokenizer, tmp_path):
    """Virtual tokens before the prompt: refused before anything is sampled."""
    args = config(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_completion_length=6)
    prompt_tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match=f"virtual tokens.*{words}"):
        SelfDistillationTrainer(
            tiny_model(tokenizer), args, ROWS, None, contains_answer, tokenizer, peft_config=prompt_tuning
        )


# Steps that are rounded away


def test_weights_that_cannot_move_are_told(tokenizer, make_trainer, caplog):
    """A bfloat16 weight of 0.02 lies between 2^-6 and 2^-5; half the distance to the next is 2^-14 = 6.1e-5. In float32
    it is 2^-30 = 9.3e-10."""

    def said(dtype, rate, peft_config=None):
        caplog.clear()
        model = tiny_model(tokenizer).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.02)
        with caplog.at_level(logging.WARNING, logger="pbsd"):
            make_trainer(model=model, learning_rate=rate, peft_config=peft_config)
        return "100% of the trained weights are too large for bfloat16" in caplog.text

    assert said(torch.bfloat16, 1e-6) and said(torch.bfloat16, 6e-5)
    assert not said(torch.bfloat16, 7e-5)
    assert not said(torch.float32, 1e-6)
    assert not said(torch.bfloat16, 1e-6, LoraConfig(target_modules=["q_proj"]))  # whose weights are float32


def test_the_told_share_is_what_adamw_does_not_move(tokenizer, make_trainer, caplog):
    """One step of AdamW at learning rate 1e-4 against the number in the log, over weights of every size."""
    model = tiny_model(tokenizer).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.001, 0.2)
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        make_trainer(model=model, learning_rate=1e-4)
    told = float(next(m for m in caplog.messages if "too large" in m).partition("%")[0])
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0).step()
    unmoved = sum(int((p == b).sum()) for p, b in zip(parameters, before, strict=True))
    assert told == pytest.approx(100 * unmoved / sum(p.numel() for p in parameters), abs=3)


def test_it_still_trains_by_the_public_name(tokenizer, config):
    trainer = PBSDTrainer(tiny_model(tokenizer), config(max_steps=1), ROWS, HELD_OUT, contains_answer, tokenizer)
    trainer.train()
