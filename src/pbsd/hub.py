"""The model card of a trained model, and its way to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi, ModelCard, ModelCardData
from transformers import TrainingArguments

from pbsd.methods import method_name

MODEL_CARD_TAGS = ["pbsd"]

CITATION = """@misc{pbsd2026,
  title  = {Preference-Based Self-Distillation},
  year   = {2026},
  eprint = {2605.05040},
  archivePrefix = {arXiv}
}"""

_BODY = """
# {name}

This model was post-trained from {base} by {method} with the `pbsd` library.

- {objective}
- {steps} steps, {tokens:,} generated tokens, learning rate {learning_rate}, transformers {transformers}
"""

_PBSD = """
Preference-Based Self-Distillation ([arXiv 2605.05040](https://arxiv.org/abs/2605.05040)): the model under a prompt with
privileged context is the teacher, the target is the teacher tilted by a reward, and it is learned from the teacher's
samples and the model's own.

```bibtex
{citation}
```
"""


def push_model(folder: Path, args: TrainingArguments) -> str:
    """Upload a model folder, and nothing else of its run, under `hub_model_id` (or the run folder's name), on the
    branch `hub_revision`.

    Returns the repository's id. A run folder also holds samples.jsonl, with the training prompts: it stays here.
    """
    api = HfApi(token=args.hub_token)
    name = args.hub_model_id or Path(args.output_dir or ".").name
    repository = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
    if args.hub_revision is not None:
        api.create_branch(repo_id=repository, branch=args.hub_revision, exist_ok=True)
    api.upload_folder(
        repo_id=repository, folder_path=folder, revision=args.hub_revision, commit_message="Post-trained with pbsd"
    )
    return repository


def write_model_card(folder: Path, trainer: Any) -> None:
    """Write `README.md` with the method, its options and its citation into the folder."""
    args, config = trainer.args, trainer.model.config
    base = getattr(config, "_name_or_path", "") or "a local model"
    data = ModelCardData(
        library_name="transformers",
        tags=[*MODEL_CARD_TAGS, "generated_from_trainer"],
        base_model=base if "/" in base and not Path(base).exists() else None,
        model_name=folder.name,
    )
    method = method_name(args)
    body = _BODY.format(
        name=folder.name,
        base=f"`{base}`",
        method=method.upper().replace("_", " "),
        objective=args.objective,
        steps=trainer.state.global_step,
        tokens=trainer.generated_tokens,
        learning_rate=args.learning_rate,
        transformers=transformers.__version__,
    )
    if method == "pbsd":
        body += _PBSD.format(citation=CITATION)
    folder.mkdir(parents=True, exist_ok=True)
    ModelCard(f"---\n{data.to_yaml()}\n---\n{body}").save(folder / "README.md")
