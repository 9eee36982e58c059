"""The model card of a trained model, and its way to the hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import filter_repo_objects
from transformers import TrainingArguments

from pbsd.lab.bases import BASES
from pbsd.methods import method_name
from pbsd.reading import read_object
from pbsd.redact import scrub

logger = logging.getLogger(__name__)

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


MODEL_FILES = [
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "chat_template.*", "additional_chat_templates/*.jinja", "processor_config.json",
    "preprocessor_config.json", "README.md", "*.py",
]  # fmt: skip
"""What is uploaded of a model folder, and nothing else."""

_ADAPTER = "adapter_config.json"


def push_model(folder: Path, args: TrainingArguments) -> str:
    """Upload a model folder's `MODEL_FILES`, and nothing else of its run, under `hub_model_id` (or the run folder's
    name), on the branch `hub_revision`. Returns the repository's id.

    A run folder also holds samples.jsonl, with the training prompts: it stays here. An adapter of a base in a folder
    here is uploaded with that folder's name, not its path.
    """
    api = HfApi(token=args.hub_token)
    name = args.hub_model_id or Path(args.output_dir or ".").name
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    if left := sorted(set(files) - set(filter_repo_objects(files, allow_patterns=MODEL_FILES))):
        logger.warning("not pushed, as they are no files of a model: %s", ", ".join(left))
    repository = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
    if args.hub_revision is not None:
        api.create_branch(repo_id=repository, branch=args.hub_revision, exist_ok=True)
    allowed = [*MODEL_FILES]
    if (adapter := _adapter_config(folder)) is not None:
        allowed.remove(_ADAPTER)
        api.upload_file(
            repo_id=repository,
            path_in_repo=_ADAPTER,
            path_or_fileobj=adapter,
            revision=args.hub_revision,
            commit_message="Adapter of pbsd",
        )
    api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        revision=args.hub_revision,
        commit_message="Post-trained with pbsd",
        allow_patterns=allowed,
    )
    return repository


def _adapter_config(folder: Path) -> bytes | None:
    """An adapter's configuration with its base's public name, where that is another than the name in the file."""
    if not (folder / _ADAPTER).is_file():
        return None
    config = read_object(folder / _ADAPTER)
    base = str(config.get("base_model_name_or_path") or "")
    if public_name(base) == base:
        return None
    return (json.dumps({**config, "base_model_name_or_path": public_name(base)}, indent=2) + "\n").encode()


def public_name(model: str) -> str:
    """A model's name as it may be told to others: of a folder here its own name, without those above it, and of one of
    the laboratory's bases `lab/NAME`."""
    path = Path(model)
    if not model or not (path.is_absolute() or path.exists() or model.startswith((".", "~"))):
        return scrub(model)
    name = path.resolve().name
    return f"lab/{name}" if name in BASES and (path / "build.json").is_file() else name


def write_model_card(folder: Path, trainer: Any) -> None:
    """Write `README.md` with the method, its options and its citation into the folder."""
    args, config = trainer.args, trainer.model.config
    base = public_name(getattr(config, "_name_or_path", ""))
    on_hub = base and base == getattr(config, "_name_or_path", "") and "/" in base
    data = ModelCardData(
        library_name="transformers",
        tags=[*MODEL_CARD_TAGS, "generated_from_trainer"],
        base_model=base if on_hub else None,
        model_name=folder.name,
    )
    method = method_name(args)
    body = _BODY.format(
        name=folder.name,
        base=(f"`{base}`" if on_hub else f"the local model `{base}`") if base else "a model",
        method=method.upper().replace("_", " "),
        objective=scrub(args.objective),
        steps=trainer.state.global_step,
        tokens=trainer.generated_tokens,
        learning_rate=args.learning_rate,
        transformers=transformers.__version__,
    )
    if method == "pbsd":
        body += _PBSD.format(citation=CITATION)
    folder.mkdir(parents=True, exist_ok=True)
    ModelCard(f"---\n{data.to_yaml()}\n---\n{body}").save(folder / "README.md")
