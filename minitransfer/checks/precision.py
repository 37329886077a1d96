"""bf16 and fp16: who is further from the truth. The truth is the reference in fp64, on the same inputs."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn.model import Model
from .parity import compare_outputs
from .reference import load_reference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SLACK = 1.1                                 # sums are taken in other orders
ENDS = (("logits",), ("prediction_logits",), ("start_logits", "end_logits"))


@dataclass(frozen=True)
class PrecisionRow:
    """Mean distance from the fp64 truth, ours and theirs, over all inputs."""

    dtype: str
    what: str
    ours: float
    theirs: float

    @property
    def holds(self) -> bool:
        return self.ours <= SLACK * self.theirs

    def __str__(self) -> str:
        return f"{self.dtype}: {self.what} lie {self.ours:.2e} from the fp64 truth here, {self.theirs:.2e} there" + ("" if self.holds else "  too far")


def named(out: Any) -> dict[str, Tensor]:
    """States and logits of the reference, under the names that `compare_outputs` gives them."""
    found = {f"state {i}": state for i, state in enumerate(getattr(out, "hidden_states", None) or out.decoder_hidden_states)}
    fields = next((names for names in ENDS if all(getattr(out, name, None) is not None for name in names)), None)
    return found if fields is None else found | {"logits": torch.cat([getattr(out, name) for name in fields])}


def compare_precision(folder: Path, name: str, class_name: str, inputs: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> list[PrecisionRow]:
    """Ours and theirs in this dtype against theirs in fp64: the mean over all states, and over the logits."""
    truth, theirs = load_reference(folder, torch.float64), load_reference(folder, DTYPES[name])
    ours = Model.from_pretrained(folder, head=truth.head, dtype=DTYPES[name])
    mine, their = defaultdict(list), defaultdict(list)

    def beside(module: torch.nn.Module, given: tuple, words: dict[str, Any], made: Any) -> None:
        """Whatever the truth is asked, theirs is asked too."""
        wanted, got = named(made), named(theirs.model(*given, **words))
        for what in wanted:
            their[what.split()[0]].append((got[what].double() - wanted[what]).abs().mean().item())
    handle = truth.model.register_forward_hook(beside, with_kwargs=True)
    for ids, keep, types in inputs:
        for one in compare_outputs(truth.model, ours, ids, keep, types):
            if one.what == "logits" or one.what.startswith("state "):
                mine[one.what.split()[0]].append(one.mean)
    handle.remove()
    return [PrecisionRow(name, {"state": "states"}.get(what, what), sum(mine[what]) / len(mine[what]), sum(their[what]) / len(their[what])) for what in their]
