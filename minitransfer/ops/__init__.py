"""Fused operations, each usable alone: on a GPU one kernel, elsewhere the same numbers in plain PyTorch. `why_not(name)` tells why a call took no kernel."""
from .activation import bias_gelu, gated
from .dispatch import why_not
from .embedding import embedding_sum
from .gather_targets import gather_targets
from .linear_cross_entropy import linear_cross_entropy
from .norm import layer_norm_residual, rms_norm_residual
from .rope import rope, rope_tables

__all__ = ["bias_gelu", "embedding_sum", "gated", "gather_targets", "layer_norm_residual", "linear_cross_entropy", "rms_norm_residual", "rope", "rope_tables", "why_not"]
