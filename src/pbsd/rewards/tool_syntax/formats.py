"""The formats that are read: what each is called, who writes it, how it begins, what it looks like, and its reader."""

from __future__ import annotations

import re
from typing import NamedTuple

from pbsd.rewards.tool_syntax import gemma, marked, unmarked, xml
from pbsd.rewards.tool_syntax.marked import Reader, tagged_json, tagged_python


class Format(NamedTuple):
    """One format. `begins`: the pattern of its markers. `looks`: what is expected there, for messages and docs."""

    name: str
    models: str
    begins: str
    looks: str
    read: Reader


MARKED = (
    Format(
        "qwen_xml",
        "Qwen3-Coder, Qwen3.5, Nemotron 3, Seed-OSS, Llama 3.1's custom calls",
        xml.FUNCTION_BEGINS,
        "<tool_call><function=f><parameter=a>v</parameter></function></tool_call>, or <function=f>{...}</function>",
        xml.function_call,
    ),
    Format(
        "glm",
        "GLM-4.5 and later, Hunyuan 3",
        xml.KEYED_BEGINS,
        "<tool_call>f<arg_key>a</arg_key><arg_value>v</arg_value></tool_call>",
        xml.keyed_call,
    ),
    Format(
        "hermes",
        "Hermes, Qwen2.5, Qwen3, Granite 3 and 4, EXAONE 4, SmolLM3, Ling, ERNIE 4.5",
        r"(?:<tool_calls>\s*)?<tool_call>",
        '<tool_call>{"name": ..., "arguments": {...}}</tool_call>, with one JSON value in each tag',
        tagged_json(r"(?:<tool_calls>\s*)?<tool_call>", r"</tool_call>", several=False, open_list=True),
    ),
    Format(
        "invoke",
        "Claude-like, MiniMax-M2, DeepSeek-V3.2 (DSML), Muse",
        xml.INVOKE_BEGINS,
        '<invoke name="f"><parameter name="a">v</parameter></invoke>, in a section or not',
        xml.invoke_calls,
    ),
    Format(
        "mistral",
        "Mistral, Devstral, Magistral",
        r"\[TOOL_CALLS\]",
        '[TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name{...}',
        marked.mistral,
    ),
    Format(
        "llama",
        "Llama 3.1 and later, with built-in tools",
        r"<\|python_tag\|>",
        '<|python_tag|>{"name": ..., "parameters": {...}}, or <|python_tag|>tool.call(a=1)',
        marked.llama,
    ),
    Format(
        "llama_pythonic",
        "Llama 4",
        r"<\|python_start\|>",
        "<|python_start|>[f(a=1)]<|python_end|>",
        tagged_python(r"<\|python_start\|>", r"<\|python_end\|>", required=False),
    ),
    Format(
        "deepseek",
        "DeepSeek-V3, V3.1 and R1, Step 3",
        marked.DEEPSEEK_BEGINS,
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{...}<｜tool▁call▁end｜>, or function<｜tool▁sep｜>f and a fence of JSON",
        marked.deepseek,
    ),
    Format(
        "kimi",
        "Kimi K2",
        marked.KIMI_BEGINS,
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>",
        marked.kimi,
    ),
    Format(
        "kimi_xtml",
        "Kimi K3",
        xml.XTML_BEGINS,
        '<|open|>call tool="f"<|sep|><|open|>argument key="a" type="string"<|sep|>v<|close|>argument<|sep|>...',
        xml.xtml_calls,
    ),
    Format(
        "harmony",
        "gpt-oss",
        marked.HARMONY_BEGINS,
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>",
        marked.harmony,
    ),
    Format(
        "granite",
        "Granite 3, Phi-4-mini",
        r"<\|tool_calls?\|>",
        '<|tool_call|>[{"name": ..., "arguments": {...}}]',
        tagged_json(r"<\|tool_calls?\|>", r"<\|/tool_calls?\|>", required=False),
    ),
    Format(
        "phi",
        "Phi-4-mini",
        r"\bfunctools\s?\[",
        'functools[{"name": ..., "arguments": {...}}]',
        tagged_json(r"functools\s?(?=\[)", r"", required=False),
    ),
    Format(
        "command_a",
        "Command A, Command R7B",
        r"<\|START_ACTION\|>",
        '<|START_ACTION|>[{"tool_name": ..., "parameters": {...}}]<|END_ACTION|>',
        tagged_json(r"<\|START_ACTION\|>", r"<\|END_ACTION\|>", required=False),
    ),
    Format(
        "command_r",
        "Command R, LangChain's structured chat",
        unmarked.ACTION_FENCE_BEGINS,
        'Action: and a fence of [{"tool_name": ..., "parameters": {...}}]',
        unmarked.action_fence,
    ),
    Format(
        "gemma",
        "FunctionGemma, Gemma 4",
        gemma.BEGINS,
        "<start_function_call>call:f{a:<escape>v<escape>}<end_function_call>, or <|tool_call>call:f{...}<tool_call|>",
        gemma.gemma,
    ),
    Format(
        "tool_code",
        "Gemma 2 and 3, CodeGemma",
        r"```tool_code\s*?\n|\Atool_code\n",
        "a fence `tool_code` with f(a=1), or with print(default_api.f(a=1))",
        unmarked.tool_code,
    ),
    Format(
        "nemotron",
        "Llama-Nemotron, Nemotron Nano 2",
        r"<TOOLCALL>",
        '<TOOLCALL>[{"name": ..., "arguments": {...}}]</TOOLCALL>',
        tagged_json(r"<TOOLCALL>", r"</TOOLCALL>"),
    ),
    Format(
        "tool_calls",
        "Jamba, Hunyuan A13B, MiniMax-M1",
        r"<tool_calls>",
        '<tool_calls>[{"name": ..., "arguments": {...}}]</tool_calls>, or one call object a line',
        tagged_json(r"<tool_calls>", r"</tool_calls>"),
    ),
    Format(
        "internlm",
        "InternLM 2 and 3, Intern-S1",
        r"<\|action_start\|>",
        '<|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>',
        tagged_json(r"<\|action_start\|>\s*(?:<\|(?:plugin|interpreter)\|>)?", r"<\|action_end\|>", required=False),
    ),
    Format(
        "olmo",
        "Olmo 3",
        r"<function_calls>",
        "<function_calls>f(a=1)</function_calls>, one call a line",
        tagged_python(r"<function_calls>", r"</function_calls>", required=True),
    ),
    Format(
        "lfm",
        "LFM2",
        r"<\|tool_call_start\|>",
        "<|tool_call_start|>[f(a=1)]<|tool_call_end|>",
        tagged_python(r"<\|tool_call_start\|>", r"<\|tool_call_end\|>", required=False),
    ),
    Format(
        "functionary",
        "Functionary 3.2",
        marked.FUNCTIONARY_BEGINS,
        ">>>f and {...} on the next line",
        marked.functionary,
    ),
    Format(
        "apertus",
        "Apertus",
        r"<\|tools_prefix\|>",
        '<|tools_prefix|>[{"f": {"a": 1}}]<|tools_suffix|>',
        marked.apertus,
    ),
    Format(
        "function_call",
        "GigaChat 3, Granite 20B, Glaive",
        r"<\|function_call\|>|function call<\|role_sep\|>|<function_?call>",
        '<|function_call|>{"name": ..., "arguments": {...}}',
        tagged_json(
            r"<\|function_call\|>|function call<\|role_sep\|>|<function_?call>", r"</function_?call>", required=False
        ),
    ),
    Format(
        "qwen_agent",
        "Qwen-Agent, Qwen2",
        r"✿FUNCTION✿",
        "✿FUNCTION✿: f and ✿ARGS✿: {...} on the next line",
        marked.qwen_agent,
    ),
    Format(
        "longcat",
        "LongCat",
        r"<longcat_tool_call>",
        '<longcat_tool_call>{"name": ..., "arguments": {...}}</longcat_tool_call>',
        tagged_json(r"<longcat_tool_call>", r"</longcat_tool_call>"),
    ),
)
"""In this order where several begin at one place. Each is a format of its own: a text holds calls in one of them."""

ACTION = Format(
    "action",
    "ReAct, ToolAlpaca, Qwen's ReAct",
    unmarked.ACTION_BEGINS,
    "lines `Action: name`, each followed by `Action Input: {...}`",
    unmarked.action_lines,
)

JSON = Format(
    "json",
    "Llama 3.1, xLAM, Hammer, OpenAI's messages",
    unmarked.JSON_BEGINS,
    '{"name": ..., "arguments": {...}}, a list of them, or {"tool_calls": [...]}',
    unmarked.json_in_text,
)

PYTHON = Format(
    "python",
    "BFCL, Llama 3.2, ToolACE",
    unmarked.LIST_BEGINS,
    '[f(a=1), m.g(b="x")], or one call a line, with literal values, all named',
    unmarked.list_in_text,
)

FENCE = Format("fence", "", unmarked.FENCE_BEGINS, "JSON or Python calls in a code fence", unmarked.fence())
CODE_TAG = Format("code", "SmolLM3", r"<code>", "Python calls in <code>", unmarked.code_tag)

NAMED = (JSON, PYTHON, *(f for f in MARKED if f.name == "hermes"), ACTION, *(f for f in MARKED if f.name != "hermes"))
"""The formats that can be asked for by name."""

UNKNOWN = re.compile(
    r"<[|｜]?/?[a-z0-9_:▁\-]{0,30}(?:tool|function|func)s?[_▁\-]?(?:call|use|invo)[a-z0-9_:▁\-]{0,30}[|｜]?>"
    r"|<[|｜]?/?[A-Z0-9_:▁\-]{0,30}(?:TOOL|FUNCTION|FUNC)S?[_▁\-]?(?:CALL|USE|INVO)[A-Z0-9_:▁\-]{0,30}[|｜]?>"
    r"|<(?:function|tool)\s{1,9}name\s?=|<(?:use|call|invoke)_[a-z_]{0,20}(?:tool|function)>"
    r"|\[/?[A-Z_]{0,30}(?:TOOL|FUNCTION)S?_?(?:CALL|USE)[A-Z_]{0,30}\](?!\()|\]<\]minimax\[>\["
)
"""What looks like another format's marker."""
