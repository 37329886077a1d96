"""Transfer learning in NLP you can read, run and check.

Letters used in every shape, comment and test:

    B batch     T query positions    S key positions    D model width    H query heads    K key/value heads
    Dh head width    F feed-forward width    E embedding width    V vocabulary    L blocks    R rank of an adapter    N rows of anything
"""
from .config import ModelConfig
from .generate import embed, fill, generate
from .nn.cache import Cache
from .nn.model import Model, ModelOutput

__all__ = ["Cache", "Model", "ModelConfig", "ModelOutput", "embed", "fill", "generate"]
