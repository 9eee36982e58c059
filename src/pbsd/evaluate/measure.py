"""Sample a benchmark's problems, grade the samples, and write a record per problem, so that a kill costs one batch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pbsd import benchmarks
from pbsd.api import load_tokenizer, make_renderer, resolve_rewards, stop_and_pad_ids
from pbsd.config import RolloutConfig
from pbsd.data import PromptDataset
from pbsd.determines import weights_hash
from pbsd.engine import Engine
from pbsd.evaluate.records import RECORDS, SUMMARY, ProblemRecord, ResultFolder, SampleRecord, problem_keys
from pbsd.evaluate.statistics import summarize
from pbsd.loading import load_model, model_folder
from pbsd.model_checks import check_ids, has_position_table, positions
from pbsd.records import Prompt, Rollout
from pbsd.rewards import Grade, GradedReward, GraderPool, required_columns
from pbsd.rollouts import TransformersSampler
from pbsd.run_paths import folder_part

logger = logging.getLogger(__name__)

Progress = Callable[[Sequence[ProblemRecord], int], None]
"""Told after every batch: the records written by it, and how many problems there are."""

_VERSIONS = ("pbsd", "torch", "transformers", "tokenizers", "math-verify", "reasoning-gym")


@dataclass(frozen=True, slots=True)
class Request:
    """What `pbsd evaluate` is asked for.

    Attributes:
        model: a hub name, a folder, or a base of the laboratory.
        benchmark, query: whose problems, and which.
        n: completions per problem.
        thinking: `on`, `off`, or None for what the chat template does by itself.
        scorer: of tool calls (`strict` or `paper_parity`); None where the benchmark has none.
        batch_size: completions decoded together; the result does not depend on it, but for rounding, which in half
            precision is coarse enough to change samples.
    """

    model: str
    benchmark: str
    query: benchmarks.Query = field(default_factory=benchmarks.Query)
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    max_completion_length: int = 2048
    seed: int = 0
    thinking: str | None = None
    scorer: str | None = None
    dtype: str = "auto"
    model_revision: str | None = None
    trust_remote_code: bool = False
    batch_size: int = 64
    reward_workers: int = 1
    reward_timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"temperature 0 gives the same completion {self.n} times: set --n 1 or a temperature")

    def config(self, folder: Path) -> RolloutConfig:
        """The engine's options. Raises ValueError for a value that it refuses."""
        init: dict[str, Any] = {"dtype": self.dtype}
        if self.model_revision is not None:
            init["revision"] = self.model_revision
        return RolloutConfig(
            output_dir=str(folder),
            report_to="none",
            model_init_kwargs=init,
            trust_remote_code=self.trust_remote_code,
            chat_template_kwargs={} if self.thinking is None else {"enable_thinking": self.thinking == "on"},
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            max_completion_length=self.max_completion_length,
            generation_batch_size=self.batch_size,
            reward_workers=self.reward_workers,
            reward_timeout=self.reward_timeout,
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A benchmark, rendered for a loaded model, with all that determines the result."""

    request: Request
    benchmark: benchmarks.Benchmark
    rows: benchmarks.Rows
    keys: Sequence[str]
    prompts: Sequence[Prompt]
    engine: Engine
    settings: Mapping[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What is recorded without determining the result: names, and the rows that the benchmark left out."""
        return {"model": self.request.model, "source": self.rows.source, "left_out": dict(self.rows.left_out)}

    def measure(self, start: int) -> tuple[int, list[ProblemRecord]]:
        """The records of the problems that are sampled in one batch with problem `start`, and the first one's number.

        Which problems share a batch depends on the settings alone, never on where an earlier process was stopped: with
        the same batches even rounding is the same.
        """
        size = max(1, self.request.batch_size // self.request.n)
        first = start - start % size
        prompts = self.prompts[first : first + size]
        engine = self.engine
        rollouts = engine.sample(
            prompts,
            {"student": self.request.n},
            key=(self.request.seed, 0),
            params=engine.args.sampling_params(),
        )
        rollouts, scores = engine.grade(prompts, rollouts)
        rollouts = [replace(own, text=prompts[own.prompt].turn(own.role) + own.text) for own in rollouts]
        (grades,) = scores.by_function.values()
        completions: list[list[SampleRecord]] = [[] for _ in prompts]
        for rollout, grade in zip(rollouts, grades, strict=True):
            completions[rollout.prompt].append(self._sample(rollout, grade))
        return first, [self._problem(prompt, tuple(own)) for prompt, own in zip(prompts, completions, strict=True)]

    def _sample(self, rollout: Rollout, grade: Grade) -> SampleRecord:
        return SampleRecord(
            text=rollout.text,
            answer=None if grade.outcome == "unparsed" else self.benchmark.answer_key(rollout.text),
            outcome=grade.outcome,
            score=grade.score,
            reason=grade.reason,
            tokens=len(rollout.completion_ids),
            finished=rollout.finished,
        )

    def _problem(self, prompt: Prompt, completions: tuple[SampleRecord, ...]) -> ProblemRecord:
        row = self.rows.rows[prompt.row]
        return ProblemRecord(prompt.row, self.keys[prompt.row], row["id"], prompt.prompt, row["answer"], completions)


def prepare(request: Request, folder: Path) -> Evaluation:
    """Load rows, grader and model.

    Raises ValueError when one of them cannot be had or they do not fit together.
    """
    benchmark = benchmarks.find(request.benchmark)
    rows = benchmarks.load(request.benchmark, request.query)
    config = request.config(folder)
    reward, spec = _reward(benchmark, request, config)
    tokenizer = load_tokenizer(request.model, config)
    template = str(tokenizer.chat_template or "")
    if request.thinking is not None and "enable_thinking" not in template:
        raise ValueError(
            f"thinking {request.thinking!r}: the chat template of {request.model!r} has no `enable_thinking`, so it "
            "would change nothing: leave --thinking out"
        )
    shown = list(rows.rows) if template else [{**row, "prompt": _as_text(row["prompt"])} for row in rows.rows]
    renderer = make_renderer(tokenizer, config)
    if benchmark.tools_template and not (template and renderer.chat.renders_tools):
        renderer = replace(renderer, tools_template=benchmark.tools_template)
    prompts = PromptDataset.from_rows(shown, renderer, required=sorted(required_columns(reward)), drop_overlong=False)
    model = load_model(request.model, config).to(config.device).eval()
    stops, pad = stop_and_pad_ids(model, renderer.chat)
    barred = check_ids(model, tokenizer, stops, pad)
    _check_window(model, prompts.prompts, request.max_completion_length)
    engine = Engine(
        student=model,
        teacher=None,
        tokenizer=tokenizer,
        renderer=renderer,
        sampler=TransformersSampler(
            eos_token_ids=stops, pad_token_id=pad, max_batch_size=request.batch_size, barred_ids=barred
        ),
        reward_funcs=[reward],
        args=config,
        pad_id=pad,
        gather=lambda items: items,
    )
    names = (
        "n", "temperature", "top_p", "top_k", "min_p", "max_completion_length", "seed", "reward_timeout", "batch_size",
    )  # fmt: skip
    settings = {
        "benchmark": benchmark.name,
        "split": request.query.split or benchmark.splits[0],
        "problems": len(prompts),
        "rows_sha256": rows_hash(rows.rows),
        "prompts_sha256": prompts.fingerprint(),
        "reward": spec,
        **{name: getattr(request, name) for name in names},
        "thinking": request.thinking or "as the template does",
        "prompt_format": "chat" if template else "text",
        **({"tools": renderer.tools_source} if benchmark.tools_template else {}),
        "weights_sha256": weights_hash(model),
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "stop_token_ids": stops,
        "device": config.device.type,
        "versions": _versions(),
    }
    return Evaluation(request, benchmark, rows, problem_keys(rows.rows), prompts.prompts, engine, settings)


def run(
    evaluation: Evaluation, folder: ResultFolder, progress: Progress = lambda records, total: None
) -> dict[str, Any]:
    """Measure what the folder does not hold yet, and return the summary, which is also written.

    Raises ValueError when the folder holds an evaluation with other settings.
    """
    total = len(evaluation.prompts)
    done = folder.open(evaluation.settings, evaluation.about, _session(evaluation))
    progress(folder.problems(), total)
    while done < total:
        first, records = evaluation.measure(done)
        new = records[done - first :]
        folder.append(RECORDS, [record.to_json() for record in new])
        done += len(new)
        progress(new, total)
    summary = summarize(folder.problems())
    folder.write(SUMMARY, summary)
    return summary


def check_gold(benchmark: benchmarks.Benchmark, rows: benchmarks.Rows, request: Request, folder: Path) -> list[str]:
    """The rows whose own reference does not grade correct, each with the grade: what to look at before trusting a
    score. A reference that is read only in part is an `error`. Rows without a written answer are passed over."""
    reward, _ = _reward(benchmark, request, request.config(folder))
    written = [(row, gold) for row in rows.rows if (gold := benchmark.gold(row)) is not None]
    columns = {name: [row[name] for row, _ in written] for name in rows.rows[0]}
    grades = reward.grades([gold for _, gold in written], **columns)
    return [
        f"{row['id']}: {grade.outcome}: {grade.reason}"
        for (row, _), grade in zip(written, grades, strict=True)
        if grade.outcome != "correct"
    ]


def rows_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over prompts and answers, whatever the model: what makes two evaluations comparable."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["prompt"], row["answer"]], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _reward(
    benchmark: benchmarks.Benchmark, request: Request, config: RolloutConfig
) -> tuple[GradedReward, dict[str, Any]]:
    """The benchmark's grader and what names it in the settings."""
    spec = {"name": benchmark.reward} if isinstance(benchmark.reward, str) else dict(benchmark.reward)
    if spec["name"] == "tool_call":
        spec["scorer"] = request.scorer or "strict"
    elif request.scorer is not None:
        raise ValueError(f"{benchmark.name} is not of tool calls: it has no scorer {request.scorer!r}; leave it out")
    (reward,) = resolve_rewards([spec], config)
    assert isinstance(reward, GradedReward)
    if ":" in spec["name"]:  # made by its module, before these options were known
        reward.pool = GraderPool(config.reward_workers, config.reward_timeout)
    return reward, spec


def _as_text(messages: Sequence[Mapping[str, str]]) -> str:
    """A chat for a model without a chat template."""
    return "\n\n".join(message["content"] for message in messages) + "\n\n"


def _check_window(model: Any, prompts: Sequence[Prompt], max_completion_length: int) -> None:
    """Warn where completions may go beyond the trained positions. Raises ValueError where there are none beyond."""
    window = positions(model)
    longest = max(len(prompt.student_ids) for prompt in prompts)
    if window is None or longest + max_completion_length <= window:
        return
    if has_position_table(model):
        raise ValueError(
            f"the longest prompt has {longest} tokens and max_completion_length is {max_completion_length}, but the "
            f"model has {window} positions: lower --max_completion_length to {max(0, window - longest)} or less"
        )
    logger.warning(
        "the longest prompt has %d tokens and max_completion_length is %d, the model's window is %d: positions beyond "
        "it were never trained",
        longest,
        max_completion_length,
        window,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed cannot have been used
    return found


def _session(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "model_folder": model_folder(evaluation.request.model),
        "query": asdict(evaluation.request.query),
        "device": str(evaluation.engine.args.device),
        "threads": torch.get_num_threads(),
    }


def default_folder(request: Request) -> Path:
    """runs/evaluate/MODEL/BENCHMARK, whatever the names are.

    Raises ValueError for an unknown benchmark.
    """
    benchmarks.find(request.benchmark)
    model = Path(request.model).name or "model"
    if model == "model":  # the trained model of a run folder
        model = Path(request.model).resolve().parent.name
    return Path("runs/evaluate") / folder_part(model) / folder_part(request.benchmark.partition("@")[0])
