"""What is given by mistake: no model, or one that cannot be asked."""
from __future__ import annotations

from pathlib import PurePath

from torch import nn

from .encoder_decoder import EncoderDecoder
from .heads import VocabularyHead
from .model import Model


def need_model(model: object, verb: str) -> None:
    """Raises: ValueError for what is no model, such as its name."""
    if not isinstance(model, nn.Module):
        named = isinstance(model, str | PurePath)
        raise ValueError(f"{verb} with {repr(str(model)) if named else type(model).__name__} in the place of the model; it takes one that is loaded: "
                         f"give mt.Model.from_pretrained({repr(str(model)) if named else 'source'})")


def need_vocabulary(model: Model, what: str) -> None:
    """Raises: ValueError for a model without the vocabulary head of its body."""
    if isinstance(model, EncoderDecoder) or not isinstance(model.head, VocabularyHead):
        raise ValueError(f'{what} of a model with head="{model.head_name}"; it is asked of the head that a body was pretrained with: load it with head="masked" or "causal"')
