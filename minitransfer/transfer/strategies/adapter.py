"""Bottleneck adapters as a strategy. The method itself is in `transfer/adapter.py`, its files in `transfer/peft_kinds.py`."""
from __future__ import annotations

from ..adapter import add_adapter
from ..base import Strategy
from ..groups import fresh_names
from ..named import DEFAULT, adapter_names
from ..peft_files import save_adapter


def adapter(size: int = 64, placement: str = "houlsby", activation: str = "gelu", name: str = DEFAULT, hypercomplex: int = 0, rank: int = 1) -> Strategy:
    """Small networks behind the projections of each block, and the head, train. See `add_adapter`; the adapter and the head are saved."""
    return Strategy(
        "adapter", insert=lambda model, seed: add_adapter(model, size, placement, activation, name, seed, hypercomplex, rank),
        trains=lambda model: {*adapter_names(model, name), *fresh_names(model)}, settings={"lr": 1e-3}, save=save_adapter)
