"""Options: one dataclass per method; names follow TRL's where it has one, defaults the method's publication or TRL."""

from pbsd.config.base import RolloutConfig, TeacherConfig, TeacherSamplesConfig
from pbsd.config.distillation import DistillationConfig, OPSDConfig, SDFTConfig, SDPOConfig
from pbsd.config.imitation import ImitationConfig, RFTConfig, SFTConfig
from pbsd.config.pbsd import PBSDConfig
from pbsd.config.reward import GRPOConfig, OnlineDPOConfig

__all__ = [
    "DistillationConfig",
    "GRPOConfig",
    "ImitationConfig",
    "OPSDConfig",
    "OnlineDPOConfig",
    "PBSDConfig",
    "RFTConfig",
    "RolloutConfig",
    "SDFTConfig",
    "SDPOConfig",
    "SFTConfig",
    "TeacherConfig",
    "TeacherSamplesConfig",
]
