"""Both roles' prompts, worked out by hand, and every way a row can break the data contract."""

import pytest

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
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "may not end"),
        ({"prompt": [{"role": "user", "content": ""}]}, "last user message of `prompt` is empty"),
        ({"prompt": [{"role": "user", "content": 3}]}, "`content` must be text"),
        ({"prompt": "p", "privileged_context": 3}, "`privileged_context` must be"),
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
    with pytest.raises(RowError, match="'hint' is undefined; columns are"):
        Renderer(tokenizer, "{{ hint }}")({"prompt": "p", "privileged_context": "c"}, 0)
