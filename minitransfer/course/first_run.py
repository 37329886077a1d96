"""01, the first run."""
from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

from ..nn.model import Model
from ..transfer import add_lora
from .exercise import demand, exercise


@exercise("01", "lora_numbers(blocks, d, r) -> how many numbers LoRA trains that corrects the d x d query and value projections of every block")
def lora_numbers(answer: Callable) -> str:
    for r in (1, 4, 8):
        model = Model.from_pretrained("mini-bert", head="none")
        add_lora(model, r=r, targets="q,v")
        inserted = sum(p.numel() for name, p in model.named_parameters() if "lora" in name.lower())
        found = answer(len(model.blocks), model.config.d_model, r)
        demand(found == inserted, f"{found} for r={r}, add_lora inserts {inserted}")
    return "as many as add_lora inserts, for three ranks"


@exercise("01", "freeze_below_last_block(model): afterwards its last block and what stands above learn, and nothing else")
def freeze_below_last_block(answer: Callable) -> str:
    model = Model.from_pretrained("mini-bert", head="sequence", labels=["a", "b"])
    answer(model)
    top = (f"blocks.{len(model.blocks) - 1}.", "pooler.", "head.")
    odd = [name for name, p in model.named_parameters() if p.requires_grad != name.startswith(top)]
    demand(not odd, f"{odd[0] if odd else ''} {'is frozen and should learn' if odd and odd[0].startswith(top) else 'learns and should be frozen'}")
    return "every parameter of mini-bert looked at"


@exercise("01", "sure_answers(predictions, truth, threshold) -> the share of texts answered with at least this probability, and the accuracy on these (0.0 without any)")
def sure_answers(answer: Callable) -> str:
    given = [("a", 0.55, "a"), ("b", 0.8, "b"), ("a", 0.9, "b"), ("b", 0.99, "b"), ("b", 0.7, "a")]
    predictions, truth = [SimpleNamespace(label=label, probability=p) for label, p, _ in given], [right for *_, right in given]
    for threshold, wanted in ((0.0, (1.0, 3 / 5)), (0.8, (3 / 5, 2 / 3)), (1.01, (0.0, 0.0))):
        found = answer(predictions, truth, threshold)
        demand(all(math.isclose(a, b) for a, b in zip(found, wanted, strict=True)), f"{found} at {threshold}, it is {wanted}")
    return "at three thresholds, one of them that of an answer"
