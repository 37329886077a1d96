"""Which base an adapter was trained on: a hash of the shapes and of a sample of the values of every tensor below the head.

    hash at a precision p = sha256(names, shapes, values cast to p)          values: at most 16 of a tensor, evenly spread

The same base may be loaded in fp32, fp16 or bf16. Casting is repeatable, so the hash at a lower precision can be had from the higher one: a base is known
by its hash at each precision that it holds, and two are the same if all they have in common agree. (fp16 and bf16 have nothing in common: not compared.)
A quantised base is the one that it was quantised from. The head, the pooler under it and all that ways to adapt put in do not count.
"""
from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..nn.model import Model
from ..ops.kernels import rehearsed
from .beside import beside
from .prefix import prefix_names
from .soft_prompt import soft_prompt_names
from .wrapped import WrappedLinear, own_names, wrapped_linears

SAMPLE = 16
HELD = {torch.float32: ("fp32", "fp16", "bf16"), torch.float16: ("fp16",), torch.bfloat16: ("bf16",)}       # a dtype -> the precisions it can be cast to
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def inserted_names(model: Model) -> set[str]:
    """The parameters that ways to adapt have put in."""
    return {*own_names(model, WrappedLinear), *prefix_names(model), *soft_prompt_names(model)}


def base_tensors(model: Model) -> dict[str, Tensor]:
    """The body's parameters as they were loaded, also under a merged adapter."""
    inserted = inserted_names(model)
    found = {name: p.detach() for name, p in model.named_parameters() if not name.startswith(("head.", "pooler.")) and name not in inserted}
    found |= {name: value for name, (_, value) in beside(model).base.items() if name in found}
    for at, layer in wrapped_linears(model, WrappedLinear).items():
        if layer.kept is not None:
            found |= {f"{at}.{name}": layer.kept[name] for name in ("weight", "bias") if f"{at}.{name}" in found}
    return found


def fingerprint(model: Model) -> dict[str, str]:
    """Precision -> hash of the body, for each precision that its numbers can be cast to from their own. The same on every device."""
    if model.quantized_from is not None or rehearsed.get() is not None:
        return model.quantized_from or {}                                        # a rehearsal has no numbers to know a base by
    tensors = base_tensors(model)
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in tensors.items()]).encode()
    flat = [tensor.flatten()[:: max(1, tensor.numel() // SAMPLE)][:SAMPLE] for tensor in tensors.values()]
    held = [one for one in DTYPES if all(one in HELD.get(tensor.dtype, DTYPES) for tensor in flat)]
    values = torch.cat([one.to(model.device, torch.float32) for one in flat]).cpu()
    return {one: hashlib.sha256(shapes + values.to(DTYPES[one]).view(torch.uint8).numpy().tobytes()).hexdigest()[:16] for one in held}


def differs(model: Model, known: dict[str, str]) -> str | None:
    """The first precision at which the model's body is not the one that is known, with both hashes; None: no difference can be seen."""
    mine = fingerprint(model)
    return next((f"{one} fingerprint {known[one]}, here {mine[one]}" for one in mine if one in known and known[one] != mine[one]), None)
