"""Preference-Based Self-Distillation (arXiv 2605.05040).

The target is the teacher tilted by the reward, P*(y) proportional to T(y|x,c) exp(eta r(x,y) / beta). The student
learns it from teacher samples and its own fresh ones: with h(y) = beta [log pi(y|x) - log T(y|x,c)], the margin
h(y+) - h(y-) of every pair is moved towards what the rewards say of it. That is the paper's family, `preference`; three
other projections of the same target (docs/paper_map.md, 8) can take its place or join it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pbsd.config import PBSDConfig
from pbsd.config.pbsd import PROJECTIONS
from pbsd.distillation import score_with_divergence
from pbsd.engine import Engine
from pbsd.handover import Author, Handover, finish_teacher_samples, successes, successes_where_failing
from pbsd.losses.preference import group_log_variance_loss, preference_loss
from pbsd.losses.projection import direct_loss, imitation_loss, mixture_log_ratio
from pbsd.methods.method import EngineMethod
from pbsd.pairs import make_pairs
from pbsd.records import Batch, Metrics, Prompt, Role, Rollout, sampled_by_role
from pbsd.samples import (
    Loss,
    guard_leakage,
    log_ratios,
    no_loss,
    observe_pair,
    observe_student,
    pair_record,
    pair_weight,
    rollout_record,
    score_student,
)
from pbsd.scoring import Scores
from pbsd.teacher import Teacher


class PBSD(EngineMethod[PBSDConfig]):
    teacher: Teacher

    def __init__(self, args: PBSDConfig, engine: Engine) -> None:
        assert engine.teacher is not None, "PBSD needs a teacher"
        super().__init__(args, engine)
        self.handover = Handover()

    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        args, engine = self.args, self.engine
        rollouts, metrics = self._sample(prompts, step)
        rollouts, guard_metrics = guard_leakage(rollouts, args)
        metrics.merge(guard_metrics)
        if args.measures_handover:
            metrics.merge(self._observe_handover(prompts, rollouts, step))
        reuse = args.reuse_sampler_logprobs and not args.sampling_params().generation_kwargs
        # The direct term meets the teacher's distributions at the student's samples, and scores them by the way.
        only: Role | None = "teacher" if args.at_step("direct_coef", step) else None
        rollouts, scoring_metrics = engine.score_teacher(prompts, rollouts, reuse=reuse, only=only)
        metrics.merge(scoring_metrics)
        # Without a pair term in the objective too: margins and what tells the sides apart are watched in any run.
        pairs, dropped = make_pairs(
            rollouts,
            pairing=args.pairing,
            pair_policy=args.pair_policy,
            needs_rewards=args.loss_type != "logistic",
            keep_ties=args.keep_ties,
        )
        solved = [pair for pair in pairs if pair_weight(rollouts, pair)]
        batch = Batch(tuple(prompts), tuple(rollouts), tuple(solved))
        metrics.count("pairs/kept", len(solved))
        metrics.count("pairs/dropped_leaking", len(pairs) - len(solved))
        for reason in ("dropped_unjudged", "dropped_incorrect", "dropped_not_improving", "dropped_tie", "swapped"):
            metrics.count(f"pairs/{reason}", dropped[reason])
        for name in args.coef_schedule or ():
            metrics.observe(f"loss/{name}", [args.at_step(name, step)])
        totals = {name: float(sum(engine.gather([number]))) for name, number in self._numbers(batch).items()}
        return replace(batch, totals={"step": step, "handover": self.handover.value, **totals}), metrics

    def _sample(self, prompts: Sequence[Prompt], step: int) -> tuple[list[Rollout], Metrics]:
        args = self.args
        if not args.adaptive_generations:
            counts: dict[Role, int] = {"teacher": args.num_teacher_generations, "student": args.num_generations}
            return self.sample(prompts, {role: n for role, n in counts.items() if n}, step)
        first = args.first_generations
        rest = args.num_generations + args.num_teacher_generations - first

        def second(rollouts: Sequence[Rollout]) -> dict[Role, list[int]]:
            teacher = [
                _teacher_share([rollouts[i] for i in own], rest, self.handover.value)
                for own in _members(rollouts, len(prompts))
            ]
            return {"teacher": teacher, "student": [rest - n for n in teacher]}

        return self.sample(prompts, {"student": first}, step, then=second)

    def _observe_handover(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], step: int) -> Metrics:
        kept = [rollout for rollout in rollouts if rollout.weight]
        taught = {rollout.prompt for rollout in kept if rollout.role == "teacher"}
        asked = [rollout for rollout in kept if rollout.prompt in taught]  # success rates of the same prompts
        finished, tokens = finish_teacher_samples(self.engine, prompts, asked, step)
        by_role = dict(sampled_by_role(asked))
        samples: dict[Author, list[Rollout]] = {
            "student": by_role.get("student", []),
            "teacher": by_role.get("teacher", []),
            "both": finished,
        }
        is_weighed = self.args.imitation_gate == "failing_handover"
        found = successes_where_failing(samples, self.args.first_generations) if is_weighed else successes(samples)
        self.handover.observe({author: self.engine.gather(own) for author, own in found.items()})
        metrics = Metrics()
        metrics.observe("teacher/handover_success", [rate for _, rate in successes({"both": finished})["both"]])
        metrics.observe("teacher/handover", [self.handover.value])
        metrics.count("tokens/handover", tokens)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "handover": self.handover.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if "handover" in state:
            self.handover.load_state_dict(state["handover"])

    def weight(self, batch: Batch) -> float:
        unit = self._unit(batch)
        return 0.0 if unit is None else self._numbers(batch)[unit]

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        coefs = self._coefs(batch)
        if any(coefs[name] for name in PROJECTIONS[1:]):
            indices = [index for index, rollout in enumerate(batch.rollouts) if rollout.weight]
        else:
            indices = sorted({index for pair in batch.pairs for index in (pair.chosen, pair.rejected)})
        if not indices:
            return no_loss(self.engine, model, batch)
        here = self._numbers(batch)
        if coefs["direct"]:
            batch, used, scores = score_with_divergence(self.engine, model, batch, indices)
        else:
            used, scores = score_student(self.engine, model, batch, indices)
        rows = _Rows(batch, used, scores)
        numbers = batch.totals or here
        unit = self._unit(batch)
        metrics = Metrics()
        loss = rows.scores.sequence_logprobs_B.sum() * 0.0
        terms = {
            "preference": self._preference,
            "nll": self._nll,
            "group": self._group,
            "imitation": self._imitation,
            "direct": self._direct,
        }
        values: dict[str, Tensor] = {}
        for name, term in terms.items():
            counted_as = "preference" if name == "nll" else name
            if here[counted_as] and (coefs[name] or counted_as == "preference"):
                values[name] = term(rows)
                metrics.observe(f"loss/{name}", values[name].tolist())
                if coefs[name] and unit is not None:
                    # The trainer divides by the unit's number: left is the coefficient times the term's own mean.
                    loss = loss + coefs[name] * values[name].sum() * (numbers[unit] / numbers[counted_as])

        metrics.count("tokens/trained", rows.scores.mask_BT.sum().item())
        ratios = log_ratios(self.engine, batch, rows.used, rows.scores, against="teacher")
        samples = self._pair_records(metrics, batch, ratios, values["preference"]) if batch.pairs else []
        paired = {index for pair in batch.pairs for index in (pair.chosen, pair.rejected)}
        samples += [rollout_record(batch, index, **ratios[index]) for index in rows.used if index not in paired]
        observe_student(metrics, batch, rows.used, rows.scores)
        return loss, metrics, samples

    # The terms: a value per pair, prompt or student sample

    def _preference(self, rows: _Rows) -> Tensor:
        chosen_B, rejected_B = rows.pair_rows()
        labels_B = rows.policy_B.new_tensor([pair.label for pair in rows.batch.pairs])
        smoothing_B = (1.0 - labels_B) + self.args.label_smoothing * (2.0 * labels_B - 1.0)
        return rows.pair_weight_B * preference_loss(
            rows.policy_B[chosen_B],
            rows.policy_B[rejected_B],
            rows.teacher_B[chosen_B],
            rows.teacher_B[rejected_B],
            beta=self.args.beta,
            loss=self.args.loss_type,
            reward_chosen_B=rows.reward_B[chosen_B],
            reward_rejected_B=rows.reward_B[rejected_B],
            reward_scale=self._reward_scale(rows.batch),
            label_smoothing=smoothing_B,
        )

    def _nll(self, rows: _Rows) -> Tensor:
        chosen_B, _ = rows.pair_rows()
        return rows.pair_weight_B * (-rows.policy_B / rows.scores.mask_BT.sum(-1))[chosen_B]

    def _group(self, rows: _Rows) -> Tensor:
        rows_PG, mask_PG = rows.by_prompt(rows.judged(), at_least=2)
        return group_log_variance_loss(
            rows.policy_B[rows_PG],
            rows.teacher_B[rows_PG],
            rows.reward_B[rows_PG],
            mask_PG,
            beta=self.args.beta,
            reward_scale=self._reward_scale(rows.batch),
        )

    def _imitation(self, rows: _Rows) -> Tensor:
        args = self.args
        is_union = args.imitation_from == "union"
        rows_PG, mask_PG = rows.by_prompt(rows.judged(None if is_union else "teacher"), at_least=1)
        share_B = rows.weight_B * (rows.failure_B if args.imitation_prompts == "failing" else 1.0)
        return imitation_loss(
            (share_B * rows.policy_B)[rows_PG],  # linear in it: each sample's share of the term
            rows.reward_B[rows_PG],
            mask_PG,
            beta=args.beta,
            reward_scale=self._reward_scale(rows.batch),
            log_ratio_BG=rows.log_ratio_to_mixture_B[rows_PG] if is_union else None,
            reward_max=args.reward_max if args.imitation_weights == "exact" else None,
        )

    def _direct(self, rows: _Rows) -> Tensor:
        own_B = torch.tensor(rows.judged("student"), dtype=torch.long, device=rows.policy_B.device)
        assert rows.scores.extra_BT is not None
        return direct_loss(
            rows.scores.logprobs_BT[own_B],
            rows.scores.extra_BT[own_B],
            rows.scores.mask_BT[own_B],
            rows.reward_B[own_B],
            torch.tensor([rows.batch.rollouts[rows.used[row]].prompt for row in own_B.tolist()], device=own_B.device),
            beta=self.args.beta,
            reward_scale=self._reward_scale(rows.batch),
            kl_gradient=self.args.direct_kl_gradient,
        )

    # How the terms are scored and weighed

    def _coefs(self, batch: Batch) -> dict[str, float]:
        step = int(batch.totals.get("step", 0))
        coefs = {name: self.args.at_step(f"{name}_coef", step) for name in (*PROJECTIONS, "nll")}
        return {**coefs, "imitation": coefs["imitation"] * batch.totals.get("handover", 1.0)}

    def _reward_scale(self, batch: Batch) -> float:
        return self.args.at_step("reward_scale", int(batch.totals.get("step", 0)))

    def _numbers(self, batch: Batch) -> dict[str, float]:
        """How many values each projection is a mean of."""
        judged = [0] * len(batch.prompts)
        teacher = [0] * len(batch.prompts)
        own = 0
        for rollout in batch.rollouts:
            if rollout.reward is not None and rollout.weight:
                judged[rollout.prompt] += 1
                teacher[rollout.prompt] += rollout.role == "teacher"
                own += rollout.role == "student"
        imitated = judged if self.args.imitation_from == "union" else teacher
        return {
            "preference": len(batch.pairs),
            "group": sum(number >= 2 for number in judged),
            "imitation": sum(number >= 1 for number in imitated),
            "direct": own,
        }

    def _unit(self, batch: Batch) -> str | None:
        """Whose number the trainer divides by: the first projection in use that has any in this step."""
        coefs, numbers = self._coefs(batch), batch.totals or self._numbers(batch)
        coefs["preference"] += coefs["nll"]  # a mean over pairs as well
        return next((name for name in PROJECTIONS if coefs[name] and numbers[name]), None)

    def _pair_records(
        self, metrics: Metrics, batch: Batch, ratios: Mapping[int, Mapping[str, Any]], loss_B: Tensor
    ) -> list[dict[str, Any]]:
        samples = []
        for pair, loss in zip(batch.pairs, loss_B.tolist(), strict=True):
            sides = ratios[pair.chosen]["log_ratio"], ratios[pair.rejected]["log_ratio"]
            margin = self.args.beta * (sides[0] - sides[1])
            observe_pair(metrics, batch, pair, sides, margin, against="teacher")
            samples.append(pair_record(batch, pair, ratios, margin, loss))
        return samples


@dataclass(frozen=True, slots=True)
class _Rows:
    """Scored rollouts: which each row is, and tensors over the rows. An unjudged reward is NaN."""

    batch: Batch
    used: list[int]
    scores: Scores

    @property
    def policy_B(self) -> Tensor:
        return self.scores.sequence_logprobs_B

    @property
    def teacher_B(self) -> Tensor:
        return self.policy_B.new_tensor([self.batch.rollouts[index].teacher_logprob for index in self.used])

    @property
    def reward_B(self) -> Tensor:
        rewards = [self.batch.rollouts[index].reward for index in self.used]
        return self.policy_B.new_tensor([float("nan") if reward is None else reward for reward in rewards])

    @property
    def weight_B(self) -> Tensor:
        return self.policy_B.new_tensor([self.batch.rollouts[index].weight for index in self.used])

    @property
    def _members(self) -> list[list[int]]:
        return _members(self.batch.rollouts, len(self.batch.prompts))

    @property
    def failure_B(self) -> Tensor:
        """Share of the student's samples of the row's prompt, the row itself left out, that are not correct; 1 where
        there are none. Independent of the row, so a weight that leaves the row's target where it is."""
        rollouts, members = self.batch.rollouts, self._members

        def failure(index: int) -> float:
            own = members[rollouts[index].prompt]
            return _failing([rollouts[i] for i in own if i != index and rollouts[i].role == "student"], unknown=1.0)

        return self.policy_B.new_tensor([failure(index) for index in self.used])

    @property
    def log_ratio_to_mixture_B(self) -> Tensor:
        """log T - log q, q the mixture of teacher and student that the prompt's samples come from."""
        rollouts = self.batch.rollouts
        taught = [[rollouts[index].role == "teacher" for index in own] for own in self._members]
        fractions = [sum(own) / max(len(own), 1) for own in taught]
        fraction_B = self.policy_B.new_tensor([fractions[rollouts[index].prompt] for index in self.used])
        return mixture_log_ratio(self.teacher_B, self.policy_B, teacher_fraction=fraction_B)

    @property
    def pair_weight_B(self) -> Tensor:
        return self.policy_B.new_tensor([pair_weight(self.batch.rollouts, pair) for pair in self.batch.pairs])

    def pair_rows(self) -> tuple[Tensor, Tensor]:
        """Rows of the chosen and of the rejected side of every pair."""
        place = {index: row for row, index in enumerate(self.used)}
        sides = zip(*((place[pair.chosen], place[pair.rejected]) for pair in self.batch.pairs), strict=True)
        chosen_B, rejected_B = (torch.tensor(side, device=self.scores.logprobs_BT.device) for side in sides)
        return chosen_B, rejected_B

    def judged(self, role: Role | None = None) -> list[int]:
        """Rows of judged rollouts, of one role or of all."""
        return [
            row
            for row, index in enumerate(self.used)
            if self.batch.rollouts[index].reward is not None and role in (None, self.batch.rollouts[index].role)
        ]

    def by_prompt(self, members: Sequence[int], *, at_least: int) -> tuple[Tensor, Tensor]:
        """Rows as a table, a line per prompt with enough of them, and where it is filled, [P, G]."""
        lines: dict[int, list[int]] = {}
        for row in members:
            lines.setdefault(self.batch.rollouts[self.used[row]].prompt, []).append(row)
        kept = [line for line in lines.values() if len(line) >= at_least]
        width = max(map(len, kept), default=1)
        device = self.scores.logprobs_BT.device
        rows_PG = torch.tensor([line + line[:1] * (width - len(line)) for line in kept], device=device)
        mask_PG = torch.tensor([[place < len(line) for place in range(width)] for line in kept], device=device)
        return rows_PG.view(-1, width).long(), mask_PG.view(-1, width).bool()


def _members(rollouts: Sequence[Rollout], prompts: int) -> list[list[int]]:
    """Which rollouts each prompt has."""
    members: list[list[int]] = [[] for _ in range(prompts)]
    for index, rollout in enumerate(rollouts):
        members[rollout.prompt].append(index)
    return members


def _failing(rollouts: Sequence[Rollout], *, unknown: float) -> float:
    """Share of the judged that are not correct; `unknown` where none is judged."""
    failed = [not rollout.correct for rollout in rollouts if rollout.correct is not None]
    return sum(failed) / len(failed) if failed else unknown


def _teacher_share(first: Sequence[Rollout], rest: int, handover: float) -> int:
    """How many of a prompt's remaining completions the teacher writes: the share of the student's first ones that
    fail, half where none could be judged, times the handover, and at least one."""
    return max(1, round(_failing(first, unknown=0.5) * handover * rest))
