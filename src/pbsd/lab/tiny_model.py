"""The lab's character-level tokenizer and tiny Llamas, and how often one solves a task's problems in either role."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import tokenizers
import torch
from jinja2 import Template
from tokenizers import Regex, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pbsd.lab.bases import SCALES
from pbsd.lab.worlds import Task

Role = Literal["student", "teacher"]
_SAMPLING_BATCH = 128


def build_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character or newline and per word, and none added: encoding loses nothing.

    At each place the longest of `words` is taken; one that begins with a blank only where no letter follows, so that a
    text in quotes and the same text after a blank have the same tokens.
    """
    special = ["<pad>", "<eos>", "<unk>"]
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {token: index for index, token in enumerate([*special, *characters, *words])}
    assert len(vocabulary) == len(special) + len(characters) + len(words), "a word is given twice"
    longest_first = sorted(words, key=len, reverse=True)
    choices = [re.escape(word) + ("(?![a-z])" if word.startswith(" ") else "") for word in longest_first]
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*choices, r"[\s\S]"])), behavior="isolated")
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


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int, scale: str = "0.2m") -> LlamaForCausalLM:
    """A Llama of a scale of `bases.SCALES` with tied embeddings, freshly initialised from `seed`."""
    shape = SCALES[scale]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=256,
        # The defaults are for wide models and long texts; with them copying is learnt late and at a random time.
        initializer_range=0.4 / shape.hidden**0.5,
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


def role_prompt(task: Task, row: dict[str, str], role: Role) -> str:
    """The text a role sees before its completion."""
    return row["prompt"] if role == "student" else _template(task.TEACHER_TEMPLATE).render(**row)


@cache
def _template(source: str) -> Template:
    return Template(source)


def sample_completions(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    seed: int = 0,
    greedy: bool = False,
) -> list[str]:
    """One completion for each prompt, at temperature 1 from `seed` or greedy. Leaves torch's global generator alone."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(order), _SAMPLING_BATCH):
            places = order[start : start + _SAMPLING_BATCH]
            inputs = tokenizer([prompts[place] for place in places], padding=True, return_tensors="pt")
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=not greedy,
            )
            completions = output[:, inputs["input_ids"].shape[1] :]
            for place, text in zip(places, tokenizer.batch_decode(completions, skip_special_tokens=True), strict=True):
                texts[place] = text
    return texts


def role_completions(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    rows: list[dict[str, str]],
    role: Role,
    *,
    seed: int = 0,
    greedy: bool = False,
) -> tuple[list[str], list[float]]:
    """One completion of a role for each row, and its reward."""
    prompts = [role_prompt(task, row, role) for row in rows]
    texts = sample_completions(
        model, tokenizer, prompts, max_new_tokens=task.MAX_COMPLETION_TOKENS, seed=seed, greedy=greedy
    )
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return texts, task.reward(texts, **columns)


def success_rate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    rows: list[dict[str, str]],
    role: Role,
    *,
    seed: int = 0,
    greedy: bool = False,
) -> float:
    """Share of the rows solved by one completion each, sampled at temperature 1 from `seed`, or greedy."""
    _, rewards = role_completions(model, tokenizer, task, rows, role, seed=seed, greedy=greedy)
    return sum(rewards) / len(rows)
