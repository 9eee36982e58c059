"""Evidence for PBSD's default objective: a grid on the lab's arithmetic, read on the VALIDATION split only.

    python studies/defaults/run.py --shard 0/2 & python studies/defaults/run.py --shard 1/2 &

Each run is 100 steps of 16 prompts x (4 + 4) samples from the packaged base model, so all runs generate about as many
tokens. Resumable: a run that results.jsonl holds is not done again. `--table` prints the means.
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
from pbsd.evaluate.accuracy import paired_difference
from pbsd.lab import arithmetic

RESULTS = Path(__file__).with_name("results.jsonl")

OBJECTIVES: dict[str, dict[str, Any]] = {
    "logistic, all (paper)": {"loss_type": "logistic"},
    "logistic, correct": {"loss_type": "logistic", "pair_policy": "correct"},
    "logistic, improving": {"loss_type": "logistic", "pair_policy": "improving"},
    "logistic, oriented": {"loss_type": "logistic", "pair_policy": "oriented"},
    "bradley_terry, cross": {"loss_type": "bradley_terry"},
    "bradley_terry, union": {"loss_type": "bradley_terry", "pairing": "all"},
    "squared, union": {"loss_type": "squared", "pairing": "all"},
}
LEARNING_RATES = (3e-4, 1e-3)
BETAS = (0.1, 0.5)

# The second stage, fixed before the first was read: the best (beta, learning rate) of every objective, on new seeds.
FIRST_SEEDS, SECOND_SEEDS = (0,), (1, 2, 3)


def runs(stage: int, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    grid = [
        {"objective": name, "beta": beta, "learning_rate": rate, "seed": seed}
        for name, beta, rate, seed in itertools.product(OBJECTIVES, BETAS, LEARNING_RATES, FIRST_SEEDS)
    ]
    if stage == 1:
        return grid
    second = []
    for name in OBJECTIVES:
        tried = [run for run in done if run["objective"] == name and run["seed"] in FIRST_SEEDS]
        best = max(tried, key=lambda run: run["difference"]["estimate"])
        second += [{"objective": name, "beta": best["beta"], "learning_rate": best["learning_rate"], "seed": seed}
                   for seed in SECOND_SEEDS]  # fmt: skip
    return second


def measure(run: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        args = PBSDConfig(
            output_dir=folder, max_steps=100, per_device_train_batch_size=16, num_generations=4,
            num_teacher_generations=4, max_completion_length=40, generation_batch_size=128, save_strategy="no",
            use_cpu=True, disable_tqdm=True, teacher_prompt_template=arithmetic.TEACHER_TEMPLATE,
            beta=run["beta"], learning_rate=run["learning_rate"], seed=run["seed"], **OBJECTIVES[run["objective"]],
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
    return run["objective"], run["beta"], run["learning_rate"], run["seed"]


def table(done: list[dict[str, Any]]) -> None:
    for name in OBJECTIVES:
        first = [run for run in done if run["objective"] == name and run["seed"] in FIRST_SEEDS]
        second = [run for run in done if run["objective"] == name and run["seed"] in SECOND_SEEDS]
        grid = "  ".join(
            f"{run['after']:.3f}" for run in sorted(first, key=lambda run: (run["beta"], run["learning_rate"]))
        )
        new = " ".join(f"{run['after']:.3f}" for run in sorted(second, key=key))
        chosen = f"beta {second[0]['beta']:g}, lr {second[0]['learning_rate']:g}: {new}" if second else ""
        print(f"{name:24}{grid}   {chosen}")


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
