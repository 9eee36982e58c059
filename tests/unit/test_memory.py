"""The estimate of memory against what a tiny Qwen3 holds on a CPU, and the recipes that it is for."""

import shlex
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pbsd.config import PBSDConfig
from pbsd.memory import KNOWN_SHAPES, empty_model, estimate, packed_tokens
from pbsd.recipe import RunArguments, load_recipe
from pbsd.rollouts import SampleRequest, SamplingParams, TransformersSampler, decode
from pbsd.scoring import ScoringGroup, enable_scoring, score
from pbsd.teacher import Teacher
from pbsd.weightless import QWEN3_LIKE_TEMPLATE, doctor, stand_in_tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("recipes/qwen3_*.yaml"))
LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "square": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 192},
    "wide": {"hidden_size": 96, "num_attention_heads": 8, "intermediate_size": 320},
}
PROMPT, COMPLETION, SAMPLES = 64, 65, 4


def shape(name, layers=6):
    return Qwen3Config(vocab_size=128, num_key_value_heads=2, head_dim=32, num_hidden_layers=layers, **SHAPES[name])


def options(tmp_path, **more):
    return PBSDConfig(
        output_dir=str(tmp_path), use_cpu=True, max_prompt_length=PROMPT, max_teacher_prompt_length=PROMPT,
        max_completion_length=COMPLETION, per_device_train_batch_size=1, num_generations=SAMPLES // 2,
        num_teacher_generations=SAMPLES // 2, generation_batch_size=8, optim="adamw_torch", **more,
    )  # fmt: skip


def peft(rank):
    arguments = {"model_name_or_path": "m", "dataset_name": "d", "reward_funcs": ["math"]}
    return RunArguments(**arguments, use_peft=rank > 0, lora_r=rank, lora_target_modules=LORA).peft_config()


def build(config, dtype, rank):
    model = Qwen3ForCausalLM(config).to(dtype)
    if rank:
        from peft import get_peft_model

        model = get_peft_model(model, peft(rank))
    return model.train()


def saved_bytes(model):
    """Bytes that one scoring pass keeps for its backward pass, parameters aside; each storage once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = tensor  # kept, so that no later storage gets its address
        return tensor

    group = ScoringGroup(tuple(range(PROMPT)), (tuple(range(COMPLETION)),) * SAMPLES)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        score(model, [group], pad_id=0)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_within_a_quarter_of_what_is_kept(name, dtype, rank, checkpointing, tmp_path):
    """The estimate counts one layer more than is kept (the gradients of the layer that is at work), so on six layers it
    must lie a little above: between 0.95 and 1.25 of the measured bytes plus that layer."""
    args = options(tmp_path, model_init_kwargs={"dtype": dtype}, activation_checkpointing=checkpointing)
    model = build(shape(name), getattr(torch, dtype), rank)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    enable_scoring(model)
    found = estimate(model, args, rank=rank, dense_mask=False, data_parallel=False)
    bare = estimate(build(shape(name, 1), getattr(torch, dtype), rank), options(tmp_path), rank=rank, dense_mask=False)
    one_layer = bare.activations // 2
    kept = saved_bytes(model) + one_layer
    assert 0.75 < found.activations / kept < 1.25


@pytest.mark.parametrize("rank", [0, 8])
def test_static_memory_is_exact(rank, tmp_path):
    """Counted tensor by tensor after a step of AdamW: its two moments, but not its step counters."""
    model = build(shape("square"), torch.float32, rank)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    found = estimate(model, options(tmp_path), rank=rank, data_parallel=False)
    assert found.weights == sum(p.numel() * 4 for p in model.parameters())
    assert found.gradients == sum(p.grad.numel() * 4 for p in parameters)
    moments = (value for state in optimizer.state.values() for value in state.values() if value.dim())
    assert found.optimizer == sum(value.numel() * 4 for value in moments)
    assert found.teacher == (0 if rank else found.weights)  # with an adapter it is the adapter switched off
    assert found.communication == 0
    empty = empty_model(shape("square"), options(tmp_path), peft(rank))
    assert estimate(empty, options(tmp_path), rank=rank, data_parallel=False) == found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "teacher",
    [{"teacher": "ema"}, {"teacher": "refreshed"}, {"teacher": "refreshed", "teacher_refresh_blend": 0.5}],
    ids=["ema", "refreshed", "blend"],
)
def test_what_a_teacher_holds_is_exact(dtype, teacher, tmp_path):
    """Counted tensor by tensor: averages and blends of half-precision weights have float32 values behind them."""
    args = options(tmp_path, model_init_kwargs={"dtype": dtype}, **teacher)
    held = Teacher(
        args.teacher_kind, model := build(shape("square"), getattr(torch, dtype), 0),
        refresh_blend=args.teacher_refresh_blend,
    )  # fmt: skip
    tensors = [*held.weights.values(), *held.precise.values()]
    assert estimate(model, args).teacher == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_the_key_value_cache_is_exact(tmp_path, monkeypatch):
    """8 rows of 4 prompts, decoded to the limit: the stop token is beyond the vocabulary."""
    caches = []

    class Kept(decode.SharedPromptCache):
        def __init__(self, *args):
            super().__init__(*args)
            caches.append(self)

    monkeypatch.setattr(decode, "SharedPromptCache", Kept)
    model = build(shape("square"), torch.float32, 0).eval()
    sampler = TransformersSampler(eos_token_ids=[10**6], pad_token_id=0, max_batch_size=8)
    requests = [SampleRequest(tuple(range(first, first + PROMPT)), 2, (first,)) for first in range(4)]
    sampler.sample(model, requests, SamplingParams(max_completion_length=COMPLETION))
    cache = caches[-1]  # the first is of the look at a few tokens
    buffers = [*cache._keys_BKTD, *cache._values_BKTD]
    for group in cache.groups:
        buffers += [*group.states.keys_PKLD, *group.states.values_PKLD]
    found = estimate(model, options(tmp_path), data_parallel=False)
    assert found.kv_cache == sum(buffer.numel() * 4 for buffer in buffers)


def test_a_pass_is_one_prompt_at_least_and_the_budget_at_most(tmp_path):
    """A row: 64 + 4 * 64 = 320 tokens."""
    assert packed_tokens(options(tmp_path)) == (320, 320)
    args = options(tmp_path, train_batch_tokens=1000)
    args.per_device_train_batch_size = 8
    assert packed_tokens(args) == (320, 1000)
    args.train_batch_tokens = 100
    assert packed_tokens(args) == (320, 320)


@pytest.mark.parametrize(
    ("name", "billions"), [("Qwen/Qwen3-1.7B", 1.72), ("Qwen/Qwen3-4B", 4.02), ("Qwen/Qwen3-8B", 8.19)]
)
def test_known_shapes_have_their_models_sizes(name, billions, tmp_path):
    """Published parameter counts; 1.7B and 4B have tied embeddings, 8B has not."""
    model = empty_model(KNOWN_SHAPES[name], options(tmp_path))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


def test_what_the_estimate_refuses(tmp_path):
    model = empty_model(shape("square"), options(tmp_path))
    args = options(tmp_path)
    args.max_prompt_length = None
    with pytest.raises(ValueError, match="max_prompt_length is null"):
        estimate(model, args)
    args = options(tmp_path)
    args.optim = "adafactor"
    with pytest.raises(ValueError, match="optim=adafactor"):
        estimate(model, args)


def test_the_stand_in_renders_as_qwen3_does():
    """By the rules of Qwen3's template: turns between marks, an empty thought only where thinking is off, and no
    thoughts in the history."""
    tokenizer = stand_in_tokenizer()
    chat = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nno\n</think>\n\nb"}, {"role": "user", "content": "c"},
    ]  # fmt: skip
    turns = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    asked = turns + "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    render = tokenizer.apply_chat_template
    assert render(chat, tokenize=False, add_generation_prompt=True) == asked
    assert render(chat, tokenize=False, add_generation_prompt=True, enable_thinking=True) == asked
    off = render(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert off == asked + "<think>\n\n</think>\n\n"
    assert "enable_thinking" in QWEN3_LIKE_TEMPLATE


def flags_for_all_weights(path):
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("#   --use_peft false")]
    return shlex.split(line.removeprefix("#"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_doctor_passes_the_recipes_without_weights(path, capsys):
    assert doctor(path)
    out = capsys.readouterr().out
    for check in ("options", "model", "memory", "data", "templates", "not checked"):
        assert f"ok   {check}:" in out
    assert "<think>\\n\\n</think>" in out and "references grade correct" in out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_flags_for_all_weights_fit_the_devices_they_name(path):
    text = path.read_text()
    room = next((gib for gib in (120, 220) if f"devices of {gib} GiB" in text), 80)
    run, config = load_recipe(path, [*flags_for_all_weights(path), "--use_cpu", "true"])
    assert (run.use_peft, config.bf16, config.model_init_kwargs["dtype"]) == (False, True, "float32")
    assert config.output_dir.endswith("_full")
    peak = estimate(empty_model(KNOWN_SHAPES[run.model_name_or_path], config), config).peak / 2**30
    assert 0.75 * room < peak < 0.97 * room if room > 80 else peak < 60


def test_recipes_are_six_and_say_what_is_not_the_papers():
    assert [path.stem for path in RECIPES] == [
        f"qwen3_{size}_{task}" for size in ("1.7b", "4b", "8b") for task in ("math", "tools")
    ]
    for path in RECIPES:
        text = " ".join(line.strip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
        assert "Every number below is ours or another work's" in " ".join(text.split())
        assert "no vLLM sampler" in text and "FSDP and DeepSpeed not at all" in text


def test_a_broken_recipe_names_the_mend(tmp_path, capsys):
    text = RECIPES[0].read_text().replace("{{ privileged_context }}", "nothing")
    (tmp_path / "r.yaml").write_text(text)
    assert not doctor(tmp_path / "r.yaml")
    assert "does teacher_prompt_template use privileged_context?" in capsys.readouterr().out
    assert not doctor(RECIPES[0], ["--max_completion_length", "40000"])
    out = capsys.readouterr().out
    assert "positions beyond the window" in out
    assert "this is more than the 80 GiB" in out
    assert not doctor(RECIPES[0], ["--reward_funcs", "tool_call", "--dataset_name", "gsm8k"])
