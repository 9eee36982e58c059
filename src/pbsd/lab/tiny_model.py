"""The lab's character-level tokenizer and tiny Llama, and how often it solves worked arithmetic in either role."""

from typing import Literal

import tokenizers
import torch
from jinja2 import Template
from tokenizers import Regex, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pbsd.lab import arithmetic

Role = Literal["student", "teacher"]
_TEMPLATES: dict[Role, Template] = {
    "student": Template(arithmetic.STUDENT_TEMPLATE),
    "teacher": Template(arithmetic.TEACHER_TEMPLATE),
}

MAX_NEW_TOKENS = 40
"""Longer than any solution (32 characters and the eos token)."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character or newline, and none added: encoding loses nothing of such a text."""
    special = ["<pad>", "<eos>", "<unk>"]
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {token: index for index, token in enumerate([*special, *characters])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.17M parameters with tied embeddings, freshly initialised from `seed`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        # The defaults are for wide models and long texts; with them copying is learnt late and at a random time.
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
    )
    return model


def role_prompt(row: dict[str, str], role: Role) -> str:
    """The text a role sees before its completion."""
    return _TEMPLATES[role].render(**row)


def success_rate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[dict[str, str]],
    role: Role,
    *,
    seed: int = 0,
    greedy: bool = False,
) -> float:
    """Share of problems solved with one completion each, sampled at temperature 1 from `seed`, or greedy."""
    solved = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(problems), 500):
            chunk = problems[start : start + 500]
            prompts = tokenizer([role_prompt(row, role) for row in chunk], padding=True, return_tensors="pt")
            # The stubs of transformers do not see that a Llama is a generative model.
            output = model.generate(  # type: ignore[misc]
                input_ids=prompts["input_ids"],
                attention_mask=prompts["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=not greedy,
            )
            texts = tokenizer.batch_decode(output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
            solved += sum(arithmetic.reward(texts, [row["answer"] for row in chunk]))
    return solved / len(problems)
