"""One file per method, each reading like its paper. Methods share the engine and never import each other."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pbsd.config import (
    GRPOConfig,
    OnlineDPOConfig,
    OPSDConfig,
    PBSDConfig,
    RFTConfig,
    RolloutConfig,
    SDFTConfig,
    SDPOConfig,
    SFTConfig,
)

if TYPE_CHECKING:
    from pbsd.engine import Engine
    from pbsd.methods.method import Method

METHODS: dict[str, tuple[type[RolloutConfig], str]] = {
    "pbsd": (PBSDConfig, "PBSD"),
    "opsd": (OPSDConfig, "OPSD"),
    "sdft": (SDFTConfig, "SDFT"),
    "sdpo": (SDPOConfig, "SDPO"),
    "grpo": (GRPOConfig, "GRPO"),
    "online_dpo": (OnlineDPOConfig, "OnlineDPO"),
    "rft": (RFTConfig, "RFT"),
    "sft": (SFTConfig, "SFT"),
}
"""Name -> its options and its class, which lies in the file of that name."""


def method_name(args: RolloutConfig) -> str:
    """The name of the method that the options are for. Raises ValueError for options of no method."""
    for name, (config, _) in METHODS.items():
        if isinstance(args, config):
            return name
    configs = ", ".join(config.__name__ for config, _ in METHODS.values())
    raise ValueError(f"{type(args).__name__} is of no method: pass one of {configs}")


def make_method(args: RolloutConfig, engine: Engine) -> Method:
    """The method of the options, on the engine."""
    name = method_name(args)
    made: Method = getattr(import_module(f"pbsd.methods.{name}"), METHODS[name][1])(args, engine)
    return made
