"""Fused operations, each usable alone: on a GPU one kernel, elsewhere the same numbers in plain PyTorch. `why_not(name)` tells why a call took no kernel."""
from .activation import bias_gelu, gated
from .adamw import AdamW, clip_factor, grad_norm
from .attention import attention_packed, attention_padded
from .dispatch import why_not
from .embedding import embedding_sum
from .gather_targets import gather_targets
from .linear_cross_entropy import linear_cross_entropy
from .lora_linear import lora_linear
from .mask_tokens import mask_tokens, token_kinds
from .muon import Muon
from .norm import layer_norm_residual, rms_norm_residual
from .rope import rope, rope_tables

__all__ = ["AdamW", "Muon", "attention_packed", "attention_padded", "bias_gelu", "clip_factor", "embedding_sum", "gated", "gather_targets", "grad_norm", "layer_norm_residual",
           "linear_cross_entropy", "lora_linear", "mask_tokens", "rms_norm_residual", "rope", "rope_tables", "token_kinds", "why_not"]
