"""Tiny decoders of many families with random weights, and the completions that the scoring tests score under them."""

import torch
import transformers

from pbsd.scoring import ScoringGroup

PAD, VOCABULARY, WINDOW = 0, 99, 4
GROUPS = [
    ScoringGroup((5, 6, 7, 8), ((9, 10, 1), (11, 1), (1,))),
    ScoringGroup((12,), ((13, 14, 15, 16, 1),)),
    ScoringGroup((20, 21, 22, 23, 24, 25, 26), ((1,), (30, 31, 32, 33, 34), (35, 36))),
]
ROWS = [(group.prompt_ids, completion) for group in GROUPS for completion in group.completion_ids]

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
        "bos_token_id": None, "eos_token_id": 1}  # fmt: skip
DECODERS = {
    "llama": ("Llama", {}),
    "llama-eager": ("Llama", {"attn_implementation": "eager"}),
    "llama-untied-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen2-half-windowed": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "mistral-windowed": ("Mistral", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": WINDOW, "final_logit_softcapping": 3.0}),
    "gemma3": (
        "Gemma3",
        {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "cohere-scaled-logits": ("Cohere", {"logit_scale": 0.25}),
    "granite-scaled-logits": ("Granite", {"logits_scaling": 3.0}),
    "qwen3-moe": ("Qwen3Moe", {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {}),
}  # fmt: skip


def build(name):
    family, options = DECODERS[name]
    options = dict(options)
    attention = options.pop("attn_implementation", None)
    text = "Text" if family == "Gemma3" else ""
    config_class = getattr(transformers, f"{family}{text}Config")
    config = config_class(**({} if family == "GPT2" else SIZES), **(GPT2 if family == "GPT2" else {}), **options)
    torch.manual_seed(0)
    head = "LMHead" if family == "GPT2" else "For"
    model_class = getattr(transformers, f"{family}{head}{'Model' if family == 'GPT2' else 'CausalLM'}")
    model = model_class._from_config(config, attn_implementation=attention) if attention else model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(
                3.0
            )  # of random small weights attention is nearly uniform, and its mask nearly without effect
    return model.eval()
