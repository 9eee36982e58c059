"""The tiny models: tokenizer, the packaged checkpoint and its measured rates."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pbsd.lab import checkpoint_path
from pbsd.lab.base_model import build_tokenizer
from pbsd.lab.bases import SCALES
from pbsd.lab.tiny_model import new_model, role_completions, role_prompt, success_rate
from pbsd.lab.tool_functions import PARAMETERS
from pbsd.lab.worlds import TASKS

NAME = "arithmetic-0.2m"
arithmetic = TASKS["arithmetic"]


@pytest.fixture(scope="module")
def packaged():
    folder = checkpoint_path(NAME)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("words", [(), TASKS["tools"].WORDS], ids=["characters", "words"])
@pytest.mark.parametrize("text", ["Q: 47+38-16\nA:", " a  b , c . ' s #### -1\n\n ", "", "\n", "don't ; [x]  !"])
def test_tokenizer_round_trip_is_exact_also_after_saving(text, words, tmp_path):
    build_tokenizer(words).save_pretrained(tmp_path)
    for tokenizer in (build_tokenizer(words), AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text) if not words else len(ids) <= len(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_words_are_tokens_longest_first_and_with_their_blank_only_where_they_end():
    tokenizer = build_tokenizer(("to", "topa", " to", "=x"))
    cut = {
        "a to": ["a", " to"],
        " topo": [" ", "to", "p", "o"],  # as "topo" in quotes, not " to", "p", "o"
        "topa=xy": ["topa", "=x", "y"],
        "totopa": ["to", "topa"],
    }
    assert {text: tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) for text in cut} == cut


def test_names_have_the_same_tokens_in_a_request_and_in_the_call():
    tokenizer = build_tokenizer(TASKS["tools"].WORDS)
    choices = {value for parameter in PARAMETERS.values() for value, _ in parameter.choices}
    for row in TASKS["tools"].rows("train", 500):
        for value in json.loads(row["expected"])[0]["arguments"].values():
            if isinstance(value, str) and value not in choices:
                (blank, *spoken), (opening, *written) = tokenizer.encode(f" {value}"), tokenizer.encode(f'="{value}')
                assert tokenizer.decode([blank, opening]) == ' ="'
                assert spoken == written


def test_special_tokens_are_distinct_and_unknown_characters_are_marked():
    tokenizer = build_tokenizer()
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(special) == 3
    assert None not in special
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]
    assert tokenizer.decode([*tokenizer.encode(" 1"), tokenizer.eos_token_id], skip_special_tokens=True) == " 1"


def test_packaged_checkpoint_is_small_fp32_and_stops_at_eos(packaged):
    model, tokenizer = packaged
    folder = checkpoint_path(NAME)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 150_000 < model.num_parameters() < 250_000
    settings = model.generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 1.0, 0)
    assert settings.top_p in (None, 1.0)
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_unknown_checkpoint_names_those_that_exist():
    with pytest.raises(ValueError, match=NAME):
        checkpoint_path("arithmetic-9b")


def test_base_leaves_room_for_the_student_and_a_lead_for_the_teacher(packaged):
    """500 held-out test problems: the standard error of a rate is at most .023."""
    problems = arithmetic.rows("test", 500)
    student = success_rate(*packaged, arithmetic, problems, "student")
    teacher = success_rate(*packaged, arithmetic, problems, "teacher")
    assert 0.30 <= student <= 0.60
    assert teacher >= student + 0.15


def test_success_rate_scores_the_completion_and_not_the_prompt(packaged):
    """An untrained model solves nothing even where the teacher's prompt holds the answer."""
    _, tokenizer = packaged
    assert success_rate(new_model(tokenizer, 0), tokenizer, arithmetic, arithmetic.rows("test", 50), "teacher") == 0.0


def test_success_rate_is_repeatable_and_leaves_the_global_generator_alone(packaged):
    problems = arithmetic.rows("test", 40)
    before = torch.random.get_rng_state()
    first = success_rate(*packaged, arithmetic, problems, "student", seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert success_rate(*packaged, arithmetic, problems, "student", seed=5) == first


def test_completions_stand_by_the_rows_they_belong_to(packaged):
    """Sampling sorts prompts by length; greedy completions of reversed rows are the reversed completions."""
    rows = arithmetic.rows("test", 200)
    texts, rewards = role_completions(*packaged, arithmetic, rows, "student", greedy=True)
    turned, _ = role_completions(*packaged, arithmetic, rows[::-1], "student", greedy=True)
    assert texts == turned[::-1]
    assert rewards == arithmetic.reward(texts, [row["answer"] for row in rows])
    # A completion repeats its own problem's first number.
    assert all(text.strip().split("+")[0].split("-")[0] in row["prompt"] for text, row in zip(texts, rows, strict=True))


@pytest.mark.parametrize(("task", "longest"), [("arithmetic", 33), ("tools", 26)])
def test_completions_fit_the_generation_budget_and_prompts_the_models_positions(task, longest):
    """With the eos token, by hand.

    Arithmetic: three equations such as ' 47+8=55', then ' #### 55': 4 x 8 + 1. Tools: `rent(city="belus",` is 6 tokens,
    `days=[11,12,13],` 13, and `size="m")` 5: 24 + 1, and 1 more for the citation.
    """
    tokenizer, rows = build_tokenizer(TASKS[task].WORDS), TASKS[task].rows("train", 3000)
    written = [row["privileged_context"] for row in rows] + [TASKS[task].leaking_completion(row) for row in rows]
    assert (
        longest - 3
        <= max(map(len, tokenizer(written)["input_ids"])) + 1
        <= longest
        <= TASKS[task].MAX_COMPLETION_TOKENS
    )
    prompts = tokenizer([role_prompt(TASKS[task], row, "teacher") for row in rows])["input_ids"]
    positions = new_model(tokenizer, 0).config.max_position_embeddings
    assert max(map(len, prompts)) + TASKS[task].MAX_COMPLETION_TOKENS <= positions


@pytest.mark.parametrize("scale", SCALES)
def test_scales_have_about_the_parameters_they_are_named_for(scale):
    for task in TASKS.values():
        parameters = new_model(build_tokenizer(task.WORDS), 0, scale).num_parameters() / 1e6
        assert parameters == pytest.approx(float(scale.removesuffix("m")), rel=0.2)
