"""Prompt tuning as a strategy. The method itself is in `transfer/soft_prompt.py`, its files in `transfer/peft_kinds.py`."""
from __future__ import annotations

from ..base import Strategy, with_gentle_pooler
from ..groups import fresh_names
from ..peft_files import save_adapter
from ..soft_prompt import add_soft_prompt, soft_prompt_names

LR = 3e-2


def soft_prompt(length: int = 20) -> Strategy:
    """Vectors before those of the text, and the head, train; texts may be `length` tokens shorter. See `add_soft_prompt`; saved as a PEFT adapter."""
    return Strategy(
        "soft_prompt", insert=lambda model, seed: add_soft_prompt(model, length, seed), ahead=length,
        trains=lambda model: {*soft_prompt_names(model), *fresh_names(model)}, settings={"lr": LR}, rate=with_gentle_pooler(LR), save=save_adapter)
