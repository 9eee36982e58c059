"""A study of seconds on the packaged base, and the command on it."""

import yaml

from pbsd.cli import main

STUDY = {
    "budget": {"generated_tokens": 600, "max_steps": 6},
    "train": {"problems": 32},
    "validation": {"problems": 6, "samples": 2, "every_tokens": 200},
    "test": {"problems": 8, "samples": 2},
    "checkpoint": "best_validation",
    "learning_rate_decay": "linear",
    "options": {"per_device_train_batch_size": 2, "learning_rate": 1e-3},
    "methods": {
        "pbsd": {
            "method": "pbsd",
            "options": {"num_generations": 1, "num_teacher_generations": 1, "teacher": "ema"},
            "tune": {"beta": [0.1, 1.0]},
        },
        "sft": {"method": "sft", "tune": {"learning_rate": [0.0, 1e-3]}},
    },
    "tuning": {"seeds": [7], "generated_tokens": 200, "trials": 2},
    "models": {"packaged": "lab/arithmetic-0.2m"},
    "cells": [{"tasks": ["arithmetic"], "worlds": ["dense"], "scales": ["packaged"], "seeds": [0, 1]}],
}


def write_study(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return folder


def compare(folder, *flags):
    words = ["compare", str(folder / "study.yaml"), "--work", str(folder / "work"), "--jobs", "1", "--save_steps", "2"]
    return main([*words, *flags])
