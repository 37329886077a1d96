"""Small parts that are put into a frozen body and train with the head; what is saved is an adapter.

The methods themselves are in `transfer/`: lora.py, ia3.py, adapter.py, prefix.py, soft_prompt.py; their files in peft_lora.py and peft_kinds.py.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ...config import choose
from ...nn.model import Model
from ...ops.quantized_weight import FORMATS
from ..adapter import add_adapter
from ..base import Strategy, with_gentle_pooler
from ..groups import fresh_names
from ..ia3 import add_ia3, ia3_names
from ..lora import add_lora
from ..named import DEFAULT, adapter_names
from ..peft_files import save_adapter
from ..prefix import add_prefix, prefix_names
from ..quantize import quantize
from ..soft_prompt import add_soft_prompt, soft_prompt_names


def inserted(name: str, insert: Callable[[Model, int], object], names: Callable[[Model], Iterable[str]], lr: float) -> Strategy:
    """insert: (model, seed), puts the parts in; names: of what they hold."""
    return Strategy(name, insert=insert, trains=lambda model: {*names(model), *fresh_names(model)}, settings={"lr": lr}, save=save_adapter)


def gentle(strategy: Strategy) -> Strategy:
    """A pooler that starts fresh keeps a rate of its own, see `with_gentle_pooler`."""
    return replace(strategy, rate=with_gentle_pooler(strategy.settings["lr"]))


def lora(r: int = 8, alpha: int | float = 16, dropout: int | float = 0.0, targets: str | list[str] = "all", rslora: bool = False,
         dora: bool = False, name: str = DEFAULT, base: str | None = None) -> Strategy:
    """Low-rank changes of the frozen body's matrices, and the head, train. See `add_lora`; saved as a PEFT adapter.

    base: "int8" or "nf4" holds the frozen matrices of the blocks in so many bits (QLoRA); None: as they are.

    Here every Linear of the blocks gets one by default: on 2,000 rows of sst2 that is as good as full fine-tuning (`minitransfer bench transfer`).
    Raises: ValueError for another base.
    """
    if base is not None:
        choose("base", base, tuple(FORMATS))

    def insert(model: Model, seed: int) -> None:
        if base is not None:
            quantize(model, base)
        add_lora(model, r, alpha, dropout, targets, rslora, dora, seed, name)
    return inserted("lora", insert, lambda model: adapter_names(model, name), 1e-3)


def ia3(outputs: str | list[str] = "k,v", inputs: str | list[str] = "down") -> Strategy:
    """Scales of keys, values and the feed-forward's hidden, and the head, train. See `add_ia3`; saved as a PEFT adapter."""
    return gentle(inserted("ia3", lambda model, seed: add_ia3(model, outputs, inputs), ia3_names, 1e-2))


def adapter(size: int = 64, placement: str = "houlsby", activation: str = "gelu", name: str = DEFAULT, hypercomplex: int = 0, rank: int = 1) -> Strategy:
    """Small networks behind the projections of each block, and the head, train. See `add_adapter`; the adapter and the head are saved."""
    return inserted("adapter", lambda model, seed: add_adapter(model, size, placement, activation, name, seed, hypercomplex, rank),
                    lambda model: adapter_names(model, name), 1e-3)


def compacter(size: int = 24, n: int = 4, rank: int = 1, placement: str = "houlsby", activation: str = "gelu", name: str = DEFAULT) -> Strategy:
    """Bottleneck adapters whose matrices are sums of `n` Kronecker products of low rank, and the head, train: 57,088 parameters in BERT-base.

    With placement="pfeiffer" it is what the paper calls Compacter++. See `add_adapter`; the adapter and the head are saved.
    """
    return gentle(replace(adapter(size, placement, activation, name, hypercomplex=n, rank=rank), name="compacter", settings={"lr": 1e-2}))


def prefix(length: int = 20) -> Strategy:
    """Keys and values before those of the text in every block, and the head, train; texts may be `length` tokens shorter. See `add_prefix`;
    saved as a PEFT adapter."""
    return replace(gentle(inserted("prefix", lambda model, seed: add_prefix(model, length, seed), prefix_names, 3e-2)), ahead=length)


def soft_prompt(length: int = 20) -> Strategy:
    """Vectors before those of the text, and the head, train; texts may be `length` tokens shorter. See `add_soft_prompt`; saved as a PEFT adapter."""
    return replace(gentle(inserted("soft_prompt", lambda model, seed: add_soft_prompt(model, length, seed), soft_prompt_names, 3e-2)), ahead=length)
