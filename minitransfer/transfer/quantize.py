"""A frozen base in 8 or 4 bits, and what a LoRA step on it takes: the memory of QLoRA.

Every Linear of the blocks is held as codes (`ops/quantized_weight.py`); embeddings, norms, biases and the head stay as they are. What is added on top trains in
the precision it has.

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs".
"""
from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..config import choose
from ..nn.model import Model
from ..ops.quantized_weight import FORMATS, QuantizedWeight
from .fingerprint import fingerprint
from .wrapped import check_free, linear_names


@dataclass(frozen=True, repr=False)
class QuantizeReport:
    """What a base takes; prints as a sentence. `held`: bytes of the codes and scales of the matrices."""

    called: str
    matrices: int
    weights: int
    held: int
    before: int

    @property
    def bytes_per_weight(self) -> float:
        return self.held / self.weights

    def __str__(self) -> str:
        return (f"{self.matrices} matrices of {self.weights:,} weights in {self.called}: {self.held:,} bytes, {self.bytes_per_weight:.4f} a weight; before "
                f"{self.before:,}, {self.before / self.weights:.4f} a weight")

    __repr__ = __str__


def quantized_weights(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Name -> weight, for every matrix of the model that is held as codes."""
    return {name: p for name, p in model.named_parameters() if isinstance(p, QuantizedWeight)}


def put(model: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Let `weight` be the parameter of this name."""
    at, _, own = name.rpartition(".")
    setattr(model.get_submodule(at), own, weight)


def quantize(model: Model, base: str = "nf4") -> QuantizeReport:
    """Hold every Linear of the blocks in "int8" or "nf4", frozen; what is on a model then, LoRA for example, is added afterwards. It is still the base that it was
    loaded as: an adapter goes with both.

    Returns: what the matrices take now, and took before.
    Raises:  ValueError for another format, a model that carries an adapter or is quantised already, or has no blocks.
    """
    choose("base", base, tuple(FORMATS))
    names = [name for name in linear_names(model) if "blocks." in name]
    check_free(model, names)
    if not names:
        raise ValueError(f"quantize on a {type(model).__name__} without a Linear in its blocks; these are what is quantised: use a model that has some")
    if quantized_weights(model):
        raise ValueError(f"quantize to {base} on a model that is quantised already; codes of codes lose twice: call dequantize(model) first, or load the model anew")
    known, held, before, weights = fingerprint(model), 0, 0, 0
    for name in names:
        weight = model.get_parameter(name + ".weight")
        codes = QuantizedWeight.of(weight, base)
        put(model, name + ".weight", nn.Parameter(codes, requires_grad=False))
        held, before, weights = held + codes.held_bytes, before + weight.nbytes, weights + weight.numel()
    model.quantized_from = known
    return QuantizeReport(base, len(names), weights, held, before)


def dequantize(model: Model) -> None:
    """Put the numbers that the codes stand for in their place. They stay frozen until told otherwise, and are the base from now on."""
    for name, weight in quantized_weights(model).items():
        put(model, name, nn.Parameter(weight.dequantised(), requires_grad=False))
    model.quantized_from = None
