"""pbsd: post-train language models by Preference-Based Self-Distillation (arXiv 2605.05040).

Importing the package is light: torch and transformers are loaded when a trainer or a config is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pbsd.api import (
        GRPOTrainer,
        OnlineDPOTrainer,
        OPSDTrainer,
        PBSDTrainer,
        RFTTrainer,
        SDFTTrainer,
        SDPOTrainer,
        SelfDistillationTrainer,
        SFTTrainer,
    )
    from pbsd.config import (
        GRPOConfig,
        OnlineDPOConfig,
        OPSDConfig,
        PBSDConfig,
        RFTConfig,
        SDFTConfig,
        SDPOConfig,
        SFTConfig,
    )

__all__ = [
    "GRPOConfig",
    "GRPOTrainer",
    "OPSDConfig",
    "OPSDTrainer",
    "OnlineDPOConfig",
    "OnlineDPOTrainer",
    "PBSDConfig",
    "PBSDTrainer",
    "RFTConfig",
    "RFTTrainer",
    "SDFTConfig",
    "SDFTTrainer",
    "SDPOConfig",
    "SDPOTrainer",
    "SFTConfig",
    "SFTTrainer",
    "SelfDistillationTrainer",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("pbsd.config" if name.endswith("Config") else "pbsd.api"), name)
    raise AttributeError(f"module 'pbsd' has no attribute {name!r}")
