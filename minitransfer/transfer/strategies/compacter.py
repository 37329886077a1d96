"""Compacter as a strategy: bottleneck adapters of hypercomplex layers. The layer is in `transfer/hypercomplex.py`, the adapters in `transfer/adapter.py`."""
from __future__ import annotations

from dataclasses import replace

from ..base import Strategy, with_gentle_pooler
from .adapter import adapter

LR = 1e-2


def compacter(size: int = 24, n: int = 4, rank: int = 1, placement: str = "houlsby", activation: str = "gelu", name: str = "default") -> Strategy:
    """Bottleneck adapters whose matrices are sums of `n` Kronecker products of low rank, and the head, train: 57,088 parameters in BERT-base.

    With placement="pfeiffer" it is what the paper calls Compacter++. See `add_adapter`; the adapter and the head are saved.
    """
    return replace(adapter(size, placement, activation, name, hypercomplex=n, rank=rank), name="compacter", settings={"lr": LR}, rate=with_gentle_pooler(LR))
