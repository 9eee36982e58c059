"""Reward functions by name, by path and as they are; the grades behind TRL's numbers."""

import functools
import subprocess
import sys

import pytest

from pbsd.rewards import Grade, GradedReward, required_columns, resolve
from pbsd.rewards.text import completion_text, final_text


@pytest.fixture
def closing():
    """Close the rewards that a test resolves."""
    opened = []

    def keep(reward):
        opened.append(reward)
        return reward

    yield keep
    for reward in opened:
        reward.close()


def test_math_by_name_on_strings_and_chat_messages(closing):
    reward = closing(resolve("math"))
    completions = [r"\boxed{4}", [{"role": "assistant", "content": r"\boxed{5}"}], "no idea", "4"]
    columns = {"answer": ["4", "4", "4", ""], "difficulty": [1, 2, 3, 4]}
    assert [grade.outcome for grade in reward.grades(completions, **columns)] == [
        "correct",
        "wrong",
        "unparsed",
        "error",
    ]
    trl = {"prompts": ["q"] * 4, "completion_ids": [[1]] * 4, "trainer_state": object(), "log_metric": print}
    assert reward(completions=completions, **trl, **columns) == [1.0, 0.0, 0.0, None]
    assert reward.__name__ == "math"


def test_tool_call_by_name_takes_tools_when_the_data_has_them(closing):
    reward = closing(resolve({"name": "tool_call", "syntax": "python"}))
    answer = ['[{"f": {"a": [1]}}]'] * 2
    tools = ['[{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}]'] * 2
    completions = ["f(a=1.0)", '{"name": "f", "arguments": {"a": 1}}']
    assert reward(completions, answer=answer) == [1.0, 0.0]
    assert reward(completions, answer=answer, tools=tools) == [0.0, 0.0]
    assert reward.grades(completions, answer=answer)[1].outcome == "unparsed"
    assert required_columns(reward) == {"answer"}


def test_the_papers_scorer_by_name(closing):
    reward = closing(resolve({"name": "tool_call", "scorer": "paper_parity", "columns": {"expected": "golden_answer"}}))
    golden = [[{"Action": "f", "Action_Input": '{"a": 1}'}]] * 2
    text = 'Action: f\nAction Input: {"a": 1}'
    assert reward([text, f"<think>{text}</think>\n{text}"], golden_answer=golden) == [1.0, 0.0]


def test_format_matches_the_whole_completion_across_lines(closing):
    reward = closing(resolve({"name": "format", "pattern": "<a>.*</a>"}))
    assert reward(["<a>x\ny</a>", "<a>x</a> and more", "so <a>x</a>"]) == [1.0, 0.0, 0.0]
    assert required_columns(reward) == set()


def test_a_catastrophic_pattern_is_a_timeout(closing):
    reward = closing(resolve({"name": "format", "pattern": "(a+)+b", "timeout": 0.5}))
    assert [grade.outcome for grade in reward.grades(["a" * 60, "aab"])] == ["timeout", "correct"]


def test_columns_can_be_renamed_and_workers_counted(closing):
    reward = closing(resolve({"name": "math", "columns": {"answer": "solution"}, "workers": 2}))
    assert required_columns(reward) == {"solution"}
    assert reward(["1", "2"], solution=["1", "1"]) == [1.0, 0.0]


def test_missing_and_short_columns_are_named(closing):
    reward = closing(resolve("math"))
    with pytest.raises(ValueError, match=r"'math' needs the column 'answer'; the data has \['solution'\]"):
        reward(["1"], solution=["1"], prompts=["q"])
    with pytest.raises(ValueError, match="column 'answer' has 1 values for 2 completions"):
        reward(["1", "2"], answer=["1"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("maths", "'maths' is unknown, did you mean 'math'\\?; use one of math, tool_call, format"),
        ("toolcall", "did you mean 'tool_call'"),
        ("xyz", "'xyz' is unknown; use one of"),
        ({"name": "math", "timout": 5}, "no option 'timout', did you mean 'timeout'\\?; it has columns, workers"),
        ({"name": "math", "timeout": 0}, "GraderPool timeout is 0"),
        ({"name": "math", "columns": {"gold": "x"}}, "names \\['gold'\\]; its arguments are \\['answer'\\]"),
        ({"name": "math", "columns": "answer"}, "`columns` is 'answer'; give"),
        ({"pattern": "a"}, "has no name"),
        ("format", "needs the option 'pattern'"),
        ({"name": "format", "pattern": "("}, "is not a regular expression"),
        ({"name": "format", "pattern": 5}, "is not a regular expression"),
        ({"name": "tool_call", "scorer": "loose"}, "scorer 'loose' is unknown; use one of strict, paper_parity"),
        ({"name": "tool_call", "syntax": "xml"}, "use one of auto, json, python, hermes, action"),
        ({"name": "tool_call", "syntax": "json", "scorer": "paper_parity"}, "reads the syntax 'action' only"),
        ("no_such_module:f", "'no_such_module' cannot be imported .* have its folder on PYTHONPATH"),
        ("math:sqr", "math has no function 'sqr', did you mean 'sqrt'"),
        ("math:pi", "math has no function 'pi'"),
        ({"name": "math:sqrt", "timeout": 5}, "takes no options, got \\['timeout'\\]"),
        (5, "neither a callable, a name nor a mapping"),
    ],
)
def test_every_wrong_spec_says_what_is_right(spec, message):
    with pytest.raises(ValueError, match=message):
        resolve(spec)


def test_math_without_its_extra_is_found_before_training():
    code = "import sys; sys.modules['math_verify'] = None\nfrom pbsd.rewards import resolve\nresolve('math')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install pbsd[math]" in run.stderr


def test_callables_and_paths_are_returned_as_they_are():
    def own(completions, **columns):
        return [0.0 for _ in completions]

    assert resolve(own) is own
    assert resolve("pbsd.rewards.text:completion_text") is completion_text


def test_required_columns_of_a_plain_function():
    def own(prompts, completions, completion_ids, trainer_state, answer, *, level, hint=None, **columns):
        return [0.0 for _ in completions]

    class Callable:
        def __call__(self, completions, answer):
            return [0.0 for _ in completions]

    assert required_columns(own) == {"answer", "level"}
    assert required_columns(functools.partial(own, level=[1])) == {"answer"}
    assert required_columns(Callable()) == {"answer"}
    assert required_columns(lambda completions, **columns: [0.0]) == set()


def test_a_users_own_grader_runs_in_the_pool(closing):
    reward = closing(
        GradedReward("shape", "pbsd.rewards.format:grade", {"pattern": "shape"}, options={}, optional={"no": "no"})
    )
    assert reward.grades(["ab", "ab"], shape=["a.", "b."])[0] == Grade("correct", 1.0)
    assert reward(["ab", "ab"], shape=["a.", "b."]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "a"}], "a"),
        ([{"role": role, "content": role[0]} for role in ("assistant", "tool", "assistant")], "a\na"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "a"),
        ([{"role": "assistant", "content": None}], ""),
        (
            [{"role": "assistant", "content": "a", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}],
            'a\n<tool_call>\n{"name": "f"}\n</tool_call>',
        ),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], '<tool_call>\n{"name": "f"}\n</tool_call>'),
        ([], ""),
    ],
)
def test_the_text_of_a_completion(completion, text):
    assert completion_text(completion, 0) == text


@pytest.mark.parametrize(
    "completion",
    [
        None,
        5,
        ["a"],
        [{"content": "a"}],
        [{"role": "assistant", "content": 5}],
        [{"role": "assistant", "tool_calls": ["f"]}],
    ],
)
def test_what_is_not_a_completion_is_named_with_its_position(completion):
    with pytest.raises(ValueError, match="completion 3"):
        completion_text(completion, 3)


def test_only_the_text_after_the_thinking_is_final():
    assert final_text("answer") == "answer"
    assert final_text("a</think>b") == "b"  # the opening tag was in the prompt
    assert final_text("<think>a</think>b</think>c") == "c"
    assert final_text("<think>a") is None
    assert final_text("<think>a</think>b<think>c") is None


@pytest.mark.parametrize(
    ("outcome", "score"),
    [
        ("right", 1.0),
        ("correct", None),
        ("wrong", float("nan")),
        ("scored", float("inf")),
        ("timeout", 0.0),
        ("error", 0.0),
    ],
)
def test_a_grade_whose_score_does_not_fit_its_outcome_is_refused(outcome, score):
    with pytest.raises(ValueError, match=f"{outcome!r}"):
        Grade(outcome, score)
