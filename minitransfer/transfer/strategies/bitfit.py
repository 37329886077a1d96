"""Only biases train: a thousandth of the model, stored as a thousandth of it, and what a layer computes is shifted but never turned."""
from __future__ import annotations

from ...nn.model import Model
from ..base import Strategy, with_gentle_pooler
from ..groups import fresh_names

LR = 1e-2


def biases(model: Model) -> list[str]:
    """The names of all biases: of linear layers and of norms. Raises: ValueError for a body that has none."""
    found = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    if not any(not name.startswith("head.") for name in found):
        raise ValueError("strategy 'bitfit' on a body without biases; it trains nothing else in a body: choose lora, last:2 or full for this model")
    return found


def bitfit() -> Strategy:
    """The biases of the body and the whole head train: y = W x + b with W as it was.

    Saved as a whole model. Raises: ValueError, when applied, for a body without biases.
    Source: Ben Zaken et al. 2022, equation 1. Deviation: all biases of the body, the pooler's with them, and no choice among them.
    """
    return Strategy("bitfit", trains=lambda model: {*biases(model), *fresh_names(model)}, settings={"lr": LR}, rate=with_gentle_pooler(LR))
