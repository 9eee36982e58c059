"""Divergences of TRL's SDFT, SDPO, GKD and Distillation trainers: their functions and ours on the same logits."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from pbsd.losses.divergence import (
    coarsen,
    jensen_shannon,
    kl_student_teacher,
    kl_teacher_student,
    sampled_kl_student_teacher,
)

pytest.importorskip("trl")
sdft = pytest.importorskip("trl.experimental.sdft.loss_utils")
sdpo = pytest.importorskip("trl.experimental.sdpo.loss_utils")
gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
distillation = pytest.importorskip("trl.trainer.distillation_trainer")
sdft_trainer = pytest.importorskip("trl.experimental.sdft.sdft_trainer")

B, T, V = 3, 4, 50
WEIGHTS = [0.0, 0.2, 0.5, 0.9, 1.0]
SELF_DISTILLATION = pytest.mark.parametrize("loss_utils", [sdft, sdpo], ids=["sdft", "sdpo"])


def at(weight):
    """Our divergence at TRL's `beta` (GKD, Distillation) or `distillation_alpha` (SDFT, SDPO), the teacher's weight."""
    ends = {0.0: kl_teacher_student, 1.0: kl_student_teacher}
    return ends.get(weight) or partial(jensen_shannon, mixture=weight)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(B, T, V, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.fixture
def ids():
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def assert_same(ours, theirs, *inputs, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    for tensor in inputs:
        mine, other = (torch.autograd.grad(loss.sum(), tensor, retain_graph=True)[0] for loss in (ours, theirs))
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)


@SELF_DISTILLATION
@pytest.mark.parametrize("alpha", WEIGHTS)
def test_full_vocabulary_of_self_distillation(loss_utils, logits, alpha):
    student, teacher = logits[0].requires_grad_(), logits[1]
    theirs = loss_utils.compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=alpha)
    assert_same(at(alpha)(student.log_softmax(-1), teacher.log_softmax(-1)), theirs, student)


@SELF_DISTILLATION
@pytest.mark.parametrize("alpha", WEIGHTS)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_top_k_with_tail_of_self_distillation(loss_utils, logits, alpha, k):
    """TRL's local path keeps the student's own top k."""
    student, teacher = logits[0].requires_grad_(), logits[1]
    theirs = loss_utils.compute_topk_self_distillation_loss(
        student, teacher, distillation_topk=k, distillation_alpha=alpha, distillation_add_tail=True
    )
    top = student.topk(k, dim=-1).indices
    ours = at(alpha)(coarsen(student.log_softmax(-1), top), coarsen(teacher.log_softmax(-1), top))
    assert_same(ours, theirs, student)


@SELF_DISTILLATION
def test_sampled_tokens_of_self_distillation(loss_utils, logits, ids):
    """The same gradient. TRL's value is the log-ratio times log S, which estimates nothing; ours is the log-ratio."""
    student, teacher = logits[0].requires_grad_(), logits[1]
    theirs = loss_utils.compute_sampled_token_self_distillation_loss(student, teacher, ids, distillation_alpha=1.0)
    student_logprobs, teacher_logprobs = (
        side.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1) for side in (student, teacher)
    )
    ours = sampled_kl_student_teacher(student_logprobs, teacher_logprobs)
    mine, other = (torch.autograd.grad(loss.sum(), student, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, other)
    torch.testing.assert_close(ours * student_logprobs, theirs)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gkd(logits, weight, temperature):
    """Both sides are tempered, without a factor temperature^2; the mean is over all tokens of the batch."""
    student, teacher = logits[0].requires_grad_(), logits[1]
    labels = torch.where(MASK.bool(), 0, -100)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=weight, temperature=temperature)
    tokens = at(weight)((student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1))
    assert_same((tokens * MASK).sum() / MASK.sum(), theirs, student)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_chunked_kernel_of_the_distillation_trainer(weight):
    """From hidden states and the head's weights, in float32; gradient to both of the student's; mean over tokens."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    hidden, head = normal(B, T, 8).requires_grad_(), normal(V, 8).requires_grad_()
    teacher_hidden, teacher_head = normal(B, T, 8), normal(V, 8)
    theirs, _, _ = distillation._chunked_divergence_loss(
        hidden, teacher_hidden, head, teacher_head, MASK, weight, temperature=0.7
    )
    tokens = at(weight)(
        (hidden @ head.T / 0.7).log_softmax(-1), (teacher_hidden @ teacher_head.T / 0.7).log_softmax(-1)
    )
    assert_same((tokens * MASK).sum() / MASK.sum(), theirs, hidden, head, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["full_logits", "topk_logits", "sampled_token"])
def test_aggregation_of_sdft(logits, ids, mode):
    """The trainer's loss: the mean over sequences of each one's mean over tokens, times a clipped importance ratio."""
    student, teacher = logits[0].requires_grad_(), logits[1]
    pick = partial(torch.gather, dim=-1, index=ids[..., None])
    student_logprobs, teacher_logprobs = (side.log_softmax(-1) for side in (student, teacher))
    sampled, sampled_teacher = (pick(input=side).squeeze(-1) for side in (student_logprobs, teacher_logprobs))
    old = sampled.detach() - torch.linspace(-1, 1.5, B * T, dtype=torch.float64).view(B, T)
    configuration = SimpleNamespace(
        args=SimpleNamespace(
            distillation_mode=mode,
            distillation_topk=5,
            distillation_alpha=1.0,
            distillation_add_tail=True,
            distillation_is_clip=2.0,
            teacher_model_kind="base",
            use_vllm=False,
        ),
        accelerator=SimpleNamespace(gather=lambda value: value),
        _log_self_distillation_metric=lambda mode, value: None,
    )
    theirs = sdft_trainer.SDFTTrainer._compute_self_distillation_loss(
        configuration,
        SimpleNamespace(training=True),
        {"old_per_token_logps": old},
        SimpleNamespace(student_logits=student, teacher_logits=teacher, completion_ids=ids, loss_mask=MASK),
    )
    top = student.topk(5, dim=-1).indices
    tokens = {
        "full_logits": kl_student_teacher(student_logprobs, teacher_logprobs),
        "topk_logits": kl_student_teacher(coarsen(student_logprobs, top), coarsen(teacher_logprobs, top)),
        "sampled_token": sampled_kl_student_teacher(sampled, sampled_teacher),
    }[mode]
    ratio = (sampled.detach() - old).exp().clamp(max=2.0)
    ours = ((tokens * ratio * MASK).sum(1) / MASK.sum(1)).mean()
    mine, other = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, other)
    if mode != "sampled_token":
        torch.testing.assert_close(ours, theirs)


def test_differences():
    """What the table of docs/paper_map.md says is not the same, on logits masked for both sides."""
    masked = torch.tensor([0.0, 0.3, -math.inf])
    student, teacher = masked.clone().requires_grad_(), (2 * masked).requires_grad_()
    theirs = sdft.compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=1.0)
    ours = kl_student_teacher(student.log_softmax(-1), teacher.log_softmax(-1))
    assert theirs.isnan() and ours.isfinite()

    finite = student[:2], teacher[:2]
    theirs = sdft.compute_full_logit_self_distillation_loss(*finite, distillation_alpha=1.0)
    assert torch.autograd.grad(theirs, teacher, retain_graph=True)[0].abs().max() > 0
    ours = kl_student_teacher(*(side.log_softmax(-1) for side in finite))
    assert torch.autograd.grad(ours, teacher, allow_unused=True)[0] is None

    half = finite[0].detach().bfloat16()[None]
    assert sdft.compute_full_logit_self_distillation_loss(half, half, distillation_alpha=1.0).dtype == torch.bfloat16
    assert kl_student_teacher(half, half).dtype == torch.float32

    empty_tail = torch.zeros(1, dtype=torch.float64)
    theirs, ours = sdft.add_tail_bucket(empty_tail)[-1], coarsen(empty_tail, torch.tensor([0]))[-1]
    assert theirs.item() == pytest.approx(math.log(1e-7), rel=1e-6)
    assert ours.item() == pytest.approx(math.log(torch.finfo(torch.float64).eps))
