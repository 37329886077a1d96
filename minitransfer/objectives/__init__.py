"""What a model is trained to do. An objective turns a batch into a sum of losses and the number of targets in it; the loop divides."""
from .base import Objective
from .carried import Carried
from .causal import Causal
from .denoising import Denoising
from .distillation import Distilled
from .masked import Masked
from .preference import Preference
from .replaced import Replaced
from .span import Span, with_sentinels
from .word2vec import NegativeSampling

__all__ = ["Carried", "Causal", "Denoising", "Distilled", "Masked", "NegativeSampling", "Objective", "Preference", "Replaced", "Span", "with_sentinels"]
