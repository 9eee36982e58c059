"""`pbsd pilot`: pairs of a teacher's and the student's samples with their scores, before any training."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pbsd.config import PBSDConfig, RolloutConfig
from pbsd.engine import group_by_prompt
from pbsd.progress import status
from pbsd.recipe import RunArguments
from pbsd.records import Role
from pbsd.run import build_trainer
from pbsd.scoring import score_frozen


def collect_pilot(run: RunArguments, config: RolloutConfig, out: Path, *, prompts: int) -> int:
    """Write the pairs of the first `prompts` training rows to `out`, one JSON object a line, and return their number.

    Pair k of a prompt is the teacher's k-th sample against the student's k-th, so pairs of a prompt are independent;
    there are min(num_teacher_generations, num_generations) of them. Nothing is left out: an unjudged reward is null.
    """
    if not isinstance(config, PBSDConfig):
        raise ValueError(f"a pilot is of PBSD's teacher and student; the recipe's method is {run.method}")
    trainer = build_trainer(run, config)
    engine, dataset = trainer.engine, trainer.train_dataset
    pairs_per_prompt = min(config.num_teacher_generations, config.num_generations)
    batch_size = config.per_device_train_batch_size
    counts: dict[Role, int] = {"teacher": pairs_per_prompt, "student": pairs_per_prompt}
    written = 0
    assert dataset is not None
    engine.student.eval()
    with status(f"sampling {prompts} prompts"), out.open("w", encoding="utf-8") as file, torch.no_grad():
        for start in range(0, min(prompts, len(dataset)), batch_size):
            batch = [dataset[row] for row in range(start, min(start + batch_size, prompts, len(dataset)))]
            rollouts = engine.sample(batch, counts, key=(config.seed, 0), params=config.sampling_params())
            rollouts, _ = engine.grade(batch, rollouts)
            rollouts, _ = engine.score_teacher(batch, rollouts, reuse=config.reuse_sampler_logprobs)
            groups, order = group_by_prompt(batch, rollouts, "student")
            rows = score_frozen(engine.student, groups, pad_id=engine.pad_id, max_tokens=config.scoring_batch_tokens)
            student = dict(zip(order, rows, strict=True))
            half = len(rollouts) // 2
            for index in range(half):
                record: dict[str, object] = {"prompt": batch[rollouts[index].prompt].row}
                for side, place in (("chosen", index), ("rejected", half + index)):
                    rollout = rollouts[place]
                    record |= {
                        f"student_logprob_{side}": sum(student[place]),
                        f"teacher_logprob_{side}": rollout.teacher_logprob,
                        f"reward_{side}": rollout.reward,
                        f"text_{side}": rollout.text,
                        f"completion_ids_{side}": list(rollout.completion_ids),
                    }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                written += 1
    return written
