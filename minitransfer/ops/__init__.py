"""Fused operations, each usable alone: on a GPU one kernel, elsewhere the same numbers in plain PyTorch. `why_not(name)` tells why a call took no kernel."""
from .dispatch import why_not
from .norm import layer_norm_residual, rms_norm_residual

__all__ = ["layer_norm_residual", "rms_norm_residual", "why_not"]
