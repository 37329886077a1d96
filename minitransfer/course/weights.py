"""06, real weights."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open

from ..families import bert
from ..families.rules import spelled, transpose_split
from ..nn.model import Model
from .exercise import demand, exercise, gap, in_engine
from .models import padded


@exercise("06", "shapes(raw) -> the shape of each tensor of a safetensors file, from its bytes")
def shapes(answer: Callable) -> str:
    with TemporaryDirectory() as aside:
        Model.from_pretrained("mini-gpt").save_pretrained(aside)
        file = Path(aside) / "model.safetensors"
        found = answer(file.read_bytes())
        with safe_open(file, "pt") as opened:
            truth = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}
    demand(isinstance(found, dict) and "__metadata__" not in found, "__metadata__ is no tensor, or the answer is no dict")
    odd = next((name for name in {**truth, **found} if list(found.get(name, ())) != truth.get(name)), None)
    demand(odd is None, f"{odd}: {found.get(odd)}, the file says {truth.get(odd or '')}")
    return f"{len(truth)} tensors of mini-gpt"


@exercise("06", "split_fused(weight) -> three matrices (D, D), output x input, from c_attn.weight (D, 3 D)")
def split_fused(answer: Callable) -> str:
    truth = Model.from_pretrained("mini-gpt").eval()
    made = replace(transpose_split, read=lambda t, n: answer(t) if t.dim() == 2 else transpose_split.read(t, n))
    with in_engine("families.rules:transpose_split", made):                      # type: ignore[arg-type]
        found = Model.from_pretrained("mini-gpt").eval()
    names = {name: p for name, p in truth.named_parameters() if "_proj.weight" in name and ".attn." in name}
    for name, p in names.items():
        gap(name, found.get_parameter(name), p, within=0.0)
    batch = padded(truth)
    return f"mini-gpt was loaded with it, logits within {gap('the logits', found(**batch).logits, truth(**batch).logits):.0e}"


@exercise("06", "our_name(theirs) -> our name of a tensor of a BERT file, or None for one that is none of a block")
def our_name(answer: Callable) -> str:
    config = Model.from_pretrained("mini-bert").config
    known = {theirs: ours[0] for theirs, _, ours in spelled(bert.weights(config), "masked", config)}
    for theirs, ours in known.items():
        full, wanted = theirs if theirs.startswith("cls.") else bert.PREFIX + theirs, ours if ours.startswith("blocks.") else None
        demand(answer(full) == wanted, f"{full} became {answer(full)!r}, it is {wanted!r}")
    eleventh = answer("bert.encoder.layer.11.output.dense.bias")
    demand(eleventh == "blocks.11.mlp.down_proj.bias", f"the bias of the last matrix of block 11 became {eleventh!r}")
    return f"{len(known)} names of mini-bert, and one of block 11"


@exercise("06", "first_difference(ours, theirs, bar) -> the first name that differs by more than the bar, or None")
def first_difference(answer: Callable) -> str:
    theirs = {"embed": torch.randn(3, 5), "blocks.0": 100 * torch.randn(3, 5), "blocks.1": torch.randn(3, 5)}
    one = torch.zeros(3, 5)
    one[1, 2] = 1.0
    top = float(theirs["blocks.0"].abs().max())
    cases = {"equal tensors": (0.0, 0.0, 0.0, None), "a large tensor within its bar": (0.0, 0.5e-5 * top, 0.0, None),
             "a large tensor beyond its bar": (0.0, 2e-5 * top, 0.0, "blocks.0"), "two that differ": (0.0, -3e-5 * top, 1.0, "blocks.0"),
             "a NaN": (float("nan"), 0.0, 1.0, "embed")}
    for what, (*added, wanted) in cases.items():
        ours = {name: t + one * by if by == by else t + torch.tensor(by) for (name, t), by in zip(theirs.items(), added, strict=True)}
        demand((found := answer(ours, theirs, 1e-5)) == wanted, f"for {what} it says {found!r}, it is {wanted!r}")
    return "five cases, one of them a NaN"
