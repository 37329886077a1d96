"""A frozen matrix that is held as codes of 8 or 4 bits: the base of LoRA in little memory. `ops/linear.py` multiplies by it.

    W ~ dequantise(codes), made where it is needed and forgotten at once        int8: ops/int8.py        nf4: ops/nf4.py

Source: Dettmers et al. 2023 (QLoRA), section 3.
"""
from __future__ import annotations

import copy
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from . import int8, nf4

FORMATS: dict[str, ModuleType] = {"int8": int8, "nf4": nf4}


class QuantizedWeight(Tensor):
    """A matrix held as codes. It has the matrix's shape and dtype; a conversion keeps the codes, and whatever else is computed from it is computed from the
    dequantised numbers.

    Args: called: one of FORMATS; dtype: of the numbers; parts: the tensors that `quantise` of this format returns.
    """

    called: str

    @staticmethod
    def __new__(cls, called: str, shape: torch.Size, dtype: torch.dtype, parts: tuple[Tensor, ...]):
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=parts[0].device)
        made.called = called
        vars(made).update({f"part{i}": part for i, part in enumerate(parts)})
        return made

    @classmethod
    def of(cls, weight: Float[Tensor, "F D"], called: str) -> QuantizedWeight:
        """The codes of a matrix, one of FORMATS. Raises: ValueError for numbers that are not finite: they share a scale with others."""
        weight = weight.detach()
        if not bool(weight.isfinite().all()):
            raise ValueError(f"a matrix of shape {tuple(weight.shape)} with numbers that are not finite, to be held in {called}; the numbers that share a scale with them "
                             "would be lost: load the model anew")
        return cls(called, weight.shape, weight.dtype, FORMATS[called].quantise(weight))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.__tensor_flatten__()[0])

    @property
    def held_bytes(self) -> int:
        """What the codes and their scales take."""
        return sum(part.nbytes for part in self.parts)

    def dequantised(self) -> Float[Tensor, "F D"]:
        return FORMATS[self.called].dequantise(self.shape, *self.parts).to(self.dtype)

    def __tensor_flatten__(self) -> tuple[list[str], tuple[str, torch.dtype]]:
        """How PyTorch takes a tensor apart that is made of others, for nn.Module.to among others."""
        return [name for name in vars(self) if name.startswith("part")], (self.called, self.dtype)

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], facts: tuple[str, torch.dtype], shape: torch.Size, stride: tuple[int, ...]) -> QuantizedWeight:
        return QuantizedWeight(facts[0], shape, facts[1], tuple(parts.values()))

    def __deepcopy__(self, memo: dict) -> QuantizedWeight:
        twin = memo[id(self)] = QuantizedWeight(self.called, self.shape, self.dtype, copy.deepcopy(self.parts, memo))
        twin._is_param = getattr(self, "_is_param", False)                       # of a module
        return twin

    def __repr__(self) -> str:                                                   # type: ignore[override]
        return f"QuantizedWeight({self.called}, {tuple(self.shape)}, {self.held_bytes:,} bytes)"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):              # type: ignore[override]
        kwargs = kwargs or {}
        if func in (torch.ops.aten.detach.default, torch.ops.aten._to_copy.default):
            given, device, dtype = args[0], kwargs.get("device"), kwargs.get("dtype")
            return cls(given.called, given.shape, dtype or given.dtype, tuple(part.to(device or part.device) for part in given.parts))
        args, kwargs = tree_map(lambda one: one.dequantised() if isinstance(one, cls) else one, (args, kwargs))
        return func(*args, **kwargs)


def plain(weight: Tensor) -> Tensor:
    """The tensor itself, of codes the numbers they stand for."""
    return weight.dequantised() if isinstance(weight, QuantizedWeight) else weight
