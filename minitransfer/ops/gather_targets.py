"""The rows that have a target, in a buffer of a fixed size: what a masked head scores, without the host asking how many there are.

    rows_m = x_n,  goals_m = targets_n        for the m-th n with targets_n >= 0, m < budget; behind the last, goals are -100
    dx_n = drows_m                            zero for every other n

With 15 % of the positions masked the vocabulary's product is a seventh of the work. `nonzero` would say which, and make the host wait; no shape here
depends on a value, so a CUDA graph can hold it. Both directions gather, so no order of additions is left to chance.
"""
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100


class GatherRows(torch.autograd.Function):
    """rows_m = x[source_m]; backward, dx_n = drows[place_n] where n fits. What lies behind the last row is the first row of x, and gets no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, source: Tensor, place: Tensor, fits: Tensor) -> Tensor:
        ctx.save_for_backward(place, fits)
        return x.index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx, drows: Tensor):
        place, fits = ctx.saved_tensors
        return drows.index_select(0, place).masked_fill_(~fits[:, None], 0), None, None, None


def gather_targets(x: Float[Tensor, "N D"], targets: Int[Tensor, "N"], budget: int) -> tuple[Float[Tensor, "M D"], Int[Tensor, "M"], Int[Tensor, ""]]:
    """Rows with a target, in order; their targets; and how many found no place, counted on the device.

    Args:   targets: negative where there is none; budget: M, the rows of the buffer.
    Raises: ValueError for a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"budget={budget}; a buffer holds at least one row: give 1 or more")
    wanted = targets >= 0
    rank = wanted.cumsum(0) - 1
    fits = wanted & (rank < budget)
    n = torch.arange(len(x), device=x.device)
    slot = torch.where(fits, rank, budget + n)                                   # each n its own: behind the buffer, if it does not fit
    source = n.new_zeros(budget + len(x)).scatter_(0, slot, n)[:budget]
    goals = targets.new_full((budget + len(x),), IGNORE).scatter_(0, slot, targets)[:budget]
    return GatherRows.apply(x, source, rank.clamp(0, budget - 1), fits), goals, (wanted.sum() - budget).clamp(min=0)
