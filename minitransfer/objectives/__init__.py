"""What a model is trained to do. An objective turns a batch into a sum of losses and the number of targets in it; the loop divides."""
from .base import Objective
from .causal import Causal
from .denoising import Denoising
from .distillation import Distilled
from .masked import Masked
from .preference import Preference
from .span import Span, with_sentinels

__all__ = ["Causal", "Denoising", "Distilled", "Masked", "Objective", "Preference", "Span", "with_sentinels"]
