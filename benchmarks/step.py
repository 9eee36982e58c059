"""A training step of 16 completions, ours against TRL's SDFTTrainer with its sampled-token loss, in one run.

    python benchmarks/step.py                      # all of it; about 50 minutes on two cores, kept case by case
    python benchmarks/step.py --workloads short --dtypes bf16 --checkpointing on

Both train SmolLM2-135M (models/smollm2-135m-instruct, by scripts/prepare_smollm2.py) on the same two random prompts a
step, all weights, AdamW, a frozen initial teacher. TRL samples 8 completions a prompt from the student; ours samples
4 from the student and 4 from the teacher, whose prompt is longer. Both score all 16 under the student and make one
update. Under the teacher TRL scores 16 and ours 9: the student's 8 and one of the teacher's own, whose
log-probabilities are otherwise the sampler's. Ours is the paper's objective (cross pairs, no anchor). The stop token
is one that is never sampled, so all completions have full length. Each measurement is a
process of its own, TRL and ours in turn; a process's first step is left out. Peak memory is the process's highest
resident memory, libraries included. Gradient checkpointing is off or on for both (TRL's default is on, ours off).
Cases that the results file holds already are not measured again; `--again` does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import DTYPES, MODEL, facts, matmul_peak, peak_memory_gib, table
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

WORKLOADS = {
    "long": {"prompt": 512, "context": 64, "completion": 48},
    "short": {"prompt": 64, "context": 64, "completion": 96},
}
GOALS = {"long": (0.30, 0.45), "short": (0.60, 0.45)}
STOP = "<file_sep>"
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--checkpointing", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--repeats", type=int, default=1, help="processes of each kind")
    parser.add_argument("--again", action="store_true", help="measure anew what the results file holds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.json")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(*args.worker)))
        return
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for case in product(args.checkpointing, args.workloads, args.dtypes):
        others = [row for row in rows if (row["checkpointing"], row["workload"], row["dtype"]) != case]
        if len(others) < len(rows) and not args.again:
            continue
        rows = [*others, compare(*case, args.repeats)]
        print(table(rows[-1:]), flush=True)
        args.out.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=2) + "\n")
    print(json.dumps(facts()), table(rows), sep="\n\n")


def compare(checkpointing: str, workload: str, dtype: str, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
    for _ in range(repeats):
        for side in runs:
            command = [sys.executable, __file__, "--worker", side, checkpointing, workload, dtype]
            output = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **OFFLINE})
            runs[side].append(json.loads(output.stdout.splitlines()[-1]))
    times = {side: [step for run in runs[side] for step in run["steps"]] for side in runs}
    memory = {side: max(run["peak_gib"] for run in runs[side]) for side in runs}
    time_goal, memory_goal = GOALS[workload]
    return {
        "checkpointing": checkpointing,
        "workload": workload,
        "dtype": dtype,
        "TRL s": median(times["trl"]),
        "ours s": median(times["ours"]),
        "time ratio": median(times["ours"]) / median(times["trl"]),
        "goal": time_goal,
        "TRL GiB": memory["trl"],
        "ours GiB": memory["ours"],
        "memory ratio": memory["ours"] / memory["trl"],
        "memory goal": memory_goal,
        "steps": f"{len(times['trl'])}, {len(times['ours'])}",
        "TRL range": f"{min(times['trl']):.1f}-{max(times['trl']):.1f}",
        "ours range": f"{min(times['ours']):.1f}-{max(times['ours']):.1f}",
        "peak GFLOP/s": median(run["peak_gflops"] for side in runs.values() for run in side),
    }


OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}


def worker(side: str, checkpointing: str, workload: str, dtype: str) -> dict[str, Any]:
    """Train a few steps in this process; seconds of each but the first, and the peak of memory."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.eos_token = STOP
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=DTYPES[dtype])
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    peak = matmul_peak(DTYPES[dtype])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        make = ours if side == "ours" else trl
        options = {**common(folder), "gradient_checkpointing": checkpointing == "on"}
        trainer = make(model, tokenizer, random_rows(tokenizer, **WORKLOADS[workload]), options, workload)
        del model  # TRL has loaded its own
        trainer.add_callback(clock)
        trainer.train()
    return {"steps": clock.steps[1:], "peak_gib": peak_memory_gib(), "peak_gflops": peak / 1e9}


def random_rows(tokenizer: Any, *, prompt: int, context: int, completion: int) -> list[dict[str, str]]:
    """Texts of exactly so many tokens: words that are one token wherever they stand."""
    words = [
        token for token, _ in sorted(tokenizer.get_vocab().items()) if token.startswith("Ġ") and token[1:].isalpha()
    ]
    words = [word[1:] for word in words if word[1:].isascii()]
    generator = torch.Generator().manual_seed(0)

    def text(tokens: int) -> str:
        chosen = torch.randint(len(words), (tokens,), generator=generator).tolist()
        result = "".join(f" {words[index]}" for index in chosen)
        assert len(tokenizer(result).input_ids) == tokens
        return result

    return [{"prompt": text(prompt), "privileged_context": text(context)} for _ in range(2 * STEPS)]


def common(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "max_steps": STEPS, "learning_rate": 1e-6, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False,
    }  # fmt: skip


def ours(model: Any, tokenizer: Any, rows: list[dict[str, str]], options: dict[str, Any], workload: str) -> Any:
    from pbsd import PBSDConfig, PBSDTrainer

    args = PBSDConfig(
        **options, per_device_train_batch_size=2, num_generations=4, num_teacher_generations=4,
        max_completion_length=WORKLOADS[workload]["completion"], preset="published",
        teacher_prompt_template="{{ prompt }}{{ privileged_context }}",
    )  # fmt: skip
    return PBSDTrainer(model, args, rows, reward_funcs=length_reward, processing_class=tokenizer)


def length_reward(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(completion) % 2) for completion in completions]


def trl(model: Any, tokenizer: Any, rows: list[dict[str, str]], options: dict[str, Any], workload: str) -> Any:
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    path = f"{options['output_dir']}/model"
    model.save_pretrained(path)  # its frozen teacher is loaded again by name
    tokenizer.save_pretrained(path)
    args = SDFTConfig(
        **options, per_device_train_batch_size=16, num_generations=8, max_prompt_length=None,
        max_completion_length=WORKLOADS[workload]["completion"], distillation_mode="sampled_token",
        distillation_alpha=1.0, teacher_prompt_template="{prompt}{privileged_context}",
        model_init_kwargs={"dtype": str(model.dtype).removeprefix("torch.")},
    )  # fmt: skip
    return SDFTTrainer(model=path, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


class Clock(TrainerCallback):
    """Seconds from step to step: sampling belongs to it, and the first step's warm-up is in the first."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.last = now


if __name__ == "__main__":
    main()
