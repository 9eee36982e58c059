"""Evidence for PBSD's default objective: a grid on the lab's arithmetic, read on the VALIDATION split only.

    python studies/defaults/run.py --shard 0/2 & python studies/defaults/run.py --shard 1/2 &

A run is 200 steps with warm-up and cosine decay; a step is 16 prompts x (4 + 4) samples of the packaged base model, so
all runs generate about as many tokens. Resumable: a run that results.jsonl holds is not done again. `--table` prints
what was found.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from pbsd import PBSDConfig, PBSDTrainer
from pbsd.accuracy import paired_difference
from pbsd.lab import arithmetic

RESULTS = Path(__file__).with_name("results.jsonl")

ORIENTED_UNION = {"pairing": "all", "pair_policy": "oriented"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "logistic, cross (paper)": {"loss_type": "logistic"},
    "logistic, cross, oriented": {"loss_type": "logistic", "pair_policy": "oriented"},
    "logistic, union, oriented": {"loss_type": "logistic", **ORIENTED_UNION},
    "bradley_terry, cross": {"loss_type": "bradley_terry"},
    "bradley_terry, union": {"loss_type": "bradley_terry", "pairing": "all"},
    "squared, union": {"loss_type": "squared", "pairing": "all"},
    "bradley_terry, union, oriented, nll 1": {"loss_type": "bradley_terry", **ORIENTED_UNION, "nll_coef": 1.0},
    "logistic, union, oriented, nll 1": {"loss_type": "logistic", **ORIENTED_UNION, "nll_coef": 1.0},
}
BETA = 0.1
LEARNING_RATES = (3e-4, 1e-3)
FIRST_SEEDS, SECOND_SEEDS = (0,), (1, 2)
# The second stage was fixed before the first was read: every objective at its best learning rate, on new seeds.


def runs(stage: int, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if stage == 1:
        grid = itertools.product(LEARNING_RATES, OBJECTIVES, FIRST_SEEDS)
        return [{"objective": name, "learning_rate": rate, "seed": seed} for rate, name, seed in grid]
    second = []
    for seed, name in itertools.product(SECOND_SEEDS, OBJECTIVES):
        tried = [run for run in done if run["objective"] == name and run["seed"] in FIRST_SEEDS]
        best = max(tried, key=lambda run: run["difference"]["estimate"])["learning_rate"]
        second.append({"objective": name, "learning_rate": best, "seed": seed})
    return second


def measure(run: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        args = PBSDConfig(
            output_dir=folder, max_steps=200, warmup_steps=20, lr_scheduler_type="cosine", save_strategy="no",
            per_device_train_batch_size=16, num_generations=4, num_teacher_generations=4,
            max_completion_length=40, generation_batch_size=128,
            use_cpu=True, disable_tqdm=True, teacher_prompt_template=arithmetic.TEACHER_TEMPLATE,
            preset="published", beta=BETA, learning_rate=run["learning_rate"], seed=run["seed"],
            **OBJECTIVES[run["objective"]],
        )  # fmt: skip
        trainer = PBSDTrainer(
            "lab/arithmetic-0.2m", args, arithmetic.rows("train", 4000), arithmetic.rows("validation", 200),
            reward_funcs=arithmetic.reward,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        before = trainer.measure_accuracy()
        trainer.train()
        after = trainer.measure_accuracy()
    return {
        **run,
        "before": before.sampled.estimate,
        "after": after.sampled.estimate,
        "greedy_after": after.greedy.estimate,
        "difference": paired_difference(before, after).as_dict(),
        "generated_tokens": trainer.generated_tokens,
        "seconds": round(trainer.train_seconds, 1),
    }


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["objective"], run["learning_rate"], run["seed"]


def table(done: list[dict[str, Any]]) -> None:
    """Accuracy at T = 1 (greedy) after training: the first stage by learning rate, the second by seed."""
    for name in OBJECTIVES:
        mine = sorted((run for run in done if run["objective"] == name), key=key)
        first, second = (
            "  ".join(f"{run['after']:.3f} ({run['greedy_after']:.3f})" for run in mine if run["seed"] in seeds)
            for seeds in (FIRST_SEEDS, SECOND_SEEDS)
        )
        chosen = next((f"lr {run['learning_rate']:g}: " for run in mine if run["seed"] in SECOND_SEEDS), "")
        print(f"{name:40}{first}   {chosen}{second}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--stage", type=int, default=1, choices=(1, 2))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        return table(read())
    torch.set_num_threads(1)
    index, count = map(int, args.shard.split("/"))
    for place, run in enumerate(runs(args.stage, read())):
        if place % count != index or key(run) in {key(other) for other in read()}:
            continue
        line = json.dumps(measure(run))
        with RESULTS.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
