"""Low-rank adapters as a strategy. The method itself is in `transfer/lora.py`, its files in `transfer/peft_lora.py`."""
from __future__ import annotations

from ...config import choose
from ...nn.model import Model
from ...ops.quantized_weight import FORMATS
from ..base import Strategy
from ..groups import fresh_names
from ..lora import add_lora
from ..named import DEFAULT, adapter_names
from ..peft_files import save_adapter
from ..quantize import quantize


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
    return Strategy(
        "lora", insert=insert,
        trains=lambda model: {*adapter_names(model, name), *fresh_names(model)}, settings={"lr": 1e-3}, save=save_adapter)
