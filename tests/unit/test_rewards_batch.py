"""Several reward functions on a batch: sums derived by hand, and every bad return a user's function can give."""

import functools

import pytest

from pbsd.rewards import Grade, GradedReward, score


def run(*rewards, weights=None, size=3, columns=None, **options):
    return score(
        list(rewards),
        weights,
        prompts=[f"p{i}" for i in range(size)],
        completions=[f"c{i}" for i in range(size)],
        completion_ids=[[i] for i in range(size)],
        columns=columns or {},
        **options,
    )


def gives(*values):
    """A reward function that returns `values` whatever it is asked."""

    def fixed(completions, **columns):
        return list(values)

    return fixed


class Fixed(GradedReward):
    """Grades without a process."""

    def __init__(self, name, *grades):
        super().__init__(name, "no:grader", {})
        self.fixed = list(grades)

    def grades(self, completions, **columns):
        return self.fixed


def test_the_total_is_the_weighted_sum_over_the_scores_that_exist():
    """Row 0: 2 * 1 + 0.5 * 4 = 4. Row 1: only the second speaks, 0.5 * 2 = 1. Row 2: nobody does."""
    scores = run(gives(1, None, None), gives(4.0, 2, None), weights=[2, 0.5])
    assert scores.total == [4.0, 1.0, None]
    assert scores.by_function["fixed"] == [Grade("scored", 1.0), Grade("unjudged", None), Grade("unjudged", None)]
    assert scores.outcomes == {"fixed/scored": 1, "fixed/unjudged": 2, "fixed_2/scored": 2, "fixed_2/unjudged": 1}


def test_weights_are_one_by_default_and_truth_values_are_numbers():
    assert run(gives(True, False, 1), gives(1, 2, 3)).total == [2.0, 2.0, 4.0]


def test_no_reward_function_knows_nothing():
    assert run().total == [None, None, None]


def test_a_timeout_or_error_makes_the_total_unknown_and_not_low():
    graded = Fixed("math", Grade("correct", 1.0), Grade("timeout", None), Grade("error", None, "why"))
    scores = run(graded, gives(10, 10, 10))
    assert scores.total == [11.0, None, None]
    assert scores.outcomes == {"math/correct": 1, "math/timeout": 1, "math/error": 1, "fixed/scored": 3}
    # A function that only watches, with weight 0, spoils nothing.
    assert run(graded, gives(10, 10, 10), weights=[0, 1]).total == [10.0, 10.0, 10.0]


def test_unparsed_is_zero_but_counted_apart_from_wrong():
    scores = run(Fixed("math", Grade("wrong", 0.0), Grade("unparsed", 0.0), Grade("correct", 1.0)))
    assert scores.total == [0.0, 0.0, 1.0]
    assert scores.outcomes == {"math/wrong": 1, "math/unparsed": 1, "math/correct": 1}


def test_a_real_grader_in_the_pool():
    reward = GradedReward("shape", "pbsd.rewards.format:grade", {"pattern": "shape"})
    assert run(reward, columns={"shape": ["c0", "c0", "c."]}).total == [1.0, 0.0, 1.0]
    reward.close()


def test_equal_names_get_a_suffix_that_is_free():
    def fixed_2(completions, **columns):
        return [0] * len(completions)

    assert list(run(gives(1, 1, 1), fixed_2, gives(2, 2, 2)).by_function) == ["fixed", "fixed_2", "fixed_3"]
    assert list(run(functools.partial(fixed_2)).by_function) == ["fixed_2"]


def test_a_function_gets_trls_arguments():
    seen = {}

    def everything(**arguments):
        seen.update(arguments)
        return [0] * 3

    def named(completions, answer):
        seen["named"] = (completions, answer)
        return [0] * 3

    run(everything, named, columns={"answer": [7, 8, 9]}, extras={"trainer_state": "state"})
    assert callable(seen.pop("log_metric")) and callable(seen.pop("log_extra"))
    assert seen == {
        "prompts": ["p0", "p1", "p2"],
        "completions": ["c0", "c1", "c2"],
        "completion_ids": [[0], [1], [2]],
        "answer": [7, 8, 9],
        "trainer_state": "state",
        "named": (["c0", "c1", "c2"], [7, 8, 9]),
    }


MEND = r"return a list of len\(completions\)"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], "'bad' returned 2 values for 3 completions"),
        ([1.0] * 4, "'bad' returned 4 values for 3 completions"),
        ([1.0, "2.0", 1.0], r"'bad' returned '2.0' \(str\) at position 1"),
        ([1.0, 1.0, float("nan")], r"'bad' returned nan \(float\) at position 2"),
        ([float("inf"), 1.0, 1.0], r"'bad' returned inf \(float\) at position 0"),
        ([1.0, [1.0], 1.0], r"'bad' returned \[1.0\] \(list\) at position 1"),
        ([1.0, 1j, 1.0], r"'bad' returned 1j \(complex\) at position 1"),
        ([1.0, 10**400, 1.0], r"\(int\) at position 1"),
        (1.0, "'bad' returned float 1.0"),
        (None, "'bad' returned NoneType None"),
        ((1.0, 1.0, 1.0), "'bad' returned tuple"),
        ("abc", "'bad' returned str 'abc'"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "'bad' returned dict"),
    ],
)
def test_every_bad_return_names_the_function_the_place_and_the_mend(returned, message):
    def bad(completions, **columns):
        return returned

    with pytest.raises(ValueError, match=f"{message}.*; {MEND}"):
        run(bad)


def test_rows_that_raise_are_errors_and_the_others_keep_their_value():
    def picky(completions, answer, **columns):
        return [1 / a for a in answer]

    scores = run(picky, gives(1, 1, 1), columns={"answer": [2, 0, 4]})
    assert scores.total == [1.5, None, 1.25]
    assert scores.by_function["picky"][1] == Grade("error", None, "ZeroDivisionError: division by zero")
    assert "judged alone; the whole batch raised ZeroDivisionError" in scores.by_function["picky"][0].reason
    assert scores.outcomes["picky/error"] == 1


def test_in_rows_too_a_bad_return_is_refused():
    def picky(completions, **columns):
        if len(completions) > 1 or completions == ["c0"]:
            raise KeyError("x")
        return [float("nan")] if completions == ["c2"] else [1.0]

    with pytest.raises(ValueError, match=r"'picky' returned nan .* at position 2"):
        run(picky)


def test_a_function_that_raises_on_every_row_stops_the_run():
    def broken(completions, **columns):
        raise KeyError("score")

    with pytest.raises(ValueError, match=r"'broken' raised KeyError: 'score' .* 3 rows; mend the function") as caught:
        run(broken)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_interrupt_is_not_an_error_of_the_function():
    def interrupted(completions, **columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [1.0, 2.0]}, "2 reward weights for 1 reward functions"),
        ({"weights": [float("nan")]}, "reward weight 0 is nan"),
        ({"weights": ["1"]}, "reward weight 0 is '1'"),
        ({"columns": {"answer": [1, 2]}}, "'answer' has 2 values for 3 completions"),
        ({"columns": {"completions": [1, 2, 3]}}, "column 'completions' has the name of an argument"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(gives(1, 1, 1), **arguments)


def test_a_missing_column_is_named_before_the_call():
    def own(completions, answer, level):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=r"'own' needs the columns \['level'\]; the data has \['answer'\]"):
        run(own, columns={"answer": [1, 2, 3]})
