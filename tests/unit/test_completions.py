"""What reward functions and graders are given of a completion: its marks, its parsed message, its opened thought."""

import json

import pytest
from conftest import CHAT_TEMPLATE, tiny_model
from trl.chat_template_utils import qwen3_template

from pbsd import GRPOConfig, SelfDistillationTrainer
from pbsd.completions import marked_text, message, plain_text
from pbsd.records import Prompt, Rollout
from pbsd.rewards.text import THOUGHTS, final_text, opened_thought

MARKS = ["<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|im_end|>"]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}


@pytest.fixture
def marked(tokenizer):
    """A tokenizer whose marks of thoughts and calls are special tokens, as in several families of models."""
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    return tokenizer


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_marks_stay_and_the_end_goes(marked):
    text = f"<think>a</think>{CALL}[TOOL_CALLS]"
    assert marked_text(marked, ids(marked, text + "<|im_end|>"), finished=True) == text
    assert marked_text(marked, ids(marked, text + "<eos>"), finished=True) == text
    assert marked_text(marked, ids(marked, text), finished=False) == text
    assert marked_text(marked, ids(marked, "<pad>a<unk>b<eos>"), finished=False) == "ab"


def test_without_a_response_template_a_message_is_the_plain_text_as_in_trl(marked):
    sampled = ids(marked, f"a<think>b</think>{CALL}<|im_end|>")
    assert message(marked, sampled, prompt_ids=[]) == {"role": "assistant", "content": plain_text(marked, sampled)}
    assert "<think>" not in plain_text(marked, sampled)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("<think>\nhm\n</think>\n\n42<|im_end|>", {"reasoning_content": "hm", "content": "42"}),
        ("<think>\nhm", {"reasoning_content": "hm", "content": ""}),
        ("42", {"content": "42"}),
        (
            CALL + "<|im_end|>",
            {"content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        ),
    ],
)
def test_a_response_template_makes_it_a_message(marked, text, parsed):
    marked.response_template = qwen3_template
    found = message(marked, ids(marked, text), prompt_ids=ids(marked, "<|im_start|>assistant\n"), tools=[TOOL])
    assert found == {"role": "assistant", **parsed}


@pytest.mark.parametrize(
    "text", [CALL.replace("}}", "}"), CALL.replace('"name"', '"nam"'), CALL[:20], "<think></think><|im_end|>"]
)
def test_what_the_response_template_cannot_read_is_the_plain_text(marked, text):
    marked.response_template = qwen3_template
    sampled = ids(marked, text)
    found = message(marked, sampled, prompt_ids=ids(marked, "<|im_start|>assistant\n"))
    assert found == {"role": "assistant", "content": plain_text(marked, sampled)}


@pytest.mark.parametrize(("opening", "closing"), THOUGHTS)
def test_thoughts_of_every_family(opening, closing):
    assert final_text(f"{opening}draft 7{closing}42") == "42"
    assert final_text(f"{opening}draft 7") is None
    assert final_text(f"{opening}a{closing}b{opening}c") is None
    call = f'{{"text": "say \\"{opening}\\" aloud"}}'
    assert final_text(call) == call  # a mark in a string begins no thought
    assert opened_thought(f"problem {opening}\n") == opening
    assert opened_thought(f"problem {opening} x") == ""


@pytest.mark.parametrize("piece", [*(opening for opening, _ in THOUGHTS), '"', "a<|end|>"])
def test_marks_again_and_again_are_read_in_one_pass(piece):
    """Of a quadratic reading this would take minutes."""
    assert final_text(piece * 200_000) in (None, piece * 200_000)


def test_the_channels_of_gpt_oss():
    analysis = "<|channel|>analysis<|message|>draft 7<|end|><|start|>assistant"
    assert final_text(f"{analysis}<|channel|>final<|message|>42") == "42"
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}'
    assert final_text(analysis + call) == f"<|start|>assistant{call}"


def make_engine(tokenizer, rewards, tmp_path):
    model = tiny_model(tokenizer)
    args = GRPOConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, save_strategy="no", max_completion_length=100
    )
    rows = [{"prompt": "p", "answer": "42"}]
    return SelfDistillationTrainer(model, args, rows, None, rewards, tokenizer).engine


def graded(engine, prompt, text, *, finished=True):
    """The grade of a sampled text, by a trainer's own engine."""
    sampled = tuple(ids(engine.tokenizer, text))
    rollout = Rollout(0, "student", sampled, marked_text(engine.tokenizer, sampled, finished=finished), finished, ())
    return engine.grade([prompt], [rollout])[0][0].reward


def chat_prompt(engine, **columns):
    return engine.renderer({"prompt": [{"role": "user", "content": "p"}], **columns}, 0)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>It may be \\boxed{41}.</think>It is \\boxed{42}.<|im_end|>", 1.0),
        ("<think>It may be \\boxed{42}.", 0.0),
        ("<think>It may be \\boxed{42}.</think>", 0.0),
    ],
)
def test_a_draft_that_was_cut_off_inside_its_thought_is_no_answer(marked, tmp_path, text, reward):
    marked.chat_template = CHAT_TEMPLATE
    engine = make_engine(marked, "math", tmp_path)
    assert graded(engine, chat_prompt(engine, answer="42"), text, finished="im_end" in text) == reward


def test_a_call_between_special_marks_is_read(marked, tmp_path):
    marked.chat_template = CHAT_TEMPLATE
    engine = make_engine(marked, "tool_call", tmp_path)
    prompt = chat_prompt(engine, answer=json.dumps([{"name": "f", "arguments": {"a": 1}}]))
    assert graded(engine, prompt, CALL + "<|im_end|>") == 1.0
    assert graded(engine, prompt, CALL.replace("1", "2") + "<|im_end|>") == 0.0


def test_calls_in_a_format_of_the_models_own_are_read_by_its_response_template(marked, tmp_path):
    marked.chat_template = CHAT_TEMPLATE
    text = "please f with a=1; thanks<|im_end|>"
    expected = json.dumps([{"name": "f", "arguments": {"a": 1}}])
    engine = make_engine(marked, "tool_call", tmp_path)
    wanted, unwanted = chat_prompt(engine, answer=expected), chat_prompt(engine, answer="[]")
    assert (graded(engine, wanted, text), graded(engine, unwanted, text)) == (0.0, 1.0)
    marked.response_template = {
        **qwen3_template,
        "fields": {
            "tool_calls": {
                "open_pattern": r"please (?P<name>\w+) with ",
                "close": "thanks",
                "content": "xml-inline",
                "content_args": {"tag_pattern": r"(?P<key>\w+)=(?P<value>\d+);", "value_parser": {"name": "json"}},
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
                "repeats": True,
            },
            "content": {"close": "<|im_end|>", "content": "text"},
        },
    }
    assert (graded(engine, wanted, text), graded(engine, unwanted, text)) == (1.0, 0.0)
    assert graded(engine, wanted, text.replace("1", "2")) == 0.0


def test_a_turn_that_the_prompt_begins_belongs_to_the_answer(tokenizer, tmp_path):
    engine = make_engine(tokenizer, "math", tmp_path)
    chat = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "It is \\boxed{4"}]
    prompt = engine.renderer({"prompt": chat, "answer": "42"}, 0)
    assert isinstance(prompt, Prompt)
    assert graded(engine, prompt, "2}<eos>") == 1.0
    assert graded(engine, prompt, "3}<eos>") == 0.0
