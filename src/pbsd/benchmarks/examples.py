"""A few rows of every table in its own schema, written for this library: for tests, and for looking at a recipe's
prompts where the hub cannot be reached. They are not rows of the data sets."""

from __future__ import annotations

from typing import Any

_RAW = dict[str, Any]


def _solved(problem: str, answer: str, **more: Any) -> _RAW:
    return {"problem": problem, "answer": answer, **more}


_SUM = "What is the sum of the first ten positive integers?"
_SUM_SOLUTION = "The integers pair off into five sums of 11, so the total is $5 \\cdot 11 = \\boxed{55}$."
_FRACTION = "A fair coin is tossed twice. What is the probability of two heads?"
_FRACTION_SOLUTION = "Each toss is a head with probability $\\frac12$, so the answer is $\\boxed{\\frac{1}{4}}$."
_REMAINDER = "What is the remainder when $2^{10}$ is divided by $1000$?"

_DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)


def _dapo(problem: str, answer: str) -> _RAW:
    return {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": _DAPO_PROMPT.format(problem)}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
    }


MATHEMATICS: dict[str, list[_RAW]] = {
    "gsm8k": [
        {
            "question": "A baker packs 48 rolls in boxes of 6 and sells each box for $9. What does she earn?",
            "answer": "She fills 48/6 = <<48/6=8>>8 boxes.\nShe earns 8*9 = $<<8*9=72>>72.\n#### 72",
        },
        {
            "question": "A hall has 35 rows of 40 seats. How many seats has it?",
            "answer": "It has 35*40 = <<35*40=1400>>1400 seats.\n#### 1,400",
        },
    ],
    "math500": [
        _solved(_SUM, "55", solution=_SUM_SOLUTION, subject="Algebra", level=1, unique_id="test/algebra/1.json"),
        _solved(
            _FRACTION, "\\frac{1}{4}", solution=_FRACTION_SOLUTION, subject="Counting & Probability", level=2,
            unique_id="test/counting_and_probability/2.json",
        ),
    ],
    "aime24": [_solved(_REMAINDER, "024", id=60, solution="$2^{10}=1024$, so the remainder is $24$.", year="2024")],
    "aime25": [_solved(_REMAINDER, "24", problem_idx=1), _solved(_SUM, "55", problem_idx=2)],
    "hmmt25": [_solved("Compute $\\sqrt{3}/3 + \\sqrt{3}/6$.", "\\frac{\\sqrt{3}}{2}", problem_idx=1)],
    "amc23": [{"id": 0, "question": _SUM, "answer": 55.0, "url": ""}],
    "minerva": [
        {"question": "A car covers 150 m in 10 s at constant speed. What is the speed in m/s?", "answer": "15"},
        {"question": "Write two thousand as a power of ten times a number below ten.", "answer": "2 \\times 10^{3}"},
    ],
    "openthoughts-math-30k": [
        {
            "problem": _SUM, "Question": _SUM, "solution": _SUM_SOLUTION, "Answer": "55", "COT_Reason": "",
            "source": "written", "correct": True,
        },
        {
            "problem": _FRACTION, "Question": _FRACTION, "solution": _FRACTION_SOLUTION, "Answer": "\\frac{1}{4}",
            "COT_Reason": "", "source": "written", "correct": True,
        },
    ],
    "dapo-math-17k": [_dapo(_REMAINDER, "24"), _dapo(_SUM, "55")],
    "dapo-math-17k-processed": [
        {"prompt": _REMAINDER, "solution": "24", "source_prompt": [], "data_source": "math_dapo"}
    ],
}  # fmt: skip

_TOOL_PROMPT = (
    "Your task is to answer the user's question using available tools.\n"
    "You have access to the following tools:\n"
    "Name: Weather\nDescription: Forecasts by place\n"
    'Documentation:\ngetForecast: Daily forecast. Parameters: {"city": "Required. String.", "days": "Integer."}\n\n'
    "Use the following format:\nThought: what to do\nAction: the action, one of [getForecast]\n"
    "Action Input: its JSON arguments\n\nBegin!\nQuestion: Will it rain in Lund over the next 3 days?"
)
_TOOL_CALL = 'Action: getForecast\nAction Input: {"city": "Lund", "days": 3}'

TOOLALPACA: dict[str, list[_RAW]] = {
    "train": [
        {
            "prompt": _TOOL_PROMPT,
            "instruction": "Will it rain in Lund over the next 3 days?",
            "golden_response": [f"Thought: I need the forecast of Lund.\n{_TOOL_CALL}"],
        }
    ],
    "test": [
        {
            "prompt": _TOOL_PROMPT,
            "instruction": "Will it rain in Lund over the next 3 days?",
            "golden_answer": [{"Action": "getForecast", "Action_Input": '{"city": "Lund", "days": 3}'}],
        }
    ],
}

_AREA = {
    "name": "area.rectangle",
    "description": "Area of a rectangle.",
    "parameters": {
        "type": "dict",
        "properties": {
            "width": {"type": "integer", "description": "Width in metres."},
            "height": {"type": "integer", "description": "Height in metres."},
            "unit": {"type": "string", "description": "Unit of the area.", "default": "m2"},
        },
        "required": ["width", "height"],
    },
}
_SPEED = {
    "name": "convert_speed",
    "description": "Convert a speed.",
    "parameters": {
        "type": "dict",
        "properties": {"value": {"type": "float"}, "to": {"type": "string"}},
        "required": ["value", "to"],
    },
}


def _question(identity: str, text: str, *functions: _RAW) -> _RAW:
    return {"id": identity, "question": [[{"role": "user", "content": text}]], "function": list(functions)}


def _area_call(width: int, height: int) -> _RAW:
    return {"area.rectangle": {"width": [width], "height": [height], "unit": ["m2", ""]}}


_SPEED_CALL = {"convert_speed": {"value": [10.0], "to": ["km/h", "kmh"]}}
_BOTH = "Area of a 3 m by 4 m room, and convert 10 m/s to km/h."

BFCL: dict[str, tuple[list[_RAW], list[list[_RAW]]]] = {
    "simple": ([_question("simple_python_0", "Area of a 3 m by 4 m room?", _AREA)], [[_area_call(3, 4)]]),
    "multiple": ([_question("multiple_0", "Convert 10 m/s to km/h.", _AREA, _SPEED)], [[_SPEED_CALL]]),
    "parallel": (
        [_question("parallel_0", "Areas of a 3 m by 4 m and a 2 m by 5 m room?", _AREA)],
        [[_area_call(3, 4), _area_call(2, 5)]],
    ),
    "parallel_multiple": ([_question("parallel_multiple_0", _BOTH, _AREA, _SPEED)], [[_area_call(3, 4), _SPEED_CALL]]),
    "irrelevance": ([_question("irrelevance_0", "Who wrote Faust?", _AREA)], [[]]),
}
"""Category -> its questions, and for each its accepted calls."""
