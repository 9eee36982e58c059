"""Every chat template that TRL ships and that renders tool calls: its text is read as those very calls.

The templates write the formats that the models were trained on, so they are the oracle: what goes in as a message's
`tool_calls` must come out of the grader.
"""

import json
import re
from pathlib import Path

import pytest
import trl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pbsd.rewards.text import final_text
from pbsd.rewards.tool_syntax import Untyped, looks_like_call, parse_calls, read_calls
from pbsd.rewards.tools import grade

TEMPLATES = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}

WITHOUT_CALLS = {
    "cohere": "no tools", "cohere_training": "no tools", "cohere2": "no tools", "cohere2_training": "no tools",
    "deepseek_r1_distill": "calls only beside a content of None, which transformers leaves out",
    "deepseek_r1_distill_training": "likewise",
    "gemma": "no tools", "gemma_training": "no tools", "gemma3": "no tools", "gemma3_training": "no tools",
    "idefics3": "no tools", "idefics3_training": "no tools", "lfm2": "tools, but no calls",
    "lfm2_training": "tools, but no calls", "llama3": "no tools", "llama3_training": "no tools",
    "llava_next": "no tools", "llava_next_training": "no tools", "phi3": "no tools", "phi3_training": "no tools",
    "phi3_5": "no tools", "phi3_5_training": "no tools", "qwen2_5_vl": "no tools", "qwen2_5_vl_training": "no tools",
    "smolvlm": "no tools", "smolvlm_training": "no tools",
}  # fmt: skip
"""What does not render a message's calls."""

VALUES = {
    "word": ("string", "Quito"),
    "empty": ("string", ""),
    "padded": ("string", "  two  blanks "),
    "unicode": ("string", "東京 é 🙂"),
    "quotes": ("string", 'say "it"'),
    "apostrophe": ("string", "it's"),
    "backslash": ("string", "C:\\new"),
    "lines": ("string", "one\n  two\n\nthree"),
    "last_line_end": ("string", "one\n"),
    "punctuation": ("string", "a, b) and ] or } then: c=1"),
    "markup": ("string", '<a href="x">1 &amp; 2</a>'),
    "parameter_end": ("string", "1 </parameter> 2\n</arg_value>\n3 </function>"),
    "call_end": ("string", "</tool_call> or ```"),
    "other_marker": ("string", "write [TOOL_CALLS] or <function_calls> or\nAction: go"),
    "json_text": ("string", '{"a": 1}'),
    "digits": ("string", "75001"),
    "zero_digits": ("string", "007"),
    "word_true": ("string", "true"),
    "word_null": ("string", "null"),
    "integer": ("integer", -3),
    "number": ("number", 2.5e-7),
    "true": ("boolean", True),
    "false": ("boolean", False),
    "null": (["string", "null"], None),
    "list": ("array", ["x", "y, z", 1, 2.5]),
    "empty_list": ("array", []),
    "object": ("object", {"a": {"b": [1, {"c": "d, }"}], "e": "f: g"}}),
    "empty_object": ("object", {}),
    "literals": ("object", {"a": None, "b": [True, False, None]}),
    "union": (["integer", "string"], "12"),
}

UNESCAPED = {"apostrophe", "backslash"}
LOSES = {
    "lfm2_2_5": ("strings are not escaped in their quotes", UNESCAPED),
    "lfm2_2_5_v2": ("strings are not escaped in their quotes", UNESCAPED),
}
"""Template: why, and the values that its text does not hold."""

TOOL = {
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {key: {"type": kind} for key, (kind, _) in VALUES.items()}},
}
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")),
    unk_token="<unk>", bos_token="<s>", eos_token="</s>",
)  # fmt: skip


def rendered(name, *calls):
    """The assistant's turn as the template writes it, or None where it cannot: what a model is to generate."""
    template = TEMPLATES[name].read_text("utf-8")
    user = [{"role": "user", "content": "How is the weather?"}]
    for as_text in (False, True):
        made = [
            {
                "type": "function",
                "id": f"call0000{i}",
                "function": {**call, "arguments": json.dumps(call["arguments"]) if as_text else call["arguments"]},
            }
            for i, call in enumerate(calls)
        ]
        for message in ({"content": "", "tool_calls": made}, {"content": None, "tool_calls": made}):
            try:
                full = render(template, [*user, {"role": "assistant", **message}])
                prompts = [render(template, user, add_generation_prompt=prompted) for prompted in (True, False)]
            except Exception:
                continue
            text = next((full[len(prompt) :] for prompt in prompts if full.startswith(prompt)), "")
            if "get_weather" in text:
                return text
    return None


def render(template, messages, **options):
    tools = [{"type": "function", "function": TOOL}]
    return TOKENIZER.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False, **options)


def weather(**arguments):
    return {"name": "get_weather", "arguments": arguments}


FAMILIES = (
    "deepseekv3", "gemma4", "glm4moe", "gptoss", "lfm2_v2", "llama3_1", "muse_glimmer", "nemotron_3_nano", "qwen2_5",
    "qwen3_6",
)  # fmt: skip
"""One template for each way to write values."""

CALLING = [name for name in TEMPLATES if name not in WITHOUT_CALLS]


def test_the_templates_that_render_no_call_are_the_listed_ones():
    assert len(TEMPLATES) >= 72
    assert {name for name in TEMPLATES if rendered(name, weather(word="Quito")) is None} == set(WITHOUT_CALLS)


@pytest.mark.parametrize("name", CALLING)
def test_a_rendered_call_is_read_as_itself(name):
    failed = set()
    for key, (_, value) in VALUES.items():
        call = weather(**{key: value})
        text = rendered(name, call)
        if grade(text, json.dumps([call]), [TOOL]).outcome != "correct":
            failed.add(key)
        assert grade(text, []).outcome == "wrong" or key in LOSES.get(name, ("", set()))[1], key
    assert failed == LOSES.get(name, ("", set()))[1]


@pytest.mark.parametrize("name", CALLING)
def test_all_arguments_at_once_and_other_values_are_told_apart(name):
    lost = LOSES.get(name, ("", set()))[1]
    arguments = {key: value for key, (_, value) in VALUES.items() if key not in lost}
    text = rendered(name, weather(**arguments))
    assert grade(text, json.dumps([weather(**arguments)]), [TOOL]).outcome == "correct"
    for key, value in arguments.items():
        other = {"x": 1} if value == {} else [value] if not isinstance(value, str) else value + "x"
        assert grade(text, json.dumps([weather(**{**arguments, key: other})]), [TOOL]).outcome == "wrong", key


KINDS = {
    "string": st.text(
        st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), include_characters="\n\t"), max_size=30
    ),
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
}
INNER = st.recursive(
    st.one_of(st.none(), *KINDS.values()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b_c", "d"]), inner, max_size=3),
    max_leaves=6,
)
KINDS["array"] = st.lists(INNER, max_size=3)
KINDS["object"] = st.dictionaries(st.sampled_from(["a", "b_c", "d"]), INNER, max_size=3)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)
@given(data=st.data())
def test_any_arguments_are_read_as_themselves(name, data):
    by_kind = {kind: key for key, (kind, _) in VALUES.items() if isinstance(kind, str)}
    arguments = {key: data.draw(KINDS[kind]) for kind, key in by_kind.items()}
    text = rendered(name, weather(**arguments))
    result = grade(text, json.dumps([weather(**arguments)]), [TOOL])
    assert result.outcome == "correct", (result.reason, text)


@pytest.mark.parametrize("name", CALLING)
def test_two_calls_are_two(name):
    calls = [weather(word="Quito", integer=1), weather(word="Rome", integer=2)]
    text = rendered(name, *calls)
    if text is None or "Rome" not in text:
        assert name in {"llama3_1", "llama3_2", "gptoss", "gptoss_training"}, "the template writes one call a turn"
        return
    assert grade(text, json.dumps(calls), [TOOL]).outcome == "correct"
    assert grade(text, json.dumps(calls[:1]), [TOOL]).outcome == "wrong"
    assert grade(text, json.dumps([calls[0], calls[0]]), [TOOL]).outcome == "wrong"


@pytest.mark.parametrize("name", CALLING)
def test_a_call_is_read_where_special_tokens_were_left_out(name):
    """`skip_special_tokens` takes tokens such as <|tool_call_start|> away; a plain value must survive that."""
    text = re.sub(
        r"<\|[^<>|\s]*\|>|<｜[^<>｜]*｜>|</s>|<\|(?:\"\||tool_call)>|<(?:tool_call|turn)\|>",
        "",
        rendered(name, weather(word="Quito", integer=3)),
    )
    assert grade(text, json.dumps([weather(word="Quito", integer=3)]), [TOOL]).outcome == "correct", text
    assert grade(text, []).outcome == "wrong"


@pytest.mark.parametrize("name", CALLING)
def test_a_call_that_is_cut_off_is_never_silence(name):
    """At every length at which the function's name and an argument's name can be seen."""
    text = final_text(rendered(name, weather(word="Quito", integer=3)))
    begins = text.index("word") + len("word") + 4
    for end in range(begins, len(text)):
        assert looks_like_call(text[:end]), text[:end]


def test_untyped_values_without_a_schema_are_what_the_expected_value_is():
    text = rendered("qwen3_5_nothink", weather(digits="75001", integer=3, true=True, word="Quito"))
    assert isinstance(read_calls(text, "auto")[0].arguments["digits"], Untyped)
    assert parse_calls(text, "auto")[0].arguments == {"digits": 75001, "integer": 3, "true": True, "word": "Quito"}
    for digits in ("75001", 75001):
        expected = [weather(digits=digits, integer=3, true=True, word="Quito")]
        assert grade(text, expected).outcome == "correct"
    assert grade(text, [weather(digits=75001, integer=3, true=True, word="Quito")], [TOOL]).outcome == "correct"
    assert grade(text, [weather(digits="75002", integer=3, true=True, word="Quito")]).outcome == "wrong"
