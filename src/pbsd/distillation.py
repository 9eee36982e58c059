"""The divergence between teacher and student at every token of the student's samples: what OPSD, SDFT and SDPO learn,
and the KL of PBSD's direct term.

Never more than a chunk of logits exists: the teacher's distributions are kept as hidden states, and meet the student's
logits inside its forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pbsd.config import DistillationConfig
from pbsd.engine import Engine
from pbsd.logprobs import token_entropy
from pbsd.losses.divergence import (
    coarsen,
    divergence_terms,
    kl_student_teacher,
    kl_teacher_student,
    renormalized,
    reweighted_kl_teacher_student,
    sampled_kl_student_teacher,
)
from pbsd.records import Batch, Ids, Metrics
from pbsd.samples import student_rows
from pbsd.scoring import FrozenLogits, Scores, ScoringGroup, frozen_logits, frozen_scores, score


def distill(
    engine: Engine, model: nn.Module, batch: Batch, indices: Sequence[int], args: DistillationConfig, metrics: Metrics
) -> tuple[list[int], Scores, Tensor]:
    """Which rollout each row is, the student's scores, and the divergence at each token, [B, T] in nats: with gradient
    to the student, 0 where padded.

    `metrics` gets `health/teacher_entropy` and `teacher/token_kl`, KL(T || pi): means over the student's tokens, in
    nats, at temperature 1 and over the whole vocabulary whatever the options. By `sampled_token`, where whole
    distributions never meet, the latter is estimated from the tokens, as is `teacher/token_kl_student_teacher`."""
    groups, used = student_rows(batch, indices)
    if args.distillation_mode == "sampled_token":
        scores = score(model, groups, pad_id=engine.pad_id)
        teacher_BT, entropy_BT = (values.to(scores.logprobs_BT) for values in teacher_token_scores(engine, batch, used))
        own_BT = scores.mask_BT.bool()
        metrics.observe("health/teacher_entropy", entropy_BT[own_BT].tolist())
        estimate_BT = reweighted_kl_teacher_student(scores.logprobs_BT, teacher_BT)
        metrics.observe("teacher/token_kl", estimate_BT[own_BT].tolist())
        divergence_BT = sampled_kl_student_teacher(scores.logprobs_BT, teacher_BT)
        metrics.observe("teacher/token_kl_student_teacher", divergence_BT[own_BT].tolist())
        return used, scores, divergence_BT
    teacher = teacher_distributions(engine, batch, used)
    hidden_MD = torch.cat(teacher.hidden)
    measured: dict[int, tuple[Tensor, Tensor]] = {}

    def divergence(student_CV: Tensor, part: slice) -> Tensor:
        teacher_CV = teacher.logits(hidden_MD[part])
        if part.start not in measured:  # the backward pass computes the chunk once more
            measured[part.start] = _entropy_and_kl(student_CV, teacher_CV)
        return token_divergence(student_CV, teacher_CV, args)

    scores = score(model, groups, pad_id=engine.pad_id, token_function=divergence)
    assert scores.extra_BT is not None
    for entropy_C, kl_C in measured.values():
        metrics.observe("health/teacher_entropy", entropy_C.tolist())
        metrics.observe("teacher/token_kl", kl_C.tolist())
    return used, scores, scores.extra_BT


@torch.no_grad()
def _entropy_and_kl(student_CV: Tensor, teacher_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Of the teacher's distributions, and KL(T || pi), in nats, from logits; [C] each."""
    return token_entropy(teacher_CV), kl_teacher_student(student_CV.log_softmax(-1), teacher_CV.log_softmax(-1))


def token_divergence(student_CV: Tensor, teacher_CV: Tensor, args: DistillationConfig) -> Tensor:
    """The configured divergence of the two sides' tempered next-token distributions, from logits, [C, V] -> [C].

    `topk_logits` compares them on the student's most likely tokens, as TRL does.
    """
    student, teacher = ((logits / args.temperature).log_softmax(-1) for logits in (student_CV, teacher_CV))
    if args.distillation_mode == "topk_logits":
        k, vocabulary = args.distillation_topk or 0, student.shape[-1]
        if k > vocabulary:
            raise ValueError(f"distillation_topk is {k}, the vocabulary has {vocabulary} tokens: choose full_logits")
        ids = student.detach().topk(k, dim=-1).indices
        narrow = coarsen if args.distillation_add_tail else renormalized
        student, teacher = narrow(student, ids), narrow(teacher, ids)
    terms = divergence_terms(student, teacher, alpha=args.distillation_alpha)
    if args.distillation_entry_clip is not None:
        terms = terms.clamp(max=args.distillation_entry_clip)
    return terms.sum(-1)


def score_with_divergence(
    engine: Engine, model: nn.Module, batch: Batch, indices: Sequence[int]
) -> tuple[Batch, list[int], Scores]:
    """The student's scores of rollouts of both roles with, as `extra_BT`, KL(pi || T) over the vocabulary at the tokens
    of its own, with gradient, 0 at the teacher's (None if no sample is the student's); which rollout each row is; and
    the batch whose student samples have the teacher's log-probabilities, which its distributions give by the way."""
    groups, used = student_rows(batch, indices)
    rollouts = list(batch.rollouts)
    own = [index for index in used if rollouts[index].role == "student"]
    if not own:
        return batch, used, score(model, groups, pad_id=engine.pad_id)
    teacher = teacher_distributions(engine, batch, own)
    hidden_ND = torch.cat(teacher.hidden)
    ids = [token for index in own for token in rollouts[index].completion_ids]
    ids_N = torch.tensor(ids, device=hidden_ND.device)
    logprobs_N = torch.zeros(len(ids_N), device=hidden_ND.device)
    # Of the M scored tokens N are the student's own: which ones, and each one's place among the N.
    owned = [rollouts[index].role == "student" for index in used for _ in rollouts[index].completion_ids]
    is_own_M = torch.tensor(owned)
    place_M = is_own_M.cumsum(0) - 1

    def divergence(student_CV: Tensor, part: slice) -> Tensor:
        own_C = is_own_M[part].nonzero().squeeze(-1)
        place_C = place_M[part][own_C].to(hidden_ND.device)
        teacher_CV = teacher.logits(hidden_ND[place_C]).log_softmax(-1)
        logprobs_N[place_C] = teacher_CV.gather(-1, ids_N[place_C][:, None]).squeeze(-1)
        own_C = own_C.to(student_CV.device)
        kl_C = kl_student_teacher(student_CV[own_C].log_softmax(-1), teacher_CV)
        return kl_C.new_zeros(len(student_CV)).index_put((own_C,), kl_C)

    scores = score(model, groups, pad_id=engine.pad_id, token_function=divergence)
    lengths = [len(rollouts[index].completion_ids) for index in own]
    for index, logprobs in zip(own, logprobs_N.split(lengths), strict=True):
        rollouts[index] = replace(rollouts[index], teacher_logprobs=tuple(logprobs.tolist()))
    return replace(batch, rollouts=tuple(rollouts)), used, scores


def teacher_distributions(engine: Engine, batch: Batch, used: Sequence[int]) -> FrozenLogits:
    """The teacher's distribution at every token of the rollouts, in their order, under the teacher's prompts."""
    groups, order = teacher_rows(batch, used)
    with engine.acting("teacher") as module:
        frozen = frozen_logits(module, groups, pad_id=engine.pad_id, max_tokens=engine.args.scoring_batch_tokens)
    hidden = dict(zip(order, frozen.hidden, strict=True))
    return FrozenLogits(tuple(hidden[place] for place in range(len(used))), frozen.head)


def teacher_token_scores(engine: Engine, batch: Batch, used: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The teacher's log-probabilities of the rollouts' tokens, in their order, and its entropies there; [B, T], 0 where
    padded."""
    groups, order = teacher_rows(batch, used)
    with engine.acting("teacher") as module:
        parts = frozen_scores(module, groups, pad_id=engine.pad_id, max_tokens=engine.args.scoring_batch_tokens)

    def in_order(values: Literal["logprobs", "entropy"]) -> Tensor:
        rows = dict(zip(order, (row for scores in parts for row in scores.token_lists(values)), strict=True))
        return pad_sequence([torch.tensor(rows[place]) for place in range(len(used))], batch_first=True)

    return in_order("logprobs"), in_order("entropy")


def teacher_rows(batch: Batch, used: Sequence[int]) -> tuple[list[ScoringGroup], list[int]]:
    """The rollouts as groups under the teacher's prompt, each rollout's own where one was made for it, and the place in
    `used` of each of their completions."""
    members: dict[tuple[int, Ids], list[int]] = {}
    for place, index in enumerate(used):
        rollout = batch.rollouts[index]
        ids = rollout.teacher_prompt_ids or batch.prompts[rollout.prompt].teacher_ids
        members.setdefault((rollout.prompt, ids), []).append(place)
    groups = [
        ScoringGroup(ids, tuple(batch.rollouts[used[place]].completion_ids for place in places))
        for (_, ids), places in members.items()
    ]
    return groups, [place for places in members.values() for place in places]
