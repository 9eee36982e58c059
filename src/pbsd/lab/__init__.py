"""Tiny tasks and tiny base models that make the library's claims testable in minutes on a CPU."""

from pathlib import Path

_CHECKPOINTS = Path(__file__).parent / "checkpoints"


def checkpoint_path(name: str) -> Path:
    """The folder of a packaged checkpoint, for `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: no such checkpoint; the message lists those that exist.
    """
    existing = sorted(folder.name for folder in _CHECKPOINTS.iterdir() if (folder / "config.json").is_file())
    if name not in existing:
        raise ValueError(f"no packaged checkpoint {name!r}: use one of {', '.join(existing)}")
    return _CHECKPOINTS / name
