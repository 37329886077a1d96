"""Everything trains, or the head alone, or with it the last blocks or all biases: freezing is the whole method."""
from __future__ import annotations

from ...nn.model import Model
from ..base import Strategy, with_gentle_pooler
from ..groups import fresh_names, layer_groups

LR = 1e-2


def full() -> Strategy:
    """Everything trains: the most that the data can change, and the most to store."""
    return Strategy("full", trains=lambda model: [name for name, _ in model.named_parameters()])


def head() -> Strategy:
    """Only the head trains, on a frozen body: a linear probe. A pooler trains along if the checkpoint had none."""
    return Strategy("head", trains=fresh_names, settings={"lr": LR}, rate=with_gentle_pooler(LR))


def last(k: int) -> Strategy:
    """The last `k` blocks train and whatever stands above them: final norm, pooler, head. The backward pass stops below.

    Raises: ValueError, when applied, for a model with fewer blocks.
    """
    def trains(model: Model) -> list[str]:
        blocks = len(model.blocks)
        if not 1 <= k <= blocks:
            shared = f" ({model.config.n_layers} layers share it)" if model.config.shared_blocks else ""
            raise ValueError(f"strategy 'last:{k}' on a model of {blocks} block{'s' if blocks > 1 else ''}{shared}; it trains the last k of them: "
                             f"give {f'1 to {blocks}' if blocks > 1 else 1}, or use 'head' or 'full'")
        frozen = {"embed", "relative", *(f"blocks.{i}" for i in range(blocks - k))}
        return [name for group, names in layer_groups(model).items() if group not in frozen for name in names]
    return Strategy(f"last:{k}", trains)


def bitfit() -> Strategy:
    """The biases of the body and the whole head train: y = W x + b with W as it was; a thousandth of the model.

    Saved as a whole model. Raises: ValueError, when applied, for a body without biases.
    Source: Ben Zaken et al. 2022, equation 1. Deviation: all biases of the body, the pooler's with them, and no choice among them.
    """
    return Strategy("bitfit", trains=lambda model: {*biases(model), *fresh_names(model)}, settings={"lr": LR}, rate=with_gentle_pooler(LR))


def biases(model: Model) -> list[str]:
    """The names of all biases: of linear layers and of norms. Raises: ValueError for a body that has none."""
    found = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    if not any(not name.startswith("head.") for name in found):
        raise ValueError("strategy 'bitfit' on a body without biases; it trains nothing else in a body: choose lora, last:2 or full for this model")
    return found
