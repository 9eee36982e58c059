"""Tiny tasks, worlds and base models that make the library's claims testable in minutes on a CPU."""

import os
from pathlib import Path

_PACKAGED = Path(__file__).parent / "checkpoints"


def cache_folder() -> Path:
    """Where `pbsd lab build` puts base models: `$PBSD_LAB_CACHE`, or `~/.cache/pbsd/lab`."""
    named = os.environ.get("PBSD_LAB_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "pbsd" / "lab"


def is_packaged(name: str) -> bool:
    """Whether a base model comes with the package. Its exact weights, and so what is learnt from them, depend on the
    machine: a study's small bases are therefore shipped."""
    return (_PACKAGED / name / "build.json").is_file()


def checkpoint_path(name: str) -> Path:
    """The folder of a base model, such as `tools-1m-sparse`, for `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: no such base model, or it is not built yet; the message says how to build it.
    """
    from pbsd.lab.bases import BASES

    if name not in BASES:
        raise ValueError(f"no base model {name!r} in the laboratory: use one of {', '.join(BASES)}")
    for folder in (_PACKAGED / name, cache_folder() / name):
        if (folder / "build.json").is_file():
            return folder
    raise ValueError(f"base model lab/{name} is not built yet: run `{BASES[name].command}`")
