"""Options that were set and that nothing reads are refused: a run would not be the one that was asked for."""

import pytest

from pbsd.methods import METHODS

UNREAD = [
    ("opsd", {"ema_decay": 0.5}, {"teacher": "ema"}),
    ("pbsd", {"teacher_refresh_steps": 7}, {"teacher": "refreshed"}),
    ("pbsd", {"teacher_refresh_blend": 0.5}, {"teacher": "refreshed"}),
    ("pbsd", {"leakage_weight": 0.5}, {"leakage_guard": "downweight"}),
    ("pbsd", {"keep_ties": True, "preset": "published"}, {"pair_policy": "oriented"}),
    ("opsd", {"distillation_add_tail": True}, {"distillation_mode": "topk_logits", "distillation_topk": 5}),
    ("sdpo", {"feedback_column": "critique"}, {"include_environment_feedback": True}),
    (
        "sdpo",
        {"remove_thinking_from_demonstration": True, "use_successful_as_teacher": False,
         "include_environment_feedback": True},
        {"use_successful_as_teacher": True},
    ),
    ("grpo", {"use_bias_correction_kl": False}, {"beta": 0.1}),
    ("online_dpo", {"reward_scale": 2.0}, {"loss_type": "squared"}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "options", "reader"), UNREAD)
def test_an_option_that_nothing_reads(method, options, reader):
    config, name = METHODS[method][0], next(iter(options))
    with pytest.raises(ValueError, match=f"^{name}=.* is read with .* alone: leave it out"):
        config(use_cpu=True, **options)
    config(use_cpu=True, **{**options, **reader})


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_never_unread(method):
    METHODS[method][0](use_cpu=True)
