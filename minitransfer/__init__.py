"""Transfer learning in NLP you can read, run and check.

Letters used in every shape, comment and test:

    B batch     T query positions    S key positions    D model width    H query heads    K key/value heads
    Dh head width    F feed-forward width    E embedding width    V vocabulary    L blocks    R rank of an adapter    N rows of anything
"""
from . import samples
from .checks import inspect
from .config import ModelConfig
from .generate import embed, fill, generate
from .nn.cache import Cache
from .nn.encoder_decoder import EncoderDecoder
from .nn.model import Model, ModelOutput
from .tasks import Prediction, finetune, predict
from .text import Tokenizer
from .training import adapt, pretrain
from .transfer import (
    add_lora,
    explain,
    freeze,
    freeze_to,
    layer_groups,
    load_adapter,
    merge_lora,
    remove_adapters,
    save_adapter,
    trainable_report,
    unfreeze,
    unmerge_lora,
)
from .weights.convert import convert

__version__ = "0.1.0"
__all__ = ["Cache", "EncoderDecoder", "Model", "ModelConfig", "ModelOutput", "Prediction", "Tokenizer", "adapt", "add_lora", "convert", "embed", "explain", "fill", "finetune",
           "freeze", "freeze_to", "generate", "inspect", "layer_groups", "load_adapter", "merge_lora", "predict", "pretrain", "remove_adapters", "samples", "save_adapter",
           "trainable_report", "unfreeze", "unmerge_lora"]
