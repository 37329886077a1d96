"""Prefix tuning as a strategy. The method itself is in `transfer/prefix.py`, its files in `transfer/peft_kinds.py`."""
from __future__ import annotations

from ..base import Strategy, with_gentle_pooler
from ..groups import fresh_names
from ..peft_files import save_adapter
from ..prefix import add_prefix, prefix_names

LR = 3e-2


def prefix(length: int = 20) -> Strategy:
    """Keys and values before those of the text in every block, and the head, train; texts may be `length` tokens shorter. See `add_prefix`;
    saved as a PEFT adapter."""
    return Strategy(
        "prefix", insert=lambda model, seed: add_prefix(model, length, seed), ahead=length,
        trains=lambda model: {*prefix_names(model), *fresh_names(model)}, settings={"lr": LR}, rate=with_gentle_pooler(LR), save=save_adapter)
