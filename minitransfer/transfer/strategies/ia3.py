"""(IA)^3 as a strategy. The method itself is in `transfer/ia3.py`, its files in `transfer/peft_kinds.py`."""
from __future__ import annotations

from ..base import Strategy, with_gentle_pooler
from ..groups import fresh_names
from ..ia3 import add_ia3, ia3_names
from ..peft_files import save_adapter

LR = 1e-2


def ia3(outputs: str | list[str] = "k,v", inputs: str | list[str] = "down") -> Strategy:
    """Scales of keys, values and the feed-forward's hidden, and the head, train. See `add_ia3`; saved as a PEFT adapter."""
    return Strategy(
        "ia3", insert=lambda model, seed: add_ia3(model, outputs, inputs),
        trains=lambda model: {*ia3_names(model), *fresh_names(model)}, settings={"lr": LR}, rate=with_gentle_pooler(LR), save=save_adapter)
