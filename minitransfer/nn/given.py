"""What is given in the place of a model by mistake."""
from __future__ import annotations

from pathlib import PurePath

from torch import nn


def need_model(model: object, verb: str) -> None:
    """Raises: ValueError for what is no model, such as its name."""
    if not isinstance(model, nn.Module):
        named = isinstance(model, str | PurePath)
        raise ValueError(f"{verb} with {repr(str(model)) if named else type(model).__name__} in the place of the model; it takes one that is loaded: "
                         f"give mt.Model.from_pretrained({repr(str(model)) if named else 'source'})")
