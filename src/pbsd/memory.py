"""How much memory a training run takes on each device, from the model's shape alone.

    static    weights + gradients + optimizer + teacher + communication
    scoring   activations of one forward and backward pass + logits
    sampling  key-value cache + next-token logits
    peak      static + max(scoring, sampling)

Static terms count bytes: of all parameters; of the trainable ones for their gradients; twice that for AdamW's moments;
once more for a teacher that keeps a copy, and 4 bytes more for each of its numbers where it is an average or a blend of
weights in half precision (`pbsd.teacher`), or an external teacher as large as the student; and as much as the gradients
for the buffers in which data-parallel processes exchange them.

A pass is over t tokens: a micro-batch's prompts, each packed with all its completions, up to `train_batch_tokens` (but
one whole prompt at least). With hidden width h, query width q, key and value width k, MLP width i and a bytes per
number, a Qwen3 layer keeps for the backward pass, per token,

    h (8 + 4 a) + 4 a i + q (4 + 5 a) + k (4 + a)                   bytes

(inputs of the projections and of the normalisations, these in float32, rotated queries, and keys and values repeated to
the queries' width; where attention runs in blocks, on a CPU, the last two terms are (q + k) (4 + 3 a)). With adapters
of rank r on n projections it keeps nothing for frozen normalisations, - a (2 h + q + k), but what the adapters are
given, + 4 n r, and in half precision their inputs in float32, + 4 (6 h + q + i) - a (2 h + q + i). With checkpointing
each layer keeps a h, and one layer at a time the rest. Gradients of one layer's values are counted as large as the
values. A dense mask, as on a GPU, takes (1 + a) bytes for each pair of tokens of a row. With `bf16: true` float32
weights are held a second time in half precision while a pass lasts.

The key-value cache holds 2 l k numbers for each token of l layers: every row's completion, every prompt once.

Not in it: the CUDA context (about 1 GiB), fragmentation, and sharding (FSDP, ZeRO): each device holds all of the
above. Full-vocabulary divergences (OPSD, `direct_coef`) need some hundred MiB more for logits than are counted here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, Qwen3Config

from pbsd.adapters import adapter_config
from pbsd.config import RolloutConfig
from pbsd.config.base import as_dict
from pbsd.loading import model_folder
from pbsd.logprobs import CHUNK_LOGITS


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=intermediate,
        tie_word_embeddings=tied,
        max_position_embeddings=40_960,
    )


KNOWN_SHAPES = {
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12_288, tied=False),
}
"""Of the models our recipes name, from their published configurations: no hub is asked for them."""


_SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on each device."""

    weights: int
    gradients: int
    optimizer: int
    teacher: int
    communication: int
    activations: int
    logits: int
    kv_cache: int
    sampling_logits: int

    @property
    def static(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.teacher + self.communication

    @property
    def peak(self) -> int:
        return self.static + max(self.activations + self.logits, self.kv_cache + self.sampling_logits)

    def __str__(self) -> str:
        parts = ", ".join(f"{part.name.replace('_', ' ')} {gib(getattr(self, part.name))}" for part in fields(self))
        return f"{gib(self.peak)} GiB at the peak ({parts})"


def gib(amount: int) -> str:
    return f"{amount / 2**30:.1f}"


def model_config(name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a known model, or that of a folder or the hub, of an adapter its base's. Raises ValueError
    when it cannot be had."""
    if name in KNOWN_SHAPES:
        return KNOWN_SHAPES[name]
    if (adapter := adapter_config(model_folder(name))) is not None:
        return model_config(adapter.base_model_name_or_path, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(model_folder(name), trust_remote_code=trust_remote_code)
    except Exception as error:  # such as code of its own, which is not trusted, or a damaged file
        raise ValueError(f"model {name!r}: its configuration could not be had: {error}") from error


def empty_model(config: PreTrainedConfig, args: RolloutConfig, peft_config: Any = None) -> Any:
    """The model, with its adapter, without memory behind its parameters (torch's meta device)."""
    options = as_dict(args.model_init_kwargs)
    dtype = options.get("dtype", options.get("torch_dtype", "float32"))
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, str(dtype)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{type(config).__name__} makes no causal language model without its weights: {error}"
            ) from error
        if peft_config is None:
            return model
        from peft import get_peft_model

        return get_peft_model(model, replace(copy.deepcopy(peft_config), inference_mode=False))


def estimate(
    model: Any, args: RolloutConfig, *, rank: int = 0, dense_mask: bool = True, data_parallel: bool = True
) -> MemoryEstimate:
    """The memory that a run of `args` takes with `model`, which may be on the meta device.

    Args:
        rank: of the model's LoRA adapters, 0 without.
        dense_mask: whether packed rows are scored under a dense mask (on a CPU they are not).
        data_parallel: whether there are several processes.

    Raises ValueError where a prompt budget is null, as then no length is known, for an optimizer other than AdamW, or a
    model whose layers have another form.
    """
    if args.max_prompt_length is None:
        raise ValueError("max_prompt_length is null, so no length is known: set the prompt budgets")
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer not in ("adamw_torch", "adamw_torch_fused"):
        raise ValueError(f"only the moments of torch's AdamW are known here, not those of optim={optimizer}")
    config = model.config.get_text_config()
    if unknown := [name for name in _SHAPE if not isinstance(getattr(config, name, None), int)]:
        raise ValueError(
            f"{type(config).__name__} lacks {', '.join(unknown)}: only models with Qwen3's layers are known here"
        )
    parameters = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trainable = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    number = 2 if args.bf16 else next(p.element_size() for p in parameters if not rank or not p.requires_grad)
    copies = args.teacher_kind in ("ema", "refreshed") or (args.teacher_kind == "initial" and not rank)
    frozen_head = not model.get_output_embeddings().weight.requires_grad
    return MemoryEstimate(
        weights=weights,
        gradients=trainable,
        optimizer=2 * trainable,
        teacher=weights if args.teacher_kind == "external" else trainable * copies + _averages(args, parameters),
        communication=trainable * data_parallel,
        activations=_activations(model, args, number, rank, dense_mask) + _half_copies(parameters, number),
        logits=4 * 4 * CHUNK_LOGITS + (0 if frozen_head else 4 * config.vocab_size * config.hidden_size),
        kv_cache=_kv_cache(config, args, number),
        sampling_logits=3 * 4 * args.generation_batch_size * config.vocab_size,
    )


def _averages(args: RolloutConfig, parameters: Sequence[torch.Tensor]) -> int:
    """The float32 values behind a teacher in half precision that moves in small steps."""
    blends = args.teacher_kind == "refreshed" and getattr(args, "teacher_refresh_blend", 1.0) < 1
    if args.teacher_kind != "ema" and not blends:
        return 0
    return sum(4 * p.numel() for p in parameters if p.requires_grad and p.element_size() < 4)


def _half_copies(parameters: Sequence[torch.Tensor], number: int) -> int:
    """What autocast keeps of weights that are wider than the numbers it computes with."""
    return sum(p.numel() * number for p in parameters if p.element_size() > number and p.dim() > 1 and p.requires_grad)


def packed_tokens(args: RolloutConfig) -> tuple[int, int]:
    """Tokens of a prompt packed with its completions, and of one forward and backward pass, at most."""
    assert args.max_prompt_length is not None
    completions = args.num_generations + getattr(args, "num_teacher_generations", 0)
    row = args.max_prompt_length + completions * (args.max_completion_length - 1)
    return row, min(args.per_device_train_batch_size * row, max(args.train_batch_tokens, row))


def _activations(model: Any, args: RolloutConfig, number: int, rank: int, dense_mask: bool) -> int:
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    layer = hidden * (8 + 4 * number) + 4 * number * mlp
    if dense_mask:
        layer += queries * (4 + 5 * number) + keys * (4 + number)
    else:
        layer += (queries + keys) * (4 + 3 * number)
    if rank:
        adapters = sum(p.requires_grad for p in model.parameters()) // 2 // config.num_hidden_layers
        layer += 4 * adapters * rank - number * (2 * hidden + queries + keys)
        if number < 4:  # adapters are float32, and so are their inputs
            layer += 4 * (6 * hidden + queries + mlp) - number * (2 * hidden + queries + mlp)
    row, tokens = packed_tokens(args)
    checkpointing = getattr(args, "activation_checkpointing", False) or args.gradient_checkpointing
    kept = hidden * number if checkpointing else layer
    mask = (1 + number) * row * row * (tokens // row) if dense_mask else 0
    return tokens * (config.num_hidden_layers * kept + layer) + mask


def _kv_cache(config: Any, args: RolloutConfig, number: int) -> int:
    assert args.max_prompt_length is not None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = args.generation_batch_size
    prompt = args.max_prompt_length
    if args.teacher_kind is not None:
        prompt = max(prompt, args.max_teacher_prompt_length or prompt)
    tokens = rows * args.max_completion_length + -(-rows // args.num_generations) * prompt
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head * number * tokens
