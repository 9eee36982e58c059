"""Every format's call is read, by its marker and by its name; what is begun and cannot be read is never silence."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbsd.benchmarks import answers
from pbsd.rewards.text import final_text
from pbsd.rewards.tool_syntax import NAMED, SYNTAXES, NoCall, looks_like_call, parse_calls
from pbsd.rewards.tools import grade

EXPECTED = [{"name": "get_weather", "arguments": {"city": "Quito", "days": 3}}]
GIVEN = '{"city": "Quito", "days": 3}'
OBJECT = f'{{"name": "get_weather", "arguments": {GIVEN}}}'
PARAMETERS = f'{{"name": "get_weather", "parameters": {GIVEN}}}'
PYTHON = 'get_weather(city="Quito", days=3)'
XML = "<function=get_weather>\n<parameter=city>\nQuito\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>"
KEYED = "<arg_key>city</arg_key>\n<arg_value>Quito</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
NAMED_XML = '<parameter name="city">Quito</parameter>\n<parameter name="days">3</parameter>'
INVOKE = f'<invoke name="get_weather">\n{NAMED_XML}\n</invoke>'
DSML = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Quito</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'
)

WRITTEN = {
    "json": [
        OBJECT,
        f"[{OBJECT}]",
        PARAMETERS + "<|eot_id|>",
        f'{{"type": "function", "name": "get_weather", "parameters": {GIVEN}}}',
        f'{{"type": "function", "function": "get_weather", "parameters": {GIVEN}}}',
        json.dumps({"tool_calls": [{"id": "1", "function": {"name": "get_weather", "arguments": GIVEN}}]}),
        f'[{{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {GIVEN}}}]',
        f"Sure.\n```json\n{OBJECT}\n```\nDone.",
        f"```\n{OBJECT}\n```",
        f"```json{OBJECT}```",
        f"```json\n{OBJECT}",
    ],
    "python": [PYTHON, f"[{PYTHON}]<|eom_id|>", f"So:\n```python\n{PYTHON}\n```\nDone.", f"```\n[{PYTHON}]\n```"],
    "hermes": [f"<tool_call>\n{OBJECT}\n</tool_call><|im_end|>", f"Yes.<tool_call>[{OBJECT}]</tool_call>",
               f"<tool_call>[{OBJECT}]", f"I look.\n<tool_call>\n[{OBJECT}]\n<|end_of_text|>"],
    "action": [f"Thought: look.\nAction: get_weather\nAction Input: {GIVEN}\nObservation: rain"],
    "qwen_xml": [
        f"<tool_call>\n{XML}\n</tool_call><|im_end|>",
        XML,
        f"<seed:tool_call>\n{XML}\n</seed:tool_call>",
        f"<function=get_weather>{GIVEN}</function><|eom_id|>",
        "<function=get_weather><parameter=city>Quito</parameter><parameter=days>3</parameter></function>",
    ],
    "glm": [
        f"<tool_call>get_weather\n{KEYED}</tool_call>",
        f"\n<tool_call>get_weather{KEYED}</tool_call><|observation|>",
        f"<tool_calls><tool_call>get_weather<tool_sep>{KEYED}</tool_call></tool_calls>",
    ],
    "invoke": [
        INVOKE,
        f"<function_calls>\n{INVOKE}\n</function_calls>",
        f"<function_calls>\n{INVOKE}",  # a server that stops at the section's end leaves it out
        f"<minimax:tool_call>\n{INVOKE}\n</minimax:tool_call>",
        f"<function_calls><invoke name=\"get_weather\">\n{GIVEN}\n</invoke></function_calls>",
        f"<function_calls>{INVOKE.replace('<', '<').replace('</', '</')}</function_calls>",
        DSML,
    ],
    "mistral": [
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {GIVEN}, "id": "abcDEF123"}}]</s>',
        f"[TOOL_CALLS]get_weather{GIVEN}",
        f"[TOOL_CALLS]get_weather[CALL_ID]abcDEF123[ARGS]{GIVEN}",
        f"[TOOL_CALLS]get_weather[ARGS]{GIVEN}</s>",
        f"I look.[TOOL_CALLS]{OBJECT}",
    ],
    "llama": [f"<|python_tag|>{PARAMETERS}<|eom_id|>", f"<|python_tag|>{PYTHON.replace('(', '.call(')}"],
    "llama_pythonic": [f"<|python_start|>[{PYTHON}]<|python_end|><|eom|>"],
    "deepseek": [
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{GIVEN}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{GIVEN}<｜tool▁call▁end｜>",
        f"functionget_weather\n```json\n{GIVEN}\n```",
        '<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">\n'
        '<steptml:parameter name="city">Quito</steptml:parameter>\n<steptml:parameter name="days">3</steptml:parameter>'
        "\n</steptml:invoke><｜tool_call_end｜>\n<｜tool_calls_end｜>",
    ],
    "kimi": [
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{GIVEN}<|tool_call_end|><|tool_calls_section_end|><|im_end|>",
    ],
    "kimi_xtml": [
        '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"'
        '<|sep|>Quito<|close|>argument<|sep|><|open|>argument key="days" type="integer"<|sep|>3<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
    ],
    "harmony": [
        f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{GIVEN}<|call|>",
        f"<|channel|>commentary to=functions.get_weather<|message|>{GIVEN}",
        f" to=functions.get_weather<|channel|>commentary json<|message|>{GIVEN}<|call|>",
        f"<|channel|>analysis<|message|>I could send {OBJECT}.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_weather <|constrain|>json<|message|>{GIVEN}<|call|>",
        f"analysisI look.assistantcommentary to=functions.get_weather json{GIVEN}",
        f"to=functions.get_weathercommentary json{GIVEN}",
    ],
    "granite": [f"<|tool_call|>[{OBJECT}]<|end_of_text|>", f"<|tool_call|>[{OBJECT}]<|/tool_call|><|end|>"],
    "phi": [f"functools[{OBJECT}]"],
    "command_r": [
        f'Action: ```json\n[\n  {{"tool_name": "get_weather", "parameters": {GIVEN}}}\n]```',
        f'Thought: look.\nAction:\n```\n{{"action": "get_weather", "action_input": {GIVEN}}}\n```',
    ],
    "command_a": [
        f'<|START_ACTION|>[\n  {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {GIVEN}}}\n]'
        "<|END_ACTION|><|END_OF_TURN_TOKEN|>",
    ],
    "gemma": [
        "<start_function_call>call:get_weather{city:<escape>Quito<escape>,days:3}<end_function_call>",
        '<|tool_call>call:get_weather{city:<|"|>Quito<|"|>,days:3}<tool_call|><turn|>\n',
        "call:get_weather{city:Quito,days:3}",
    ],
    "tool_code": [
        f"```tool_code\nprint(default_api.{PYTHON})\n```<end_of_turn>",
        f"I look.\n```tool_code\n{PYTHON}\n```",
        f"```tool_code\nweather = {PYTHON}\nprint(weather)\n```",
        f"tool_code\nprint({PYTHON})",
    ],
    "nemotron": [f"<TOOLCALL>[{OBJECT}]</TOOLCALL>"],
    "tool_calls": [f"<tool_calls>\n{OBJECT}\n</tool_calls>", f"<tool_calls>[{OBJECT}]</tool_calls>"],
    "internlm": [f"I look.<|action_start|><|plugin|>\n{PARAMETERS}<|action_end|>"],
    "olmo": [f"<function_calls>\n{PYTHON}\n</function_calls>"],
    "lfm": [f"<|tool_call_start|>[{PYTHON}]<|tool_call_end|>Looking it up."],
    "functionary": [f">>>get_weather\n{GIVEN}", f">>>all\nI look.\n>>>get_weather\n{GIVEN}"],
    "apertus": [f'<|tools_prefix|>[{{"get_weather": {GIVEN}}}]<|tools_suffix|>'],
    "function_call": [
        f"<|function_call|>{OBJECT}", f"function call<|role_sep|>\n{OBJECT}", f"<function_call> {OBJECT}"
    ],
    "qwen_agent": [f"✿FUNCTION✿: get_weather\n✿ARGS✿: {GIVEN}\n✿RESULT✿: rain"],
    "longcat": [f"<longcat_tool_call>{OBJECT}</longcat_tool_call>"],
}  # fmt: skip

IN_TEXT = [
    f"I will check: [{PYTHON}]",
    f"Here:\n[{PYTHON}]\nDone.",
    f"I will check: {OBJECT}",
    f"First {OBJECT}.",
    f"<code>{PYTHON}</code>",
    # Without the special tokens:
    f" get_weather{GIVEN}",
    f"functions.get_weather:0{GIVEN}",
    f"get_weather\n{GIVEN}",
    # A call in its own form, quoted in a fence:
    f"```xml\n<tool_call>{OBJECT}</tool_call>\n```",
]

KNOWN_READ = [
    # JSON of the large APIs, and of others with keys of their own:
    f'{{"type": "tool_use", "id": "t1", "name": "get_weather", "input": {GIVEN}}}',
    f'[{{"type": "tool_use", "name": "get_weather", "input": {GIVEN}}}]',
    f'{{"functionCall": {{"name": "get_weather", "args": {GIVEN}}}}}',
    json.dumps({"function_call": {"name": "get_weather", "arguments": GIVEN}}),
    f'{{"tool_uses": [{{"recipient_name": "functions.get_weather", "parameters": {GIVEN}}}]}}',
    f'{{"toolUse": {{"toolUseId": "t1", "name": "get_weather", "input": {GIVEN}}}}}',
    f'{{"name": "get_weather", "input": {GIVEN}}}',
    f'{{"name": "get_weather", "params": {GIVEN}}}',
    f'{{"tool": "get_weather", "input": {GIVEN}}}',
    f'{{"function_name": "get_weather", "arguments": {GIVEN}}}',
    f'{{"payload": {GIVEN}, "operation": "get_weather"}}',
    f'{{"tool_call": {{"get_weather": {GIVEN}}}}}',
    f'I look: {{"tool": "get_weather", "input": {GIVEN}}}. Wait.',
    f'I look:\n```json\n{{"functionCall": {{"name": "get_weather", "args": {GIVEN}}}}}\n```\nWait.',
    f'I look: {{"get_weather": {GIVEN}}}',
    # Other text:
    f"get_weather: {GIVEN}",
    f"I look.\n**get_weather**\n{GIVEN}",
    f"Function: get_weather\nArguments: {GIVEN}",
    f"ACTION: get_weather\nACTION INPUT: {GIVEN}",
    f"**Tool:** `get_weather`\n**Parameters:**\n```json\n{GIVEN}\n```",
    f"<execute>{PYTHON}</execute>",
    f"<tool>get_weather</tool><tool_input>{GIVEN}</tool_input>",
    f"<get_weather>{GIVEN}</get_weather>",
    f"analysisI look.assistantcommentary to=get_weather{GIVEN}",
    f"@{PYTHON}",
    f"<<function>>{PYTHON}",
    f"Call: {PYTHON}<bot_end>",
    f">>>all\nI look.>>>get_weather\n{GIVEN}",
    f"get_weather -> {GIVEN}",
    f"|get_weather|{GIVEN}",
    f"${PYTHON}",
    f"CALL {PYTHON}",
]
"""Calls in no known format of a function that is known."""

KNOWN_TRIED = [
    '{"tool": "get_weather"',
    '{"tool": "get_weather", "city": "Quito"}',
    '{"tool": "get_weather", "input": "Quito"}',
    '{"tool": "get_weather", "input": {"city": "Quito"',
    'I look: {"input": {"city": "Quito"}, "tool": "get_weather"',
    "{'tool': 'get_weather', 'input': {'city': 'Quito'}}",
    '{"get_weather": {"city": "Quito"',
    '{"steps": [{"tool": "get_weather", "with": {"city": "Quito"}}]}',
    '{"role": "assistant", "content": [{"type": "tool_use", "name": "get_weather", "input": {}}]}',
    "<get_weather><city>Quito</city></get_weather>",
    '<get_weather city="Quito"/>',
    'get_weather{city: "Quito"}',
    "get_weather{",
    "get_weather\n{city: Quito}",
    "I look.\nget_weather: {'city': 'Quito'}",
    "Function: get_weather\nArguments: city=Quito",
    "Tool call: get_weather",
    "<tool>get_weather</tool><tool_input>Quito</tool_input>",
    "<invoke_it><name>get_weather</name><city>Quito</city></invoke_it>",
    '<step tool="get_weather">Quito</step>',
    "assistantcommentary to=get_weather",
    "[FUNC_CALL] get_weather",
    "[Tool: call] get_weather",
    '@get_weather("Quito")',
    "<execute>get_weather(Quito)</execute>",
    "Call: get_weather(city='Quito'",
    "get_weather<city>Quito",
    "<|run|>get_weather",
    "name: get_weather\narguments:\n  city: Quito",
]
"""Tries of a call of a known function that cannot be read for sure."""

KNOWN_MENTIONED = [
    "I could use get_weather for this.",
    "`get_weather` needs a city.",
    "get_weather(city) returns the weather.",
    "You could call get_weather(city='Paris'), but there is no need.",
    "I have one tool: get_weather. It is of no use here.",
    "- **get_weather**: the weather of a city",
    "<b>get_weather</b> needs a city, and <code>get_weather</code> gives it.",
    "See [get_weather](https://x.org/get_weather) or [get_weather(city)](https://x.org).",
    "my_get_weather: {1, 2}; get_weather_2: {3}; x.get_weather {4}",
    'The schema of get_weather: {"type": "object", "properties": {"city": {"type": "string"}}}',
    '{"name": "get_weather", "description": "d", "parameters": {"type": "object", "properties": {}}}',
    '{"name": "get_weather", "input_schema": {"type": "object", "properties": {}}}',
    '{"tools": [{"name": "get_weather", "description": "d"}], "note": "none fits"}',
    '{"tools": ["get_weather"], "answer": {"text": "none fits"}}',
    '{"answer": "get_weather does not fit"}',
    "Tool: get_weather\nDescription: the weather of a city",
    "def f(city):\n    return get_weather(city)",
    "Of get_weather:\n{1, 2}",
]
"""Of a known function, without a call."""

NO_CALLS = [
    "None of the tools can do this.",
    "get_weather() needs a city, which you did not give.",
    "You could call get_weather(city='Paris'), but I have no such tool.",
    "Let me see:\nget_weather(city='Paris')",
    "The answer is {1, 2}; see [the docs](https://x) and [f(x)](y).",
    "1. [see f(x)]\n2. a[f(x=1)]",
    '{"name": "Ann", "age": 30}',
    'She is {"name": "Ann", "age": 30}.',
    '```json\n[{"name": "Ann", "age": 30}, {"name": "Bo"}]\n```',
    'A schema: {"type": "object", "properties": {"name": {"type": "string"}}}',
    'Define\n```json\n{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}\n```',
    '{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}',
    '[{"f": {"a": 1}}]',
    'Broken: {"name": "Ann", "age": }',
    '{"example": {"name": "f", "arguments": {}}}',
    'json\n{"answer": 5}',
    'The set is functional\n```json\n{"x": 1}\n```',
    'Output\n{"x": 1}',
    "```python\nimport math\nprint(math.sqrt(2))\n```",
    "Use\n```python\ndef f(a):\n    return g(a=a)\n```\nand then\n```python\nprint('hi')\n```",
    "```sql\nSELECT COUNT(*) FROM t\n```\n```bash\nls -la\n```\n```js\nfunction f(a) { return a }\n```",
    "Write `List<ToolCall>` and <b>bold</b>; \\frac{1}{2}; x <tool_response> y",
    "<|channel|>final<|message|>It is warm.<|return|>",
    "<|channel|>analysis<|message|>I could send " + OBJECT + ".<|end|><|start|>assistant<|channel|>final<|message|>No.",
    ">>>all\nNothing to do.",
    ">>> f(a=1)\n2",
    'Action: ```json\n[{"tool_name": "directly_answer", "parameters": {}}]\n```',
]

BROKEN = {
    "hermes": [
        '<tool_call>{"name": "f", "arguments": {}}', "<tool_call>{'name': 'f'}</tool_call>",
        '<tool_call>[{"name": "f", "arguments": {}}] So',
    ],
    "qwen_xml": ["<function=f><parameter=a>1</function>", "<tool_call><function=f></function>", "<function=>"],
    "glm": ["<tool_call>f<arg_key>a</arg_key></tool_call>", "<tool_call>f(a=1)</tool_call>", "<tool_call>f"],
    "invoke": ['<invoke name="f"><parameter name="a">1</invoke>', "<minimax:tool_call>f()", "<invoke>f</invoke>"],
    "mistral": ["[TOOL_CALLS]", '[TOOL_CALLS]f{"a": 1', "[TOOL_CALLS]f(a=1)", '[TOOL_CALLS][{"name": "f"'],
    "llama": ['<|python_tag|>{"name": "f", "parameters": {', "<|python_tag|>import os"],
    "llama_pythonic": ["<|python_start|>[f(a=1", "<|python_start|>[f(1)]<|python_end|>"],
    "deepseek": ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{", "functionf\n```json\n{"],
    "kimi": ["<|tool_call_begin|>functions.f:0", "<|tool_calls_section_begin|>"],
    "kimi_xtml": ['<|open|>tools<|sep|><|open|>call tool="f"<|sep|>'],
    "harmony": [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{",
        "<|channel|>commentary to=functions.f<|message|>So I",
        "to=functions",
    ],
    "granite": ['<|tool_call|>[{"name": "f"'],
    "phi": ["functools[f(a=1)]"],
    "command_r": ['Action: ```json\n[{"tool_name": "f"'],
    "command_a": ['<|START_ACTION|>[{"tool_name": "f", "parameters": {}}'],
    "gemma": [
        "<start_function_call>f{}", "<start_function_call>call:f{a:x}", "call:f{a:<escape>x", "call:f{a:[1,,2]}",
        "call:f{a:1",
    ],
    "tool_code": ["```tool_code\nprint(f(1))\n```", "```tool_code\nimport f\n```"],
    "nemotron": ["<TOOLCALL>[]", "<TOOLCALL>"],
    "tool_calls": ['<tool_calls>{"name": "f"}', "<tool_calls>f"],
    "internlm": ["<|action_start|><|interpreter|>\nprint(1)<|action_end|>"],
    "olmo": ["<function_calls>f(a=1)", "<function_calls>f(1)</function_calls>"],
    "lfm": ["<|tool_call_start|>[f(a=1", "<|tool_call_start|>[f(x)]<|tool_call_end|>"],
    "functionary": [">>>f", ">>>f\n{", ">>>f\ntext"],
    "apertus": ["<|tools_prefix|>[", '<|tools_prefix|>[{"f": 1}]'],
    "function_call": ["<|function_call|>{", "<function_call>f"],
    "qwen_agent": ["✿FUNCTION✿: f\n", "✿FUNCTION✿: f\n✿ARGS✿: {"],
    "longcat": ["<longcat_tool_call>f</longcat_tool_call>"],
    "action": ["Action: f", "Action: search[Quito]", "Action: f\nAction Input: Quito"],
    "json": [
        'So: {"name": "f", "arguments": {',
        'So: {"name": "f", "par',
        '[{"name": "f", "arguments": {}}',
        "{'name': 'f', 'arguments': {}}",
        '{"name": "f", "arguments": {}, "other": 1}',
    ],
    "python": ["I check: [f(a=1", "I check: [f(a", "I check: [f(a=x)]", "f(a=1", "f(1)"],
}  # fmt: skip


def test_every_format_has_its_texts():
    assert set(WRITTEN) == set(BROKEN) == set(SYNTAXES) - {"auto"} == {form.name for form in NAMED}


@pytest.mark.parametrize(("syntax", "text"), [(name, text) for name, texts in WRITTEN.items() for text in texts])
def test_a_call_is_read_by_its_marker_and_by_its_name(syntax, text):
    assert grade(text, EXPECTED).outcome == "correct"
    assert grade(text, EXPECTED, syntax=syntax).outcome == "correct"
    assert grade(text, [{"name": "get_weather", "arguments": {"city": "Quito", "days": 4}}]).outcome == "wrong"
    assert grade(text, []).outcome == "wrong"
    assert answers.tool_answer(text) == answers.tool_answer(OBJECT)


@pytest.mark.parametrize(("syntax", "text"), [(name, text) for name, texts in WRITTEN.items() for text in texts])
def test_another_syntax_by_name_does_not_read_it(syntax, text):
    """But a fence with a label or `Action:` before it is a fence, and Step 3 writes invokes in DeepSeek's tokens."""
    also = {("command_r", "json"), ("tool_code", "python"), ("deepseek", "invoke")}
    for other in set(SYNTAXES) - {"auto", syntax}:
        assert grade(text, EXPECTED, syntax=other).outcome == "unparsed" or (syntax, other) in also, other


@pytest.mark.parametrize(
    ("syntax", "text"),
    [(name, texts[0]) for name, texts in WRITTEN.items() if name not in ("json", "python", "tool_code")],
)
def test_calls_in_a_row_and_after_prose_are_read(syntax, text):
    """Two turns' worth, as far as the format has a way to write two: the text again, with another value."""
    twice = [*EXPECTED, {"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}]
    both = f"I look it up.\n{text}\n{text.replace('Quito', 'Rome')}"
    assert grade(both, twice).outcome == "correct"
    assert grade(both, EXPECTED).outcome == "wrong"


@pytest.mark.parametrize("text", IN_TEXT)
def test_a_call_in_a_text_is_read(text):
    assert (grade(text, EXPECTED).outcome, grade(text, []).outcome) == ("correct", "wrong")


def test_the_name_of_a_known_function_tells_a_call_from_data():
    tools = [{"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}]
    expected = [{"name": "weather", "arguments": {"city": "Quito"}}]
    for text in ('[{"weather": {"city": "Quito"}}]', '{"weather": {"city": "Quito"}}', 'weather\n{"city": "Quito"}'):
        assert grade(text, expected).outcome == "correct"
        assert grade(text, expected, tools, syntax="json").outcome == ("correct" if text[0] in "[{" else "unparsed")
        assert grade(text, [], tools).outcome == "wrong"
        assert grade(text, []).outcome == "correct"
    for data in ('[{"weather": "warm"}]', '[{"weather": {}}, {"city": {}}]', '{"weather": {}, "city": {}}'):
        assert grade(data, [], tools).outcome == "correct"


def test_an_object_of_several_known_names_is_as_many_calls():
    calls = [{"name": name, "arguments": {"a": 1}} for name in ("f", "g")]
    text = '{"f": {"a": 1}, "g": {"a": 1}}'
    assert (grade(text, calls).outcome, grade(text, calls[:1]).outcome) == ("correct", "unparsed")


def test_several_fences_are_several_calls():
    both = "```json\n{}\n```\nand\n```json\n{}\n```"
    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]
    text = both.replace("{}", json.dumps(calls[0]), 1).replace("{}\n", json.dumps(calls[1]) + "\n", 1)
    assert grade(text, calls).outcome == "correct"
    assert grade(text, calls[:1]).outcome == "wrong"
    python = "```python\nf(a=1)\n```\nand\n```python\ng()\n```"
    assert grade(python, calls).outcome == "correct"
    assert grade(python, calls, syntax="python").outcome == "correct"
    assert grade("```json\n" + "\n".join(map(json.dumps, calls)) + "\n```", calls).outcome == "correct"
    assert grade("\n".join(map(json.dumps, calls)), calls).outcome == "correct"  # without their special tags


def test_a_fence_in_a_string_of_json_is_text():
    call = {"name": "write", "arguments": {"text": "```python\nx = 1\n```", "mark": "[TOOL_CALLS]"}}
    assert grade(f"So:\n```json\n{json.dumps(call)}\n```", [call]).outcome == "correct"
    assert grade(f"So: {json.dumps(call)}", [call]).outcome == "correct"


TOOLS = [
    {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    }
]


@pytest.mark.parametrize("text", KNOWN_READ)
def test_a_call_of_a_known_function_is_read_in_other_forms_too(text):
    assert grade(text, EXPECTED, TOOLS).outcome == "correct"
    assert grade(text.replace("Quito", "Rome"), EXPECTED, TOOLS).outcome == "wrong"
    assert grade(text, [], TOOLS).outcome == "wrong"


@pytest.mark.parametrize("text", KNOWN_TRIED)
def test_a_try_to_call_a_known_function_is_not_the_silence_that_was_asked_for(text):
    assert grade(text, [], TOOLS).outcome == "unparsed"
    assert grade(text, EXPECTED, TOOLS).outcome == "unparsed"


@pytest.mark.parametrize("text", KNOWN_MENTIONED)
def test_a_known_function_may_be_mentioned_and_described(text):
    assert grade(text, [], TOOLS).outcome == "correct"
    assert grade(text, EXPECTED, TOOLS).outcome == "unparsed"


@pytest.mark.parametrize("text", NO_CALLS)
def test_mentions_data_and_programs_are_no_calls(text):
    assert not looks_like_call(text)
    assert (grade(text, []).outcome, answers.tool_answer(text)) == ("correct", answers.NO_CALL)
    assert grade(text, EXPECTED).outcome == "unparsed"


@pytest.mark.parametrize(("syntax", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_a_call_that_is_begun_and_cannot_be_read_is_unparsed_and_its_format_named(syntax, text):
    for expected in (EXPECTED, []):
        result = grade(text, expected)
        assert result.outcome == "unparsed"
        assert f"a call in the format {syntax!r} cannot be read" in result.reason
        assert "expected" in result.reason
        assert (
            syntax in ("python", "tool_code", "llama", "llama_pythonic", "olmo", "lfm") or "Python" not in result.reason
        )
    assert grade(text, [], syntax=syntax).outcome == "unparsed"


@pytest.mark.parametrize(
    "marker",
    [
        "<|toolcall_begin|>",
        "<acme_tool_call>",
        "<function name=",
        "<use_mcp_tool>",
        "[TOOL_USE]",
        "<FUNCTION_CALL>",
        "<tool_use>",
        "</tool_call>",
        "]<]minimax[>[",
    ],
)
def test_the_marker_of_an_unknown_format_is_named_and_the_known_ones_listed(marker):
    for expected in (EXPECTED, []):
        result = grade(f"So {marker} f 1", expected)
        assert result.outcome == "unparsed"
        assert repr(marker) in result.reason
        assert "known are json, python, hermes" in result.reason


def test_without_any_marker_the_known_formats_are_listed():
    result = grade("It is warm.", EXPECTED)
    assert result.outcome == "unparsed"
    assert result.reason == f"no call was found in any known format: {', '.join(SYNTAXES[1:])}"
    assert "expected <|tool_call_start|>" in grade("It is warm.", EXPECTED, syntax="lfm").reason


def test_a_text_that_ends_in_the_analysis_channel_is_unparsed():
    for expected in (EXPECTED, []):
        result = grade("<|channel|>analysis<|message|>So I", expected)
        assert (result.outcome, result.reason) == ("unparsed", "the completion ends inside <think>")


def test_two_formats_in_one_text_are_unparsed():
    result = grade(f"<tool_call>{OBJECT}</tool_call> [TOOL_CALLS]get_weather{GIVEN}", EXPECTED * 2)
    assert (result.outcome, "two formats, hermes and mistral" in result.reason) == ("unparsed", True)


def test_names_with_dots_and_numbers_are_kept():
    call = [{"name": "math.log_2.v1", "arguments": {}}]
    for text in (
        "[TOOL_CALLS]math.log_2.v1{}",
        "<|tool_call_begin|>functions.math.log_2.v1:12<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "<function=math.log_2.v1></function>",
        "<tool_call>math.log_2.v1</tool_call>",
        "<|channel|>commentary to=functions.math.log_2.v1 <|constrain|>json<|message|>{}",
        "<start_function_call>call:math.log_2.v1{}<end_function_call>",
    ):
        assert grade(text, call).outcome == "correct", text


MARKERS = [
    *(text[: len(text) // 2] for texts in WRITTEN.values() for text in texts),
    *(text for texts in BROKEN.values() for text in texts), *"{}[]()<>'\"\\`:,=\n a1", "```", "</tool_call>",
    "<|call|>", "</parameter>", "<escape>", "<|sep|>", "```json\n", '"name": ', "{'a': ", "f(a=", "<|end|>",
    "<｜tool▁sep｜>",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(MARKERS) | st.text(max_size=4), max_size=12).map("".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(TEXTS, st.sampled_from(SYNTAXES))
def test_any_text_gives_calls_or_a_value_error(text, syntax):
    text = final_text(text) or ""  # what the grader reads
    try:
        calls = parse_calls(text, syntax)
    except NoCall:
        assert syntax != "auto" or grade(text, []).outcome == "correct"
    except ValueError:
        assert syntax != "auto" or grade(text, []).outcome == "unparsed"
    else:
        assert all(isinstance(call.name, str) and isinstance(call.arguments, dict) for call in calls)


REPEATED = [
    "<|channel|>analysis<|message|>So I",
    *KNOWN_READ[::4], *KNOWN_TRIED[::4], "get_weather ", "get_weather(", "get_weather\\n", '"a": "get_weather" ',
    '{"a": "get_weather", ', '{"a": "get_weather"} ',
    *(texts[0] for texts in WRITTEN.values()), *(text for texts in BROKEN.values() for text in texts),
    *IN_TEXT, *"{[(<`'\"\\ \n", "[[", '{"name": ', '{"name": {', '[{"name": "f", ', '{"type":[', '{"name": "f" ',
    "\\'", "'\\'", "f(", "[f(a=", "[f(", "[f(a='", "call:f{a:{", "call:f{a:[", "<tool_call> ", "<function=f>",
    "<function=f> <parameter=a>", "</parameter> ", "<parameter=a>1</parameter> ", "<|channel|>analysis",
    "to=functions.f ", "functions ", "function f\n", "Action: ", "Action:  a  ", "Action Input: ", ">>>f\n", "``` ",
    "```\n{", "</s>", "</s> ", "<|tool_call_begin|>f ", "[TOOL_CALLS] ", "<|constrain|> ", "<arg_key>a</arg_key> ",
    '<invoke name="f"> ', "<code>", "\'\'\'", "f{", 'f{"a": ', "a.", "<|open|>call ", '"\\"', "<escape>",
]  # fmt: skip


@pytest.mark.parametrize("piece", REPEATED)
def test_a_text_of_any_piece_again_and_again_is_judged_in_linear_time(piece):
    """Twice the length may take twice the time; quadratic would be 64 times as long for 8 times the length."""
    for opening in ("", "<tool_call>", "[TOOL_CALLS]f", "<function=f><parameter=a>", "call:f{a:", "[f(a="):
        seconds = []
        for size in (12_000, 96_000):
            text = opening + piece * (size // len(piece))
            started = time.process_time()
            grade(text, EXPECTED)
            seconds.append(time.process_time() - started)
        assert seconds[1] < 0.5 + 24 * seconds[0], (opening, seconds)
