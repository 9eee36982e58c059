"""Run and study folders written by hand, so that every number on a page has a derivation."""

import gzip
import json
from pathlib import Path

BEFORE = (2, 4, 6, 4)
AFTER = (4, 4, 8, 8)
"""Correct samples of 8 on four problems. Accuracies .25 .5 .75 .5, mean .5, and .5 .5 1 1, mean .75. Their differences
.25 0 .25 .5 have the mean .25 and the deviation sqrt((.25^2 + .25^2) / 3) = .2041; so have the accuracies before. With
t(.975, 3) = 3.1824 the half width is 3.1824 * .2041 / 2 = .3248. Afterwards the deviation is sqrt(4 * .25^2 / 3) =
.2887, the half width .4594. On the logit scale they are .3248 / (.5 * .5) = 1.2992 about 0, so .2143 to .7857, and
.4594 / (.75 * .25) = 2.4501 about ln 3 = 1.0986, so .2056 to .9720."""


def problems(correct, greedy=None):
    return [
        {
            "row": row,
            "num_samples": 8,
            "num_correct": number,
            "num_unjudged": 0,
            "greedy_correct": number > 4 if greedy is None else greedy,
            "generated_tokens": 80,
        }
        for row, number in enumerate(correct)
    ]


def pair(step=1, row=0, *, chosen="good", rejected="bad", rewards=(1.0, 0.0), margin=0.5, **fields):
    sides = {
        name: {
            "text": text,
            "role": role,
            "reward": reward,
            "tokens": len(text.split()),
            "finished": True,
            "log_ratio": ratio,
        }
        for name, text, role, reward, ratio in (
            ("chosen", chosen, "teacher", rewards[0], -0.25),
            ("rejected", rejected, "student", rewards[1], 1.5),
        )
    }
    return {
        "step": step,
        "row": row,
        "prompt": f"Q: problem {row}",
        "privileged_context": f"context of {row}",
        **sides,
        "margin": margin,
        "label": 1.0,
        "swapped": False,
        "loss": 0.7,
        **fields,
    }


def sample(step=1, row=0, text="an answer", **fields):
    """As the methods without pairs write it."""
    return {
        "step": step,
        "row": row,
        "prompt": f"Q: problem {row}",
        "privileged_context": None,
        "text": text,
        "role": "student",
        "reward": 1.0,
        "tokens": 2,
        "finished": True,
        "advantage": 0.5,
        "loss": 0.1,
        **fields,
    }


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write_run(
    folder: Path,
    *,
    method="pbsd",
    seed=0,
    data="lab/arithmetic",
    samples=(),
    steps=6,
    curve=(),
    before=BEFORE,
    after=AFTER,
    alarms=None,
    options=None,
) -> Path:
    """A run as `pbsd train` leaves it; unfinished where `after` is None. `curve`: (step, accuracy) during training."""
    folder.mkdir(parents=True)
    config = {"dataset_name": data, "method": method, "max_steps": steps, "seed": seed}
    (folder / "config.yaml").write_text(json.dumps(config))  # YAML too
    manifest = {
        "method": method,
        "seeds": {"seed": seed, "data_seed": None, "eval_seed": 1234},
        "options": {"learning_rate": 0.001, "beta": 0.1, **(options or {})},
        "initial_weights_sha256": "0123abcd",
        "sessions": [{"started": "2026-01-01T00:00:00Z", "command": ["pbsd", "train"]}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    metrics = [
        {
            "step": step,
            "loss": 1.0 / step,
            "reward/student": 0.1 * step,
            "health/student_entropy": 0.3,
            "tokens/generated_total": 100 * step,
            "time/train_seconds": 2.0 * step,
        }
        for step in range(1, steps + 1)
    ]
    metrics += [{"step": step, "eval_accuracy": accuracy} for step, accuracy in curve]
    (folder / "metrics.jsonl").write_text(lines(sorted(metrics, key=lambda record: record["step"])))
    (folder / "samples.jsonl").write_text(lines(samples))
    if before is not None:
        (folder / "eval_before.json").write_text(json.dumps({"step": 0, "problems": problems(before)}))
    if after is not None:
        (folder / "eval_after.json").write_text(json.dumps({"step": steps, "problems": problems(after)}))
        summary = {"generated_tokens": 100 * steps, "seconds": 2.0 * steps, "steps": steps}
        (folder / "summary.json").write_text(json.dumps(summary))
    if alarms is not None:
        (folder / "alarms.jsonl").write_text(lines(alarms))
    return folder


def write_study(folder: Path, curves, results) -> Path:
    """`curves`: (method, world, seed) -> [(step, tokens, accuracy)]; `results`: the same -> correct of 4 by problem."""
    folder.mkdir(parents=True)
    fixed = {"task": "arithmetic", "scale": "0.2m"}
    rows = [
        {**fixed, "method": method, "world": world, "seed": seed, "step": step, "generated_tokens": tokens,
         "validation_accuracy": accuracy}
        for (method, world, seed), points in curves.items()
        for step, tokens, accuracy in points
    ]  # fmt: skip
    finals = [
        {**fixed, "method": method, "world": world, "seed": seed, "problem_id": place, "num_samples": 4,
         "num_correct": correct, "generated_tokens": 40}
        for (method, world, seed), counts in results.items()
        for place, correct in enumerate(counts)
    ]  # fmt: skip
    for name, content in (("curves.jsonl.gz", rows), ("results.jsonl.gz", finals)):
        (folder / name).write_bytes(gzip.compress(lines(content).encode(), mtime=0))
    (folder / "choices.json").write_text(json.dumps({"pbsd": {"learning_rate": 0.001}}))
    return folder


PLANNED = {
    # (method, world, seed): correct of 4 by problem, and the curve; sft generates nothing and has one seed
    ("pbsd", "dense", 2): ((4, 2, 2, 4), (0.2, 0.4, 0.5)), ("pbsd", "dense", 10): ((4, 2, 2, 4), (0.2, 0.4, 0.5)),
    ("opsd", "dense", 2): ((1, 2, 1, 0), (0.2, 0.6, 0.3)), ("opsd", "dense", 10): ((1, 2, 1, 0), (0.2, 0.6, 0.3)),
    ("sft", "dense", 2): ((0, 0, 0, 0), (0.2, 0.3, 0.2)),
}  # fmt: skip


def write_planned_study(folder: Path, finished=PLANNED, *, metrics=True) -> Path:
    """All files of `pbsd compare`, of a plan in which pbsd and opsd have one seed more in `dense`, and both and sft one
    in `sparse`. Curves have points at steps 0, 10 and 20, metrics between them; opsd has an alarm in each run."""
    fixed = {"task": "arithmetic", "scale": "0.2m"}
    spent = {key: (0, 0, 0) if key[0] == "sft" else (0, 1000, 2000) for key in finished}
    curves = {key: [*zip((0, 10, 20), spent[key], curve, strict=True)] for key, (_, curve) in finished.items()}
    write_study(folder, curves, {key: correct for key, (correct, _) in finished.items()})
    rows = [
        {**fixed, "method": method, "world": world, "seed": seed, "step": step, "loss": seed / step,
         **({} if method == "sft" else {"reward/student": seed / 10 + step / 100, "teacher/kl_teacher_student": 0.5})}
        for method, world, seed in finished
        for step in (10, 20)
    ]  # fmt: skip
    if metrics:
        (folder / "metrics.jsonl.gz").write_bytes(gzip.compress(lines(rows).encode(), mtime=0))
    methods = ("pbsd", "opsd", "sft")
    cell = {"tasks": ["arithmetic"], "worlds": ["dense"], "scales": ["0.2m"]}
    choices = {
        "study": {
            "methods": {name: {} for name in methods},
            "cells": [
                {**cell, "methods": methods[:2], "seeds": [2, 10, 11]},
                {**cell, "methods": methods, "seeds": [2]},
                {**cell, "worlds": ["sparse"], "methods": methods, "seeds": [2]},
            ],
            "budget": {"generated_tokens": 2000, "max_steps": 20},
            "test": {"problems": 4, "samples": 4},
            "checkpoint": "last",
        },
        "choices": [
            {"method": "pbsd", "task": "arithmetic", "world": "dense", "scale": "0.2m", "chosen": {"beta": 0.1},
             "trials": [{"options": {"beta": 0.1}, "validation_accuracy": 0.5}]}
        ],
        "runs": [
            {**fixed, "method": method, "world": world, "seed": seed, "key": "0abc", "steps": 20,
             "generated_tokens": spent[method, world, seed][-1], "ended_by": "steps", "tested_step": 20,
             "prompts_per_step": 2, "alarms": ["length_explosion"] if method == "opsd" else [],
             "versions": {"pbsd": "0.1.0", "git_revision": None}}
            for method, world, seed in finished
        ],
    }  # fmt: skip
    (folder / "choices.json").write_text(json.dumps(choices))
    return folder
