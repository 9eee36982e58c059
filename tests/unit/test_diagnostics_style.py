"""The style gap: its AUC against the definition, and that it is held out, balanced and resumable."""

import json
import math
import random

import numpy as np
import pytest

from pbsd.diagnostics.style import CAPACITY, MINIMUM, StyleGap, character_runs, rank_auc


def pair(row, chosen, rejected):
    return {"row": row, "chosen": {"text": chosen}, "rejected": {"text": rejected}}


def words(rng, count=12, letters="abcdefgh"):
    return " ".join("".join(rng.choices(letters, k=4)) for _ in range(count))


def test_auc_by_definition():
    rng = random.Random(0)
    positive, negative = ([rng.randrange(6) for _ in range(n)] for n in (9, 7))
    by_pairs = np.mean([(a > b) + 0.5 * (a == b) for a in positive for b in negative])
    assert rank_auc(positive, negative) == pytest.approx(by_pairs)


def test_runs_by_definition():
    """`abab` has the runs a, b, ab, ba, aba, bab: six of them, each worth 1 / sqrt(6)."""
    runs = np.sort(character_runs("abab"))
    assert runs[-6:] == pytest.approx(np.full(6, 1 / math.sqrt(6)))
    assert runs[:-6].sum() == 0
    assert character_runs("").sum() == 0
    assert not np.array_equal(character_runs("ab"), character_runs("ba"))
    assert np.isfinite(character_runs("\ud800")).all()


def gap_of(pairs):
    gap = StyleGap()
    gap.observe(pairs)
    return gap.auc()


def test_a_visible_style_is_found_and_none_is_not():
    rng = random.Random(1)
    marked = [pair(row, "So: " + words(rng) + ".", words(rng) + "!") for row in range(80)]
    assert gap_of(marked) > 0.99
    alike = [gap_of([pair(row, words(rng), words(rng)) for row in range(80)]) for _ in range(8)]
    assert np.mean(alike) == pytest.approx(0.5, abs=0.08)


def test_prompts_are_held_out():
    """The texts of a prompt's sides end in eight characters used nowhere else, the same in all its pairs: learnable
    only from pairs of that very prompt. Judged on prompts that the classifier has seen, it would tell them apart."""
    rng = random.Random(2)
    gap = StyleGap()
    signs = [
        ["".join(chr(0x4E00 + 20 * row + 10 * side + k) for k in range(8)) for side in (0, 1)] for row in range(41)
    ]
    for _ in range(6):
        gap.observe([pair(row, *(words(rng, 4) + sign for sign in signs[row])) for row in range(41)])
    assert gap.auc() == pytest.approx(0.5, abs=0.15)


def test_a_prompt_counts_once_a_step_however_many_its_pairs():
    rng = random.Random(3)
    gap = StyleGap()
    gap.observe([pair(0, words(rng), words(rng)) for _ in range(50)])
    assert len(gap.state_dict()["pairs"]) == 1
    gap.observe([{"row": 5, "text": "a record of a sample"}])
    assert len(gap.state_dict()["pairs"]) == 1


def test_too_few_prompts_give_no_figure():
    rng = random.Random(4)
    pairs = [pair(row, words(rng), words(rng)) for row in range(MINIMUM)]
    assert math.isnan(gap_of(pairs[1:]))
    assert math.isfinite(gap_of(pairs))


def test_the_newest_pairs_count_and_a_resumed_gap_goes_on_exactly():
    rng = random.Random(5)
    old = [pair(row, words(rng) + "?", words(rng)) for row in range(100)]
    new = [pair(row + 100, words(rng), words(rng)) for row in range(CAPACITY)]
    whole, resumed = StyleGap(), StyleGap()
    whole.observe(old)
    assert whole.auc() > 0.8
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert resumed.auc() == whole.auc()
    for gap in (whole, resumed):
        gap.observe(new)
    assert resumed.auc() == whole.auc() == gap_of(new)
