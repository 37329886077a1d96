"""Fused operations, each usable alone: on a GPU one kernel, elsewhere the same numbers in plain PyTorch. `why_not(name)` tells why a call took no kernel."""
from .adamw import AdamW, clip_factor, grad_norm
from .dispatch import why_not
from .lora_linear import lora_linear
from .mask_tokens import mask_tokens, token_kinds
from .muon import Muon
from .norm import layer_norm_residual, rms_norm_residual

__all__ = ["AdamW", "Muon", "clip_factor", "grad_norm", "layer_norm_residual", "lora_linear", "mask_tokens", "rms_norm_residual", "token_kinds", "why_not"]
