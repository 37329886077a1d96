"""What a LoRA step on a decoder takes, before anything is loaded: every term can be checked by hand.

    base        codes of the matrices of the blocks (ops/nf4.py, ops/int8.py; None: b bytes a number)
    rest        b for each other number: token tables, norms, biases
    adapters    4 for each number of A and B, and 12 for its gradient and the two moments of AdamW
    kept        b L B T D: the input of each block, which is all that checkpointing keeps
    block       B T (b (10 D + 4 F) + 4 (6 D + F)): what one block keeps while it is computed again, and the float32 inputs of its As
    logits      12 V min(B T, 1024): a chunk of them, its softmax and its gradient (ops/linear_cross_entropy.py)
    matrix      8 for each number of the largest matrix: dequantised in float32, and what it is made from

B rows of T tokens, width D, feed-forward width F, vocabulary V, L blocks, b bytes a number of the activations and the rest (bf16: 2).
Left out: what PyTorch and the driver take (on a GPU about half a gigabyte), and what an allocator keeps in reserve.
Source: Dettmers et al. 2023 (QLoRA), section 2 (what takes memory); Chen et al. 2016 (checkpointing).
"""
from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from ..config import ModelConfig, choose
from ..nn.model import Model
from ..ops.linear_cross_entropy import CHUNK
from ..ops.quantized_weight import FORMATS
from .lora import add_lora
from .wrapped import linear_names


@dataclass(frozen=True, repr=False)
class StepMemory:
    """The terms of the module's docstring, in bytes. Prints as a list with their sum."""

    base: int
    rest: int
    adapters: int
    kept: int
    block: int
    logits: int
    matrix: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def fits(self, available: int, reserve: int = 2**29) -> bool:
        """Whether it fits so many bytes, `reserve` of which belong to PyTorch and the driver."""
        return self.total + reserve <= available

    def __str__(self) -> str:
        return "\n".join(f"{name:<9}{size / 2**20:>10,.1f} MiB" for name, size in {**asdict(self), "total": self.total}.items())

    __repr__ = __str__


def lora_step_memory(config: ModelConfig, batch: int, length: int, base: str | None = "nf4", r: int = 8, targets: str | list[str] = "all",
                     bytes_per_number: int = 2) -> StepMemory:
    """A LoRA step of a causal model with checkpointing, `batch` rows of `length` tokens each.

    Args:   base: "nf4", "int8" or None, as in `quantize`; r, targets: as in `add_lora`; bytes_per_number: of activations and of what is not quantised.
    Raises: ValueError for another base, or what `add_lora` raises.
    """
    choose("base", base, (None, *FORMATS))
    with torch.device("meta"):
        model = Model(config, "causal", seed=None)
    matrices = [tuple(model.get_parameter(name + ".weight").shape) for name in linear_names(model) if "blocks." in name]
    inside, every = sum(F * D for F, D in matrices), sum(p.numel() for p in model.parameters())
    tokens, D, F, b = batch * length, config.d_model, config.d_ff, bytes_per_number
    return StepMemory(
        base=inside * b if base is None else sum(FORMATS[base].held_bytes(*shape) for shape in matrices),
        rest=b * (every - inside), adapters=16 * add_lora(model, r, targets=targets).trainable, kept=b * config.n_layers * tokens * D,
        block=tokens * (b * (10 * D + 4 * F) + 4 * (6 * D + F)), logits=12 * config.vocab_size * min(tokens, CHUNK),
        matrix=0 if base is None else 8 * max(rows * columns for rows, columns in matrices))
