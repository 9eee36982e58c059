"""pbsd: post-train language models by Preference-Based Self-Distillation (arXiv 2605.05040).

Importing the package is light: torch and transformers are loaded when a trainer or a config is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pbsd.api import PBSDTrainer
    from pbsd.config import PBSDConfig

_LAZY = {"PBSDConfig": "pbsd.config", "PBSDTrainer": "pbsd.api"}

__all__ = ["PBSDConfig", "PBSDTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pbsd' has no attribute {name!r}")
