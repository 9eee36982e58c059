"""The chat templates that TRL ships, as real ones: nothing of a chat vanishes, or it is refused by name."""

import re
from pathlib import Path

import pytest
import trl

from pbsd.api import stop_and_pad_ids
from pbsd.chat import ChatError, ChatTemplate
from pbsd.lab.base_model import build_tokenizer
from pbsd.render import Renderer

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.name for path in FOLDER.glob("*.jinja"))
SPECIAL = re.compile(
    r"<[|｜][^<>\s|｜]+[|｜]>|<(?:start|end)_of_turn>|<end_of_utterance>|<\|(?:turn|channel|tool_call|tool_response)>"
    r"|<(?:turn|channel|tool_call|tool_response)\|>|\[/?[A-Z_]+\]"
)

USER = {"role": "user", "content": "weather in Rome?"}
SYSTEM = {"role": "system", "content": "be brief"}
ANSWER = {"role": "assistant", "content": "It is"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def tokenizer_of(name):
    """A tokenizer of characters that has the template's special tokens."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (FOLDER / name).read_text("utf-8")
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(SPECIAL.findall(tokenizer.chat_template)))})
    return tokenizer


def family(name):
    return name.removesuffix(".jinja").removesuffix("_training")


NO_SYSTEM = {"gemma"}
NO_TOOLS = {
    "cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "idefics3", "llama3", "llava_next",
    "phi3", "phi3_5", "qwen2_5_vl", "smolvlm",
}  # fmt: skip
"""As these templates are written: they have no word about `tools`, and `gemma` raises at a system message."""


def test_there_are_templates():
    assert len(NAMES) > 60 and {family(name) for name in NAMES} >= NO_TOOLS | NO_SYSTEM


@pytest.mark.parametrize("name", NAMES)
def test_both_roles_see_all_of_a_chat(name):
    tokenizer = tokenizer_of(name)
    renderer = Renderer(tokenizer, "{{ prompt }} hint: {{ privileged_context }}")
    chat = [USER, ANSWER, USER] if family(name) in NO_SYSTEM else [SYSTEM, USER, ANSWER, USER]
    prompt = renderer({"prompt": chat, "privileged_context": "sunny"}, 0)
    student, teacher = (tokenizer.decode(list(ids)) for ids in (prompt.student_ids, prompt.teacher_ids))
    for message in chat:
        assert message["content"] in student and message["content"] in teacher
    assert "hint: sunny" in teacher and "sunny" not in student


@pytest.mark.parametrize("name", NAMES)
def test_tools_are_written_or_refused(name):
    chat = ChatTemplate(tokenizer_of(name))
    assert chat.renders_tools == (family(name) not in NO_TOOLS)
    if chat.renders_tools:
        text = chat.render([USER], tools=[TOOL])
        assert all(word in text for word in ("get_weather", "Weather of a city", "city"))
    else:
        with pytest.raises(ChatError, match="tools_template"):
            chat.render([USER], tools=[TOOL])


@pytest.mark.parametrize("name", NAMES)
def test_an_assistants_turn_is_continued(name):
    text = ChatTemplate(tokenizer_of(name)).render([USER, ANSWER])
    assert text.endswith("It is") and "weather in Rome?" in text


ENDS = {
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>", "diffusion_gemma": "<turn|>", "gemma4": "<turn|>", "gemma": "<end_of_turn>",
    "glm4moe": "<|user|>", "gptoss": "<|return|>", "idefics3": "<end_of_utterance>", "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>", "llava_next": "</s>", "muse_glimmer": "<|eot|>", "nemotron": "<|im_end|>",
    "phi3": "<|end|>", "qwen": "<|im_end|>", "smolvlm": "<end_of_utterance>",
}  # fmt: skip
"""The end of a turn by the beginning of the template's name, as the models' own generation configs have it."""
ENDS_OF_CALLS = {
    "diffusion_gemma": "<|tool_response>", "gemma4": "<|tool_response>", "gemma4_v2": "<turn|>",
    "glm4moe": "<|observation|>", "gptoss": "<|call|>",
}  # fmt: skip
"""Where a turn with tool calls ends otherwise. `<tool_call|>` of Gemma 4 ends one call of several, not the turn."""


def longest(table, name):
    """The entry whose name the template's begins with, the longest of several."""
    return next((table[key] for key in sorted(table, key=len, reverse=True) if name.startswith(key)), None)


@pytest.mark.parametrize("name", NAMES)
def test_where_a_turn_ends(name):
    tokenizer = tokenizer_of(name)
    chat = ChatTemplate(tokenizer)
    end, end_of_calls = longest(ENDS, name), longest(ENDS_OF_CALLS, name)
    assert tokenizer.decode(list(chat.turn_end())) == end
    wanted = {SPECIAL.findall(end)[-1] if SPECIAL.search(end) else end, *filter(None, [end_of_calls])}
    assert {tokenizer.decode([id]) for id in chat.stop_ids()} == wanted


def test_a_token_that_was_added_as_no_special_one_ends_a_turn_too():
    """And does not end one of calls: `</tool_call>` is added so in Qwen's tokenizers."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (FOLDER / "qwen3.jinja").read_text("utf-8")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"])
    chat = ChatTemplate(tokenizer)
    assert tokenizer.decode(list(chat.turn_end())) == "<|im_end|>"
    assert [tokenizer.decode([id]) for id in chat.stop_ids()] == ["<|im_end|>"]


class Model:
    """What `stop_and_pad_ids` asks of a model."""

    generation_config = None

    def __init__(self, embeddings):
        self.weight = range(embeddings)

    def get_input_embeddings(self):
        return self


def test_completions_of_a_base_model_end_where_the_template_ends_a_turn():
    """A base model's generation config knows its `<|endoftext|>` alone."""
    tokenizer = tokenizer_of("qwen3.jinja")
    stops, _ = stop_and_pad_ids(Model(len(tokenizer)), ChatTemplate(tokenizer))
    assert {tokenizer.decode([id]) for id in stops} == {"</s>", "<|im_end|>"}


def test_stop_tokens_beyond_the_embeddings_are_left_out_or_refused(caplog):
    tokenizer = tokenizer_of("qwen3.jinja")
    end = tokenizer.convert_tokens_to_ids("</s>")
    stops, _ = stop_and_pad_ids(Model(end + 1), ChatTemplate(tokenizer))
    assert stops == [end] and "beyond the model's" in caplog.text
    with pytest.raises(ValueError, match="no completion would end: .* cannot sample"):
        stop_and_pad_ids(Model(end), ChatTemplate(tokenizer))
