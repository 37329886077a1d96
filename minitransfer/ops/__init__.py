"""Fused operations, each usable alone: on a GPU one kernel, elsewhere the same numbers in plain PyTorch. `why_not(name)` tells why a call took no kernel."""
from .activation import bias_gelu, gated
from .dispatch import why_not
from .norm import layer_norm_residual, rms_norm_residual

__all__ = ["bias_gelu", "gated", "layer_norm_residual", "rms_norm_residual", "why_not"]
