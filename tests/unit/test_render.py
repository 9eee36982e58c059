"""Both roles' prompts, worked out by hand, and every way a row can break the data contract."""

import json

import pytest
from conftest import CHAT_TEMPLATE

from pbsd.render import OverlongError, Renderer, RowError

TEMPLATE = "{{ prompt }} | {{ privileged_context }}"


def decode(tokenizer, ids):
    return tokenizer.decode(list(ids))


def test_text_prompts(tokenizer):
    prompt = Renderer(tokenizer, TEMPLATE)({"prompt": "2+2?", "privileged_context": "is {4}", "answer": "4"}, 7)
    assert decode(tokenizer, prompt.student_ids) == "2+2?"
    assert decode(tokenizer, prompt.teacher_ids) == "2+2? | is {4}"
    assert prompt.columns == {"privileged_context": "is {4}", "answer": "4"}
    assert prompt.row == 7


def test_privileged_context_is_data_not_template(tokenizer):
    row = {"prompt": "p", "privileged_context": "{{ prompt }} {% raw"}
    assert decode(tokenizer, Renderer(tokenizer, TEMPLATE)(row, 0).teacher_ids) == "p | {{ prompt }} {% raw"


def test_chat_prompts_put_the_context_into_the_last_user_message(tokenizer):
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    prompt = Renderer(tokenizer, TEMPLATE)({"prompt": chat, "privileged_context": "c"}, 0)
    assert decode(tokenizer, prompt.student_ids) == "<system>s\n<user>one\n<assistant>two\n<user>three\n<assistant>"
    assert decode(tokenizer, prompt.teacher_ids) == "<system>s\n<user>one\n<assistant>two\n<user>three | c\n<assistant>"


def test_context_as_messages_and_other_columns_in_the_template(tokenizer):
    context = [{"role": "assistant", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    renderer = Renderer(tokenizer, "{{ privileged_context }}/{{ hint }}")
    row = {"prompt": "p", "privileged_context": context, "hint": "h"}
    assert decode(tokenizer, renderer(row, 0).teacher_ids) == "a\nb/h"


@pytest.mark.parametrize("context", [None, "", []])
def test_without_context_both_roles_see_the_same(tokenizer, context):
    prompt = Renderer(tokenizer, TEMPLATE)({"prompt": "p", "privileged_context": context}, 0)
    assert prompt.student_ids == prompt.teacher_ids


def test_thinking_prefix_per_role(tokenizer):
    renderer = Renderer(
        tokenizer, TEMPLATE, student_thinking_prefix="<think>", teacher_thinking_prefix="<think></think>"
    )
    prompt = renderer({"prompt": [{"role": "user", "content": "p"}], "privileged_context": "c"}, 0)
    assert decode(tokenizer, prompt.student_ids).endswith("<assistant><think>")
    assert decode(tokenizer, prompt.teacher_ids).endswith("<assistant><think></think>")


def test_chat_templates_are_not_given_a_second_bos(tokenizer):
    """A tokenizer that adds BOS by itself, with a template that writes it: one BOS, not two (TRL#6437)."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer.chat_template = "<bos>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    renderer = Renderer(tokenizer, TEMPLATE)
    chat = renderer({"prompt": [{"role": "user", "content": "p"}]}, 0)
    text = renderer({"prompt": "p"}, 0)
    assert chat.student_ids.count(bos) == text.student_ids.count(bos) == 1


def test_budgets_are_apart_and_nothing_is_cut(tokenizer):
    row = {"prompt": "12345", "privileged_context": "6789"}  # 5 tokens; teacher 12
    prompt = Renderer(tokenizer, TEMPLATE, max_prompt_length=5, max_teacher_prompt_length=12)(row, 0)
    assert (len(prompt.student_ids), len(prompt.teacher_ids)) == (5, 12)
    with pytest.raises(OverlongError, match="row 3.*5 tokens, max_prompt_length is 4"):
        Renderer(tokenizer, TEMPLATE, max_prompt_length=4)(row, 3)
    with pytest.raises(OverlongError, match="12 tokens, max_teacher_prompt_length is 11"):
        Renderer(tokenizer, TEMPLATE, max_teacher_prompt_length=11)(row, 3)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": ""}, "row 5: `prompt` is empty"),
        ({"prompt": "  \n"}, "`prompt` is empty"),
        ({"prompt": 12}, "must be a string or a list of messages"),
        ({"prompt": None}, "must be a string or a list of messages"),
        ({"prompt": ["hello"]}, "must be a string or a list of messages"),
        ({"prompt": [{"role": "system", "content": "s"}]}, "must hold a user message"),
        ({"prompt": [{"role": "user", "content": ""}]}, "last user message of `prompt` is empty"),
        ({"prompt": [{"role": "user", "content": 3}]}, "`content` must be text"),
        ({"prompt": "p", "privileged_context": 3}, "`privileged_context` must be"),
        ({"prompt": "p", "image": "a.png"}, "`image`: images are not supported yet"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "p"}]}]}, "type 'image'"),
        ({"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "type 'image_url'"),
        ({"prompt": [{"role": "system", "content": [{"type": "audio"}]}, {"role": "user", "content": "p"}]}, "'audio'"),
        ({"prompt": "p", "tools": "[{"}, "`tools` is text that is not JSON"),
        ({"prompt": "p", "tools": [3]}, "each tool is a JSON schema with a name, or a function"),
        ({"prompt": "p", "tools": 3}, "`tools` must be a list"),
        ({"prompt": "p", "chat_template_kwargs": {"enable_thinking": True}}, "`chat_template_kwargs` are for chats"),
        ({"prompt": [{"role": "user", "content": "p"}], "chat_template_kwargs": [1]}, "must be an object"),
        (
            {"prompt": [{"role": "user", "content": "p"}], "chat_template_kwargs": {"tokenize": 1}},
            "may not set tokenize",
        ),
        (
            {"prompt": [{"role": "user", "content": "p"}], "chat_template_kwargs": {"chat_template": ""}},
            "chat_template",
        ),
    ],
)
def test_rows_that_break_the_contract(tokenizer, row, words):
    with pytest.raises(RowError, match=words):
        Renderer(tokenizer, TEMPLATE)(row, 5)


def test_chat_without_a_chat_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(RowError, match="no chat template: set tokenizer.chat_template"):
        Renderer(tokenizer, TEMPLATE)({"prompt": [{"role": "user", "content": "p"}]}, 0)


def test_templates_with_a_mistake(tokenizer):
    with pytest.raises(ValueError, match="teacher_prompt_template, line 1"):
        Renderer(tokenizer, "{{ prompt ")
    with pytest.raises(ValueError, match="tools_template, line 1"):
        Renderer(tokenizer, TEMPLATE, tools_template="{{ tools ")
    with pytest.raises(RowError, match="row 3: teacher_prompt_template: 'hint' is undefined; columns are"):
        Renderer(tokenizer, "{{ hint }}")({"prompt": "p", "privileged_context": "c"}, 3)


CHAT = [{"role": "user", "content": "weather in Rome?"}]
TOOL = {
    "name": "get_weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
WITH_TOOLS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if tools %}{% for t in tools %}[{{ t.function.name }}: {{ t | tojson }}]{% endfor %}{% endif %}"
    "{% for d in documents or [] %}({{ d.title }}: {{ d.text }}){% endfor %}{% if shout %}!{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: where
    """
    return city


@pytest.mark.parametrize(
    ("tools", "name"),
    [
        ([{"type": "function", "function": TOOL}], "get_weather"),
        ([TOOL], "get_weather"),
        (TOOL, "get_weather"),
        (json.dumps([TOOL]), "get_weather"),
        ([weather], "weather"),
        (weather, "weather"),
    ],
)
def test_tools_in_every_form_reach_both_roles(tokenizer, tools, name):
    tokenizer.chat_template = WITH_TOOLS
    prompt = Renderer(tokenizer, TEMPLATE)({"prompt": CHAT, "privileged_context": "c", "tools": tools}, 0)
    for ids in (prompt.student_ids, prompt.teacher_ids):
        assert f"[{name}: " in decode(tokenizer, ids) and '"city"' in decode(tokenizer, ids)


def test_functions_among_the_tools_reach_graders_as_schemas(tokenizer):
    tokenizer.chat_template = WITH_TOOLS
    prompt = Renderer(tokenizer, TEMPLATE)({"prompt": CHAT, "tools": [weather]}, 0)
    assert prompt.columns["tools"][0]["function"]["name"] == "weather"
    assert Renderer(tokenizer, TEMPLATE)({"prompt": CHAT, "tools": [TOOL]}, 0).columns["tools"] == [TOOL]


@pytest.mark.parametrize("empty", [None, [], "", "[]"])
def test_without_tools_a_template_is_given_none(tokenizer, empty):
    tokenizer.chat_template = "{{ messages[0].content }}{% if tools is not none %} you have tools{% endif %}"
    assert (
        decode(tokenizer, Renderer(tokenizer, "")({"prompt": CHAT, "tools": empty}, 0).student_ids)
        == CHAT[0]["content"]
    )


def test_tools_that_the_chat_template_does_not_write_are_refused(tokenizer):
    row = {"prompt": CHAT, "privileged_context": "c", "tools": [TOOL]}
    with pytest.raises(RowError, match="row 2: the tool 'get_weather' is not described in the prompt .*tools_template"):
        Renderer(tokenizer, TEMPLATE)(row, 2)
    with pytest.raises(
        RowError, match="'get_weather' is not described in the prompt .'get_weather', 'city', its description."
    ):
        Renderer(tokenizer, TEMPLATE)({**row, "prompt": "weather in Rome?"}, 0)
    partly = [{"role": "user", "content": "call get_weather"}]
    with pytest.raises(RowError, match="'get_weather' is not described in the prompt .'city', its description."):
        Renderer(tokenizer, TEMPLATE)({**row, "prompt": partly}, 0)


def test_a_teacher_template_that_drops_the_tools_of_the_text_is_refused(tokenizer):
    row = {"prompt": "get_weather(city), weather of a city", "privileged_context": "c", "tools": [TOOL]}
    assert Renderer(tokenizer, TEMPLATE)(row, 0).student_ids
    with pytest.raises(
        RowError, match="'get_weather' is not described in the prompt .'get_weather', 'city', its description."
    ):
        Renderer(tokenizer, "only {{ privileged_context }}")(row, 0)


ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}}


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        (ADD, "Please add 2 and 3, but quickly."),
        ({"name": "now"}, "I do not know."),
        ({"name": "user", "description": "Who asks."}, "user, assistant"),
    ],
)
def test_words_that_are_like_a_tools_by_accident_describe_none(tokenizer, tool, text):
    for prompt in (text, [{"role": "user", "content": text}]):
        with pytest.raises(RowError, match=f"the tool '{tool['name']}' is not described in the prompt"):
            Renderer(tokenizer, TEMPLATE)({"prompt": prompt, "tools": [tool]}, 0)


def test_the_chat_templates_own_words_describe_no_tool(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<assistant>", "assistant of a city: get_weather city")
    with pytest.raises(RowError, match="'get_weather' is not described in the prompt"):
        Renderer(tokenizer, TEMPLATE)({"prompt": CHAT, "tools": [TOOL]}, 0)


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_turn_of_calls_may_have_no_content(tokenizer, content):
    """Some templates want an empty text there, as LFM2's."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content + '' }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
    )
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}], **content}
    prompt = Renderer(tokenizer, TEMPLATE)({"prompt": [*CHAT, call, {"role": "tool", "content": "7"}]}, 0)
    assert '"name": "f"' in decode(tokenizer, prompt.student_ids)


@pytest.mark.parametrize(
    ("documents", "reason"),
    [
        ([{"title": "t", "text": "a"}, {"title": "t", "contents": "b"}], "leaves out the documents"),
        ([{"title": "t", "snippet": "a", "url": "https://example.org/long"}], "leaves out the documents"),
        ("[{", "`documents` is text that is not JSON"),
        (["a"], "`documents` must be a list of objects"),
    ],
)
def test_documents_that_would_vanish_are_refused(tokenizer, documents, reason):
    tokenizer.chat_template = WITH_TOOLS
    with pytest.raises(RowError, match=f"row 1: .*{reason}"):
        Renderer(tokenizer, TEMPLATE)({"prompt": CHAT, "documents": documents}, 1)
    row = {"prompt": CHAT, "documents": '[{"title": "t", "text": "as JSON"}]'}
    assert "(t: as JSON)" in decode(tokenizer, Renderer(tokenizer, TEMPLATE)(row, 0).student_ids)


def test_documents_of_a_text_are_for_the_teachers_template_or_refused(tokenizer):
    row = {"prompt": "p", "privileged_context": "c", "documents": ["d"]}
    with pytest.raises(RowError, match="`documents` are for chats"):
        Renderer(tokenizer, TEMPLATE)(row, 0)
    renderer = Renderer(tokenizer, TEMPLATE + "{{ documents[0] }}")
    assert decode(tokenizer, renderer(row, 0).teacher_ids) == "p | cd"


def test_tools_in_the_prompts_own_text_need_no_template(tokenizer):
    chat = [{"role": "system", "content": json.dumps(TOOL)}, *CHAT]
    prompt = Renderer(tokenizer, TEMPLATE)({"prompt": chat, "tools": [TOOL]}, 0)
    assert decode(tokenizer, prompt.student_ids).count("get_weather") == 1
    tokenizer.chat_template = WITH_TOOLS
    alone = Renderer(tokenizer, TEMPLATE, tools_template="")({"prompt": chat, "tools": [TOOL]}, 0)
    assert decode(tokenizer, alone.student_ids).count("get_weather") == 1


def test_tools_by_a_template_of_ones_own(tokenizer):
    template = "Tools:{% for tool in tools %} {{ tool.function | tojson }}{% endfor %}"
    renderer = Renderer(tokenizer, TEMPLATE, tools_template=template)
    text = f"Tools: {json.dumps(TOOL)}"
    row = {"prompt": CHAT, "tools": json.dumps([TOOL])}
    assert decode(tokenizer, renderer(row, 0).student_ids) == f"<system>{text}\n<user>weather in Rome?\n<assistant>"
    row["prompt"] = [{"role": "system", "content": "s"}, *CHAT]
    assert decode(tokenizer, renderer(row, 0).student_ids).startswith(f"<system>{text}\n\ns\n<user>")
    assert decode(tokenizer, renderer({**row, "prompt": "p"}, 0).teacher_ids) == f"{text}\n\np"


def test_documents_and_template_variables_of_a_row(tokenizer):
    tokenizer.chat_template = WITH_TOOLS
    row = {"prompt": CHAT, "documents": [{"title": "t", "text": "long text"}], "chat_template_kwargs": {"shout": True}}
    text = decode(tokenizer, Renderer(tokenizer, TEMPLATE)(row, 0).student_ids)
    assert text.endswith("(t: long text)!<assistant>")
    # The row's variables win over the run's.
    calm = Renderer(tokenizer, TEMPLATE, chat_template_kwargs={"shout": True})(
        {**row, "chat_template_kwargs": '{"shout": false}'}, 0
    )
    assert decode(tokenizer, calm.student_ids).endswith("(t: long text)<assistant>")
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(RowError, match="leaves out the documents"):
        Renderer(tokenizer, TEMPLATE)(row, 0)


def test_a_variable_that_the_template_does_not_read_is_said(tokenizer, caplog):
    renderer = Renderer(tokenizer, TEMPLATE, chat_template_kwargs={"enable_thinking": False})
    renderer({"prompt": CHAT}, 0)
    assert "does not read chat_template_kwargs['enable_thinking']" in caplog.text


def test_a_chat_that_ends_with_the_assistants_turn_is_continued(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE.replace("\n{% endfor %}", "<end>\n{% endfor %}")
    row = {"prompt": [*CHAT, {"role": "assistant", "content": "It is"}], "privileged_context": "sunny"}
    prompt = Renderer(tokenizer, TEMPLATE)(row, 0)
    assert decode(tokenizer, prompt.student_ids) == "<user>weather in Rome?<end>\n<assistant>It is"
    assert decode(tokenizer, prompt.teacher_ids) == "<user>weather in Rome? | sunny<end>\n<assistant>It is"
    assert (prompt.student_turn, prompt.teacher_turn) == ("It is", "It is")
    with pytest.raises(RowError, match="ends with the assistant's turn, and the thinking prefix '<think>'"):
        Renderer(tokenizer, TEMPLATE, student_thinking_prefix="<think>")(row, 0)


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        ("{{ messages[-1]['content'] }}", "the system message"),
        (
            "{% for m in messages %}{% if m['role'] != 'tool' %}{{ m['content'] }}{% endif %}{% endfor %}",
            "the tool's message",
        ),
        ("nothing", "the user's message"),
    ],
)
def test_what_the_chat_template_leaves_out_is_named(tokenizer, template, missing):
    tokenizer.chat_template = template
    turns = ["system", "user", "assistant", "tool", "user"]
    with pytest.raises(RowError, match=f"the chat template leaves out .*{missing}"):
        Renderer(tokenizer, TEMPLATE)({"prompt": [{"role": role, "content": role} for role in turns]}, 0)


PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
    "{% endfor %}"
)


@pytest.mark.parametrize("content", ["weather?", [{"type": "text", "text": "wea"}, {"type": "text", "text": "ther?"}]])
@pytest.mark.parametrize("template", [PARTS, CHAT_TEMPLATE])
def test_content_is_sent_in_the_form_that_the_template_reads(tokenizer, template, content):
    tokenizer.chat_template = template
    row = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": content}],
        "privileged_context": "c",
    }
    prompt = Renderer(tokenizer, TEMPLATE)(row, 0)
    assert "<user>weather?" in decode(tokenizer, prompt.student_ids)
    assert "<user>weather? | c" in decode(tokenizer, prompt.teacher_ids)


def test_calls_in_a_demonstration_stay_in_the_context(tokenizer):
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    context = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "7"}]
    text = decode(
        tokenizer, Renderer(tokenizer, TEMPLATE)({"prompt": "p", "privileged_context": context}, 0).teacher_ids
    )
    assert text == 'p | <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n7'


def test_a_long_text_is_refused_before_it_is_tokenised(tokenizer, monkeypatch):
    # The longest of its tokens, `<pad>`, has five characters.
    monkeypatch.setattr(type(tokenizer), "encode", lambda *args, **kwargs: pytest.fail("tokenised"))
    row = {"prompt": "x" * 1_000_000}
    with pytest.raises(OverlongError, match="at least 200000 tokens .1000000 characters., max_prompt_length is 100"):
        Renderer(tokenizer, TEMPLATE, max_prompt_length=100)(row, 0)
    with pytest.raises(OverlongError, match="at least 200000 tokens .*, the number of the model's positions is 4096"):
        Renderer(tokenizer, TEMPLATE, positions=4096)(row, 0)


def test_a_text_to_be_continued_does_not_end_with_the_tokenizers_eos(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    assert decode(tokenizer, Renderer(tokenizer, TEMPLATE)({"prompt": "pp"}, 0).student_ids) == "<bos>pp"


def test_a_text_that_ends_itself_is_refused(tokenizer):
    with pytest.raises(RowError, match="row 4: the prompt ends with '<eos>'"):
        Renderer(tokenizer, TEMPLATE)({"prompt": "p<eos>"}, 4)


def test_the_completion_of_a_chat_ends_as_its_template_ends_a_turn(tokenizer):
    """A Gemma-like chat: its turns end with `<end_of_turn>`, its texts with `<eos>`."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    tokenizer.chat_template = CHAT_TEMPLATE.replace("\n{% endfor %}", "<end_of_turn>\n{% endfor %}")
    renderer = Renderer(tokenizer, TEMPLATE, max_reference_length=9)
    row = {"prompt": CHAT, "completion": "sunny"}
    assert decode(tokenizer, renderer(row, 0).reference_ids) == "sunny<end_of_turn>"
    assert decode(tokenizer, renderer({**row, "prompt": "p"}, 0).reference_ids) == "sunny<eos>"


@pytest.mark.parametrize(
    ("prompt", "prefix", "turn"),
    [
        ("solve <think>\n", "", "<think>"),
        ("solve", "<think>\n", "<think>\n"),
        ("solve", "<think>\nLet me", "<think>\nLet me"),
        ("solve", "[THINK]", "[THINK]"),
        ("solve", "<think></think>", ""),
        ("<think> is a tag", "", ""),
        ("solve", "", ""),
    ],
)
def test_what_a_prompt_opens_of_a_thought_is_for_the_graders(tokenizer, prompt, prefix, turn):
    rendered = Renderer(tokenizer, TEMPLATE, student_thinking_prefix=prefix)({"prompt": prompt}, 0)
    assert (rendered.student_turn, rendered.teacher_turn) == (turn, turn if prompt.endswith("\n") else "")
