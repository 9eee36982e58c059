"""Build the tiny base model of the lab: supervised training on worked arithmetic, stopped early on purpose.

    python -m pbsd.lab.base_model --out DIR

The base has to leave a student room to learn and a teacher something to teach: the student calculates and errs, the
teacher mostly copies the solution it sees. Calculating is learnt within some hundred steps, so the rates depend
sharply on the step count, and another machine or torch version may end elsewhere: `build.json` says what was measured.
An interrupted build continues when the command is repeated.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pbsd.lab import arithmetic
from pbsd.lab.tiny_model import Role, build_tokenizer, new_model, role_prompt, success_rate

__all__ = ["DEFAULTS", "add_arguments", "build_base", "build_tokenizer", "run"]

DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "steps": 500,
    "batch_size": 64,
    "learning_rate": 0.02,
    "teacher_share": 0.2,
    "flawed_share": 0.15,
    "student_rows": 1500,
    "teacher_rows": 50_000,
    "eval_samples": 2000,
}

_WARMUP_STEPS = 50
_SAVE_EVERY = 200
_STATE = "training_state.pt"


def build_base(
    out_dir: str | Path,
    *,
    seed: int = DEFAULTS["seed"],
    steps: int = DEFAULTS["steps"],
    batch_size: int = DEFAULTS["batch_size"],
    learning_rate: float = DEFAULTS["learning_rate"],
    teacher_share: float = DEFAULTS["teacher_share"],
    flawed_share: float = DEFAULTS["flawed_share"],
    student_rows: int = DEFAULTS["student_rows"],
    teacher_rows: int = DEFAULTS["teacher_rows"],
    eval_samples: int = DEFAULTS["eval_samples"],
) -> dict[str, Any]:
    """Train the base from scratch; save model, tokenizer and `build.json` in `out_dir`; return what build.json says.

    Cross-entropy on completions of the train split, for a fixed number of steps; a `teacher_share` of the examples
    shows the solution in the prompt. In a `flawed_share` of these the solution shown has a wrong step (the completion
    never has), so that the teacher does not trust it blindly. The other examples repeat only `student_rows` problems:
    with few, more of the student's errors are facts it never saw and fewer are mere indecision in sampling. The
    training order depends on `seed` and the step alone, so a build that is interrupted and run again gives the same
    weights. A finished build with the same arguments is left as it is.

    Raises:
        ValueError: an argument out of range, or `out_dir` holds a build with other arguments.
    """
    arguments = {
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "teacher_share": teacher_share,
        "flawed_share": flawed_share,
        "student_rows": student_rows,
        "teacher_rows": teacher_rows,
        "eval_samples": eval_samples,
    }
    _check(arguments)
    out_dir = Path(out_dir)
    report_path = out_dir / "build.json"
    if report_path.exists():
        report: dict[str, Any] = json.loads(report_path.read_text())
        _check_same(report["arguments"], arguments, out_dir)
        return report
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, seed)
    seconds = _train(model, tokenizer, arguments, out_dir)
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    report = {
        "arguments": arguments,
        "parameters": model.num_parameters(),
        "training_seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "validation": _measure(model, tokenizer, eval_samples),
    }
    report_path.write_text(json.dumps(report, indent=2) + "\n")
    (out_dir / _STATE).unlink()
    return report


def _check(arguments: dict[str, Any]) -> None:
    for name in ("steps", "batch_size", "student_rows", "teacher_rows", "eval_samples"):
        if arguments[name] < 1:
            raise ValueError(f"{name} is {arguments[name]}: give at least 1")
    if not arguments["learning_rate"] > 0:
        raise ValueError(f"learning_rate is {arguments['learning_rate']}: give a positive number")
    for name in ("teacher_share", "flawed_share"):
        if not 0 <= arguments[name] <= 1:
            raise ValueError(f"{name} is {arguments[name]}: give a share between 0 and 1")


def _check_same(found: dict[str, Any], wanted: dict[str, Any], out_dir: Path) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        named = ", ".join(f"{name} {found.get(name)} (asked {wanted[name]})" for name in differing)
        raise ValueError(
            f"{out_dir} holds a build with other arguments: {named}. Choose another folder or empty this one"
        )


def _train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, arguments: dict[str, Any], out_dir: Path
) -> float:
    """Train in place, from the saved state where there is one; returns the seconds spent, earlier runs included."""
    # Another order than seed 0 of the task, so that users' first training rows are not the base's.
    pool_size = max(arguments["student_rows"], arguments["teacher_rows"])
    pool = arithmetic.rows("train", pool_size, seed=1000 + arguments["seed"])
    optimizers = _optimizers(model, arguments["learning_rate"])
    state_path, first, seconds = out_dir / _STATE, 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        _check_same(state["arguments"], arguments, out_dir)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
    model.train()
    started = time.monotonic() - seconds
    for step in range(first, arguments["steps"]):
        loss = model(**_batch(tokenizer, pool, arguments, step)).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(step, arguments["steps"])
            optimizer.step()
        done = step + 1
        if done % _SAVE_EVERY == 0 or done == arguments["steps"]:
            seconds = time.monotonic() - started
            _save_state(state_path, model, optimizers, arguments, done, seconds)
            print(f"step {done}/{arguments['steps']}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)
    model.eval()
    return seconds


def _optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW at a quarter of its rate for embeddings and norms; `peak` holds each group's rate.

    With AdamW alone the same model needs several times the steps, and when it learns to copy is a matter of luck.
    """
    embedding = model.get_input_embeddings().weight
    matrices = [value for value in model.parameters() if value.ndim == 2 and value is not embedding]
    others = [value for value in model.parameters() if value.ndim != 2 or value is embedding]
    return [
        torch.optim.Muon([{"params": matrices, "peak": learning_rate}], weight_decay=0.0),
        torch.optim.AdamW([{"params": others, "peak": learning_rate / 4}], betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
    return warmup * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


def _batch(
    tokenizer: PreTrainedTokenizerFast, pool: list[dict[str, str]], arguments: dict[str, Any], step: int
) -> dict[str, torch.Tensor]:
    """The examples of one step, padded on the right, with labels on the completion and its eos token only."""
    rng = random.Random(f"{arguments['seed']}-{step}")
    prompts, completions = [], []
    for _ in range(arguments["batch_size"]):
        role: Role = "teacher" if rng.random() < arguments["teacher_share"] else "student"
        row = pool[rng.randrange(arguments[f"{role}_rows"])]
        flawed = rng.random() < arguments["flawed_share"]
        context = arithmetic.flawed_context(row, rng) if flawed else row["privileged_context"]
        prompts.append(tokenizer.encode(role_prompt({**row, "privileged_context": context}, role)))
        completions.append([*tokenizer.encode(row["privileged_context"]), tokenizer.eos_token_id])
    longest = max(len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True))
    shape = (len(prompts), longest)
    input_ids = torch.full(shape, tokenizer.pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        input_ids[index, :end] = torch.tensor(prompt + completion)
        attention_mask[index, :end] = 1
        labels[index, len(prompt) : end] = torch.tensor(completion)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _save_state(
    path: Path,
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    arguments: dict[str, Any],
    step: int,
    seconds: float,
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "arguments": arguments,
        "step": step,
        "seconds": seconds,
    }
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def _measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: int) -> dict[str, Any]:
    problems = arithmetic.rows("validation", samples)
    return {
        "samples": samples,
        "student": success_rate(model, tokenizer, problems, "student"),
        "teacher": success_rate(model, tokenizer, problems, "teacher"),
        "student_greedy": success_rate(model, tokenizer, problems, "student", greedy=True),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `build_base`, for a command line."""
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint; repeat to resume")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the exact weights depend on it")
    for name, default in DEFAULTS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}"
        )


def run(args: argparse.Namespace) -> None:
    """Build with parsed options and print the report."""
    torch.set_num_threads(args.threads)
    report = build_base(args.out, **{name: getattr(args, name) for name in DEFAULTS})
    print(json.dumps(report, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the tiny arithmetic base model.")
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
