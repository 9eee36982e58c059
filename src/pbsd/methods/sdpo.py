"""Self-distillation policy optimisation, SDPO.

The student samples a group per prompt. For each sample the teacher is prompted anew: with the first sibling that
succeeded, and with feedback where the row has some. The student is drawn to that teacher at the tokens of its own
sample. A sample that has neither sibling nor feedback, or whose new prompt is over the teacher's budget, is not learnt
from, yet counts in the mean, as in TRL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from pbsd.config import SDPOConfig
from pbsd.distillation import distill
from pbsd.engine import Engine
from pbsd.methods.method import EngineMethod
from pbsd.records import Batch, Ids, Metrics, Prompt, Rollout
from pbsd.render import OverlongError
from pbsd.samples import Loss, no_loss, observe_student, rollout_record
from pbsd.templates import compile_template, template_variables


class SDPO(EngineMethod[SDPOConfig]):
    def __init__(self, args: SDPOConfig, engine: Engine) -> None:
        super().__init__(args, engine)
        compile_template(args.reprompt_template, "reprompt_template")
        if "prompt" not in template_variables(args.reprompt_template):
            raise ValueError("reprompt_template leaves out the problem: write {{ prompt }} in it")

    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        rollouts, metrics = self.sample(prompts, {"student": self.args.num_generations}, step)
        successes: list[list[int]] = [[] for _ in prompts]
        for index, rollout in enumerate(rollouts):
            if rollout.reward is not None and rollout.reward >= self.args.success_threshold:
                successes[rollout.prompt].append(index)
        metrics.observe("reward/group_success", [bool(indices) for indices in successes])
        reprompted = [
            replace(rollout, teacher_prompt_ids=self._reprompt(prompts, rollouts, index, successes, metrics))
            for index, rollout in enumerate(rollouts)
        ]
        metrics.observe("teacher/reprompted", [bool(rollout.teacher_prompt_ids) for rollout in reprompted])
        return Batch(tuple(prompts), tuple(reprompted)), metrics

    def weight(self, batch: Batch) -> float:
        """All completions, also those that are not learnt from: the loss is the mean of their means over tokens."""
        return float(len(batch.rollouts))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        learnt = [index for index, rollout in enumerate(batch.rollouts) if rollout.teacher_prompt_ids]
        if not learnt:
            return no_loss(self.engine, model, batch)
        metrics = Metrics()
        used, scores, divergence_BT = distill(self.engine, model, batch, learnt, self.args, metrics)
        loss_B = divergence_BT.sum(-1) / scores.mask_BT.sum(-1)

        metrics.observe("loss/divergence", loss_B.tolist())
        metrics.count("tokens/trained", scores.mask_BT.sum().item())
        observe_student(metrics, batch, used, scores)
        decode = self.engine.tokenizer.decode
        samples = [
            rollout_record(
                batch, index, loss=value, teacher_prompt=decode(list(batch.rollouts[index].teacher_prompt_ids))
            )
            for index, value in zip(used, loss_B.tolist(), strict=True)
        ]
        return loss_B.sum(), metrics, samples

    def _reprompt(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        index: int,
        successes: Sequence[Sequence[int]],
        metrics: Metrics,
    ) -> Ids:
        """The teacher's prompt for a sample; empty where there is nothing to show or it is too long."""
        args, prompt = self.args, prompts[rollouts[index].prompt]
        shown = [
            place
            for place in successes[rollouts[index].prompt]
            if args.use_successful_as_teacher and not (args.dont_reprompt_on_self_success and place == index)
        ]
        solution = rollouts[shown[0]].text if shown else ""
        if args.remove_thinking_from_demonstration:
            solution = re.sub(r"<think>.*?</think>", "", solution, flags=re.DOTALL).strip()
        feedback = prompt.columns.get(args.feedback_column)
        wanted = args.include_environment_feedback and not (args.environment_feedback_only_without_solution and shown)
        if not (wanted and isinstance(feedback, str) and feedback.strip()):
            feedback = ""
        if not (shown or feedback):
            return ()
        try:
            ids = self.engine.renderer.reprompt(prompt, args.reprompt_template, solution=solution, feedback=feedback)
        except OverlongError:
            metrics.count("teacher/reprompt_overlong")
            return ()
        metrics.count("teacher/feedback_used", bool(feedback))
        return ids
