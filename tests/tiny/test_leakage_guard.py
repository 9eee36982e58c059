"""The leakage guard: losses with leaking teacher samples dropped or weighed down, against losses worked out without it.

The tiny model's random texts do not cite anything, so a letter stands for a citation.
"""

from dataclasses import replace

import pytest
import torch

from pbsd import PBSDConfig, RFTConfig
from pbsd.pairs import make_pairs
from pbsd.samples import score_student

LEAK = ["[a-m]"]


def leaking(rollout):
    return rollout.role == "teacher" and any("a" <= letter <= "m" for letter in rollout.text.casefold())


@pytest.fixture
def make_pbsd(make_trainer):
    def make(**options):
        defaults = {"loss_type": "squared", "pairing": "all", "num_teacher_generations": 3, "leakage_phrases": LEAK}
        return make_trainer(rewards=lengths, **{**defaults, **options})

    return make


def lengths(completions, **columns):
    return [len(completion) % 3 / 2 for completion in completions]


def collect(trainer):
    return trainer.method.collect(trainer.train_dataset.prompts[:6], 0)


def sequence_logprobs(trainer, batch):
    used, scores = score_student(trainer.engine, trainer.model, batch, range(len(batch.rollouts)))
    return dict(zip(used, scores.sequence_logprobs_B.tolist(), strict=True))


def loss_and_gradient(trainer, batch):
    trainer.model.zero_grad()
    loss, _, _ = trainer.method.loss(trainer.model, batch)
    (loss / trainer.method.weight(batch)).backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])


PROJECTIONS = {
    "pairs": {"nll_coef": 0.5},
    "group": {"preference_coef": 0.0, "group_coef": 1.0},
    "imitation": {"preference_coef": 0.0, "imitation_coef": 1.0},
    "mixed": {"nll_coef": 0.5, "group_coef": 0.3, "imitation_coef": 0.7, "direct_coef": 0.2},
}


@pytest.mark.parametrize("options", PROJECTIONS.values(), ids=PROJECTIONS)
def test_dropped_samples_might_never_have_been_drawn(make_pbsd, options):
    """Loss and gradient equal those of a batch from which the leaking samples were cut, with its own pairs."""
    trainer = make_pbsd(leakage_guard="drop", **options)
    guarded, metrics = collect(trainer)
    dropped = sum(map(leaking, guarded.rollouts))
    assert 0 < dropped < 18
    assert metrics.counts["teacher/leaking_dropped"] == dropped
    kept = tuple(rollout for rollout in guarded.rollouts if not leaking(rollout))
    pairs, _ = make_pairs(kept, pairing="all", pair_policy="all", needs_rewards=True)
    by_hand = replace(guarded, rollouts=kept, pairs=tuple(pairs), totals={"step": 0})
    totals = {**{name: float(n) for name, n in trainer.method._numbers(by_hand).items()}, "step": 0, "handover": 1.0}
    assert guarded.totals == totals
    everything, _ = make_pairs(guarded.rollouts, pairing="all", pair_policy="all", needs_rewards=True)
    assert metrics.counts["pairs/kept"] == len(pairs)
    assert metrics.counts["pairs/dropped_leaking"] == len(everything) - len(pairs)
    loss, gradient = loss_and_gradient(trainer, guarded)
    other_loss, other_gradient = loss_and_gradient(trainer, replace(by_hand, totals=totals))
    assert loss == pytest.approx(other_loss, rel=1e-5)
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-4, atol=1e-6)


def test_dropped_samples_still_count_as_generated(make_pbsd):
    plain, guarded = make_pbsd(), make_pbsd(leakage_guard="drop")
    for trainer in (plain, guarded):
        trainer.train()
    first = [next(entry for entry in trainer.state.log_history if "loss" in entry) for trainer in (plain, guarded)]
    assert first[0]["tokens/generated_total"] == first[1]["tokens/generated_total"]
    assert first[0]["reward/teacher"] == first[1]["reward/teacher"]
    assert first[0]["pairs/kept"] > first[1]["pairs/kept"]
    assert 0 < first[1]["teacher/leaking_dropped"] == round(first[1]["health/teacher_leakage"] * 12)


def test_weighed_down_pairs_by_definition(make_pbsd):
    """Every pair's loss and anchor times 0.3 per leaking side, over the number of all pairs."""
    plain, trainer = make_pbsd(nll_coef=0.0), make_pbsd(nll_coef=0.0, leakage_guard="downweight", leakage_weight=0.3)
    batch, metrics = collect(plain)
    _, _, records = plain.method.loss(plain.model, batch)
    guarded, guard_metrics = collect(trainer)
    weights = [0.3 ** sum(leaking(batch.rollouts[i]) for i in (pair.chosen, pair.rejected)) for pair in batch.pairs]
    assert set(weights) == {1.0, 0.3, 0.3**2}
    loss, _, guarded_records = trainer.method.loss(trainer.model, guarded)
    expected = [weight * record["loss"] for weight, record in zip(weights, records, strict=True)]
    assert [record["loss"] for record in guarded_records] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert loss.item() == pytest.approx(sum(expected), rel=1e-4)
    assert trainer.method.weight(guarded) == plain.method.weight(batch) == len(batch.pairs)
    assert guard_metrics.counts["teacher/leaking_downweighted"] == sum(map(leaking, batch.rollouts))
    assert "teacher/leaking_downweighted" not in metrics.counts

    trainer.args.nll_coef = 1.0
    anchored = trainer.method.loss(trainer.model, guarded)[0].item() - loss.item()
    policy = sequence_logprobs(trainer, batch)
    nll = [-policy[pair.chosen] / len(batch.rollouts[pair.chosen].completion_ids) for pair in batch.pairs]
    assert anchored == pytest.approx(sum(w * v for w, v in zip(weights, nll, strict=True)), rel=1e-4)


def test_weighed_down_imitation_by_definition(make_pbsd):
    """-sum_i v_i w_i log pi(y_i): v = softmax(reward / beta) over the prompt's teacher samples as without a guard."""
    trainer = make_pbsd(preference_coef=0.0, imitation_coef=1.0, leakage_guard="downweight", leakage_weight=0.3)
    batch, _ = collect(trainer)
    policy = sequence_logprobs(trainer, batch)
    expected = 0.0
    for prompt in range(6):
        own = [i for i, r in enumerate(batch.rollouts) if r.prompt == prompt and r.role == "teacher"]
        share = torch.tensor([batch.rollouts[i].reward / trainer.args.beta for i in own]).softmax(-1).tolist()
        expected -= sum(
            v * (0.3 if leaking(batch.rollouts[i]) else 1.0) * policy[i] for v, i in zip(share, own, strict=True)
        )
    loss, _, _ = trainer.method.loss(trainer.model, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("guard", ["drop", "downweight"])
def test_rejection_fine_tuning_by_definition(make_method, guard):
    """Rewarded samples, each distinct one once: without the leaking ones, or with a tenth of their likelihood over the
    tokens of all."""
    options = {"rft_source": "both", "leakage_phrases": LEAK, "num_generations": 3, "num_teacher_generations": 3}
    plain, trainer = (make_method("rft", leakage_guard=name, **options) for name in ("off", guard))
    batch, _ = collect(plain)
    _, _, records = plain.method.loss(plain.model, batch)
    guarded, metrics = collect(trainer)
    kept = plain.method.kept(batch)
    cites = [leaking(batch.rollouts[index]) for index in kept]
    assert any(cites) and not all(cites)
    values = dict(zip(sorted(kept, key=lambda i: batch.rollouts[i].prompt), (r["loss"] for r in records), strict=True))
    loss, _, _ = trainer.method.loss(trainer.model, guarded)
    if guard == "drop":
        assert metrics.counts["teacher/leaking_dropped"] > 0
        assert not any(leaking(guarded.rollouts[index]) for index in trainer.method.kept(guarded))
        assert metrics.counts["reward/dropped_leaking"] > 0
        assert trainer.method.weight(guarded) < plain.method.weight(batch)
    else:
        expected = sum((0.1 if leaking(batch.rollouts[index]) else 1.0) * value for index, value in values.items())
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert trainer.method.weight(guarded) == plain.method.weight(batch)
    total = metrics.counts["reward/dropped_unrewarded"] + metrics.counts["reward/dropped_leaking"]
    total += metrics.counts["reward/dropped_duplicate"] + len(trainer.method.kept(guarded))
    assert total == len(guarded.rollouts)


def test_when_every_teacher_sample_leaks_the_student_s_own_remain(make_pbsd):
    trainer = make_pbsd(leakage_guard="drop", leakage_phrases=["(?s:.*)"], pairing="cross")
    batch, metrics = collect(trainer)
    assert batch.pairs == ()
    assert metrics.counts["pairs/kept"] == 0
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (PBSDConfig, {"leakage_guard": "remove"}, "leakage_guard must be one of off, drop, downweight"),
        (PBSDConfig, {"leakage_guard": "drop", "num_teacher_generations": 0}, "none are drawn"),
        (PBSDConfig, {"leakage_guard": "downweight", "group_coef": 1.0}, "no meaning for group_coef"),
        (PBSDConfig, {"leakage_guard": "downweight", "leakage_weight": 0.0}, "for 0 choose drop"),
        (PBSDConfig, {"leakage_phrases": ["("]}, "is not a regular expression"),
        (RFTConfig, {"leakage_guard": "drop"}, "none are drawn"),
    ],
)
def test_refusals(tmp_path, config, options, words):
    with pytest.raises(ValueError) as caught:
        config(output_dir=str(tmp_path), use_cpu=True, **options)
    assert words in str(caught.value)
