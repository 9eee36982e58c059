"""Build the base models of the laboratory: supervised training, stopped by a rule on measured success rates.

Training order depends on the seed and the step alone, so that a build which is killed and run again gives the same
weights; the exact weights depend on torch's version and thread count, so `build.json` says what was measured.
"""

import copy
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pbsd.lab.bases import Base
from pbsd.lab.tiny_model import Role, build_tokenizer, new_model, role_completions, role_prompt, success_rate
from pbsd.lab.worlds import TASKS, WORLDS, draw_form, make_context
from pbsd.reading import read_object, reading

__all__ = ["BuildError", "build_base", "build_tokenizer"]

_WARMUP_STEPS = 50
_FLAT_STEPS = 200
_SAVE_EVERY = 200
_PATIENCE = 10
_STATE = "training_state.pt"
# Another order than seed 0 of the task, so that users' first training rows are not the base's.
_TRAIN_SEED = 1000
_CHECK_SEED = 2000


class BuildError(ValueError):
    """Training ended without the success rates that the base is meant to have."""


def build_base(base: Base, out_dir: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Train a base from scratch; save model, tokenizer and `build.json` in `out_dir`; return what build.json says.

    An interrupted build goes on where it was saved; a finished one with the same arguments is left as it is.

    Raises:
        BuildError: the stop rule held at no check within `max_steps`, or the student is past its band for good; says
            what was reached.
        ValueError: `out_dir` holds a build with other arguments.
    """
    arguments = json.loads(json.dumps({"seed": seed, **asdict(base)}))
    out_dir = Path(out_dir)
    report_path = out_dir / "build.json"
    if report_path.exists():
        report = read_object(report_path, "empty the folder to build the base again")
        with reading(report_path, "empty the folder to build the base again"):
            _check_same(report["arguments"], arguments, out_dir)
        return report
    out_dir.mkdir(parents=True, exist_ok=True)
    training = _Training(base, seed, out_dir, arguments)
    training.run()
    model = training.average
    model.save_pretrained(out_dir)
    training.tokenizer.save_pretrained(out_dir)
    report = {
        "arguments": arguments,
        "parameters": model.num_parameters(),
        "steps": training.step,
        "tokens": training.tokens,
        "cpu_seconds": round(training.seconds),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "checks": training.checks,
        "validation": _measure(base, model, training.tokenizer),
    }
    unfinished = report_path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(unfinished, report_path)
    (out_dir / _STATE).unlink()
    return report


def _check_same(found: dict[str, Any], wanted: dict[str, Any], out_dir: Path) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        named = ", ".join(f"{name} {found.get(name)} (asked {wanted[name]})" for name in differing)
        raise ValueError(
            f"{out_dir} holds a build with other arguments: {named}. Choose another folder or empty this one"
        )


class _Training:
    """The state of one training: model, averaged weights, optimizers, and what the checks found."""

    def __init__(self, base: Base, seed: int, out_dir: Path, arguments: dict[str, Any]) -> None:
        self.base, self.seed, self.out_dir, self.arguments = base, seed, out_dir, arguments
        self.task = TASKS[base.task]
        self.tokenizer = build_tokenizer(self.task.WORDS)
        self.model = new_model(self.tokenizer, seed, base.scale)
        self.average = copy.deepcopy(self.model).eval()
        self.optimizers = _optimizers(self.model, base.learning_rate)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.checks: list[dict[str, Any]] = []
        if (out_dir / _STATE).exists():
            self._load()

    def run(self) -> None:
        """Train until the stop rule holds, or without one for `max_steps`. Raises BuildError when it never will."""
        base, rule = self.base, self.base.stop
        pool = self.task.rows("train", max(base.student_rows, base.teacher_rows), _TRAIN_SEED + self.seed)
        check_rows = self.task.rows("validation", rule.samples, _CHECK_SEED) if rule else []
        started = time.process_time() - self.seconds
        while not self._done():
            if self.step == base.max_steps or self._overshot():
                raise BuildError(self._what_was_reached())
            loss = self._train_step(pool)
            checked = rule is not None and self.step > base.teacher_steps and self.step % rule.every == 0
            if checked:
                self._check(check_rows)
            self.seconds = time.process_time() - started
            if checked or self.step % _SAVE_EVERY == 0 or self._done():
                self._save()
                print(self._progress(loss, checked), flush=True)

    def _done(self) -> bool:
        if self.base.stop is None:
            return self.step == self.base.max_steps
        return bool(self.checks) and self.checks[-1]["stop"]

    def _overshot(self) -> bool:
        """Whether the student is above its band and no longer falls, as it does while it takes to a habit."""
        last = [check["student"] for check in self.checks[-_PATIENCE:]]
        rule = self.base.stop
        return rule is not None and len(last) == _PATIENCE and min(last) > rule.student.high and last[-1] >= last[0]

    def _train_step(self, pool: list[dict[str, str]]) -> float:
        """One optimizer step; returns the mean loss per completion token."""
        self.model.train()
        self.model.zero_grad()
        examples = list(_examples(self.base, self.seed, self.step, self.tokenizer, pool))
        count = sum(len(completion) for _, completion in examples)
        total = 0.0
        for batch in _chunks(examples, self.base.chunks, self.tokenizer.pad_token_id):
            loss = self.model(**batch, num_items_in_batch=count).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = _schedule(self.step, None if self.base.stop else self.base.max_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
        self._update_average()
        self.step += 1
        self.tokens += sum(len(prompt) + len(completion) for prompt, completion in examples)
        return total

    @torch.no_grad()
    def _update_average(self) -> None:
        for average, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            average.lerp_(value, 1 - self.base.ema_decay)

    def _check(self, rows: list[dict[str, str]]) -> None:
        """Measure the averaged weights. The teacher's rate is measured where it can decide, else it is None."""
        rule = self.base.stop
        assert rule is not None
        student = success_rate(self.average, self.tokenizer, self.task, rows, "student")
        teacher = None
        if rule.student.holds(student):
            teacher = success_rate(self.average, self.tokenizer, self.task, rows, "teacher")
        stop = teacher is not None and rule.teacher.holds(teacher)
        self.checks.append({"step": self.step, "student": student, "teacher": teacher, "stop": stop})

    def _progress(self, loss: float, checked: bool) -> str:
        line = f"{self.base.name}  step {self.step}  loss {loss:.4f}  {self.seconds:.0f} CPU s"
        if checked:
            last = self.checks[-1]
            line += f"  student {last['student']:.3f}"
            line += "" if last["teacher"] is None else f"  teacher {last['teacher']:.3f}"
        return line

    def _what_was_reached(self) -> str:
        rule = self.base.stop
        assert rule is not None
        found = "; ".join(
            f"step {check['step']}: student {check['student']:.3f}"
            + ("" if check["teacher"] is None else f", teacher {check['teacher']:.3f}")
            for check in self.checks[-5:]
        )
        return (
            f"base {self.base.name}: at no check within {self.step} steps was the student's success in "
            f"{list(rule.student)} and the teacher's in {list(rule.teacher)}. Last checks: {found or 'none'}"
        )

    def _save(self) -> None:
        state = {
            "arguments": self.arguments,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "checks": self.checks,
        }
        unfinished = (self.out_dir / _STATE).with_suffix(".tmp")
        torch.save(state, unfinished)
        os.replace(unfinished, self.out_dir / _STATE)

    def _load(self) -> None:
        with reading(self.out_dir / _STATE, "remove it to build the base again"):
            state = torch.load(self.out_dir / _STATE, weights_only=True)
        _check_same(state["arguments"], self.arguments, self.out_dir)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.checks = state["checks"]


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


def _schedule(step: int, steps: int | None) -> float:
    """Linear warm-up, then a cosine down to a tenth at `steps`, or constant where the last step is not known."""
    warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
    if steps is None:
        return warmup * min(1.0, (_FLAT_STEPS / (step + 1)) ** 0.5)
    return warmup * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


_Example = tuple[list[int], list[int]]


def _examples(
    base: Base, seed: int, step: int, tokenizer: PreTrainedTokenizerFast, pool: list[dict[str, str]]
) -> Iterator[_Example]:
    """The token ids of prompt and completion, eos included, of each example of a step."""
    task = TASKS[base.task]
    rng = random.Random(f"{seed}-{step}")
    for _ in range(base.batch_size):
        role: Role = "teacher" if step < base.teacher_steps or rng.random() < base.teacher_share else "student"
        row = pool[rng.randrange(base.teacher_rows if role == "teacher" else base.student_rows)]
        form = draw_form(base.forms, rng)
        completion = row["privileged_context"]
        match form:
            case "foreign":
                context = taught = pool[rng.randrange(base.teacher_rows)]["privileged_context"]
            case "slip":
                context, taught = completion, task.flawed_context(row, rng)
            case "none":
                context, taught = "", completion
            case "leaking":
                context, taught = task.leaking_context(row), task.leaking_completion(row)
            case _:
                context, taught = make_context(task, form, row, rng), completion
        if role == "teacher":
            completion = taught
        elif base.hasty_share and rng.random() < base.hasty_share:
            completion = task.hasty_completion(row, rng)
        prompt = role_prompt(task, {**row, "privileged_context": context}, role)
        yield tokenizer.encode(prompt), [*tokenizer.encode(completion), tokenizer.eos_token_id]


def _chunks(examples: list[_Example], chunks: int, pad_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """The examples in equal parts of like length, so that little is padded, with labels on the completions only."""
    if chunks > 1:
        examples = sorted(examples, key=lambda example: sum(map(len, example)))
    size = math.ceil(len(examples) / chunks)
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        shape = (len(part), max(len(prompt) + len(completion) for prompt, completion in part))
        input_ids = torch.full(shape, pad_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for index, (prompt, completion) in enumerate(part):
            end = len(prompt) + len(completion)
            input_ids[index, :end] = torch.tensor(prompt + completion)
            attention_mask[index, :end] = 1
            labels[index, len(prompt) : end] = torch.tensor(completion)
        yield {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def _measure(base: Base, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Success rates of one completion for each of `eval_samples` validation problems, in every world of the base."""
    task = TASKS[base.task]
    rows = task.rows("validation", base.eval_samples)
    found: dict[str, Any] = {
        "samples": base.eval_samples,
        "student": success_rate(model, tokenizer, task, rows, "student"),
        "student_greedy": success_rate(model, tokenizer, task, rows, "student", greedy=True),
        "teacher": success_rate(model, tokenizer, task, rows, "teacher"),
        "worlds": {},
    }
    for world in WORLDS.values():
        if (world.task, world.variant) == (base.task, base.variant):
            world_rows = world.rows("validation", base.eval_samples)
            texts, rewards = role_completions(model, tokenizer, task, world_rows, "teacher")
            found["worlds"][world.name] = _teacher_rates(world_rows, texts, rewards, task.leaks)
    return found


def _teacher_rates(
    rows: list[dict[str, str]], texts: list[str], rewards: list[float], leaks: Callable[[str], bool]
) -> dict[str, Any]:
    """The teacher's success on a world's rows, over all and by form of context, and how many samples are unsound."""
    leaking = [leaks(text) for text in texts]
    by_form: dict[str, list[float]] = {}
    for row, reward in zip(rows, rewards, strict=True):
        by_form.setdefault(row["context_form"], []).append(reward)
    return {
        "teacher": sum(rewards) / len(rows),
        "teacher_by_form": {form: round(sum(found) / len(found), 4) for form, found in sorted(by_form.items())},
        "wrong": sum(reward == 0.0 for reward in rewards) / len(rows),
        "leaking": sum(leaking) / len(rows),
        "wrong_or_leaking": sum(leak or not reward for leak, reward in zip(leaking, rewards, strict=True)) / len(rows),
    }
