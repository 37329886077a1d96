"""Transfer learning in NLP you can read, run and check.

Letters used in every shape, comment and test:

    B batch     T query positions    S key positions    D model width    H query heads    K key/value heads
    Dh head width    F feed-forward width    E embedding width    V vocabulary    L blocks    R rank of an adapter    N rows of anything
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import samples
from .config import ModelConfig, RecurrentConfig
from .generate import embed, fill, generate
from .nn.cache import Cache
from .nn.encoder_decoder import EncoderDecoder
from .nn.model import Model, ModelOutput
from .nn.recurrent import RecurrentModel
from .nn.two_towers import TwoTowers
from .tasks import Prediction, classify_images, finetune, predict
from .text import ImageReader, Tokenizer, attention_view, show
from .training import adapt, pretrain, train_vectors
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
from .weights.two_towers import load_two_towers, save_two_towers

if TYPE_CHECKING:
    from . import study
    from .checks import doctor, inspect, plan, recommend, verify, why
    from .course import check
    from .study import trace

# what examines a model is imported when it is first asked for: a program that trains or predicts starts without it
LATER = {"study": "study", "trace": "study", "check": "course", **dict.fromkeys(("doctor", "inspect", "plan", "recommend", "verify", "why"), "checks")}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = import_module(f".{LATER[name]}", __name__)
    return room if name == LATER[name] else getattr(room, name)


def __dir__() -> list[str]:
    """With the names that come later, so that completion finds them."""
    return sorted({*globals(), *LATER})


__version__ = "0.1.0"
__all__ = ["Cache", "EncoderDecoder", "ImageReader", "Model", "ModelConfig", "ModelOutput", "Prediction", "RecurrentConfig", "RecurrentModel", "Tokenizer", "TwoTowers", "adapt",
           "add_lora", "attention_view", "check", "classify_images", "convert", "doctor", "embed", "explain", "fill", "finetune", "freeze", "freeze_to", "generate", "inspect",
           "layer_groups", "load_adapter", "load_two_towers", "merge_lora", "plan", "predict", "pretrain", "recommend", "remove_adapters", "samples", "save_adapter",
           "save_two_towers", "show", "study", "trace", "train_vectors", "trainable_report", "unfreeze", "unmerge_lora", "verify", "why"]
