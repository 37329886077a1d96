"""Which tokens of a text are hidden, and what stands in their place, as a function of (seed, step): the same ids on every device.

    chosen = an ordinary token with word 0 of philox(seed, position, step) < probability 2^32      (whole words: the position of the word's first piece)
    input  = mask if word 1 < 0.8 2^32, an ordinary token at random (by word 2) if word 1 < 0.9 2^32, else as it was;  label = the token, elsewhere `ignore`

Special tokens and padding are never chosen, and no random replacement is special. Everything is in whole numbers, so that nothing is rounded.
Source: Devlin et al. 2019, section 3.1 and appendix A.1; every position is drawn for itself. Kernel: kernels/mask_tokens.cu.
"""
from __future__ import annotations

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from .dispatch import draw, pick
from .philox import philox

SPECIAL, INSIDE = 1, 2                                   # kinds of tokens besides ordinary ones, 0
EIGHT_TENTHS, NINE_TENTHS = 3435973837, 3865470566       # of 2^32
THREADS = 256


def token_kinds(special: Bool[Tensor, "V"], inside: Bool[Tensor, "V"] | None = None) -> UInt8[Tensor, "V"]:
    """For each token of a vocabulary: is it special, or a piece of a word other than its first (give `inside` for whole words), or neither?"""
    kinds = torch.zeros_like(special, dtype=torch.uint8) if inside is None else INSIDE * inside.to(torch.uint8)
    return kinds.masked_fill(special, SPECIAL)


def word_starts(kinds: UInt8[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """The column of the first piece of each position's word; the first piece behind a special token starts a word whatever it looks like."""
    starts = kinds != INSIDE
    starts[:, 1:] |= kinds[:, :-1] == SPECIAL
    columns = torch.arange(kinds.shape[1], device=kinds.device)
    return torch.where(starts, columns, 0).cummax(1).values


def reference(input_ids: Int64[Tensor, "B T"], keep: Bool[Tensor, "B T"] | None, kinds: UInt8[Tensor, "V"], ordinary: Int64[Tensor, "K"], mask_id: int,
              probability: float, random: Int64[Tensor, "2"], ignore: int = -100) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """The same ids in plain PyTorch."""
    here = kinds[input_ids] if keep is None else kinds[input_ids].masked_fill(~keep, SPECIAL)
    positions = torch.arange(input_ids.numel(), device=input_ids.device).view_as(input_ids)
    own = philox(random[0], positions, random[1])
    chance = own[0].gather(1, word_starts(here))
    chosen = (here != SPECIAL) & (chance < threshold(probability))
    other = ordinary[own[2] * len(ordinary) >> 32]
    hidden = torch.where(own[1] < EIGHT_TENTHS, mask_id, torch.where(own[1] < NINE_TENTHS, other, input_ids))
    return torch.where(chosen, hidden, input_ids), input_ids.masked_fill(~chosen, ignore)


def threshold(probability: float) -> int:
    return round(probability * 2**32)


def cost(n: int) -> dict[str, int]:
    """Bytes for n positions: ids and mask read, inputs and labels written, the kind of each token looked up."""
    return {"bytes": n * (8 + 1 + 8 + 8 + 1)}


def mask_tokens(input_ids: Int64[Tensor, "B T"], keep: Bool[Tensor, "B T"] | None, kinds: UInt8[Tensor, "V"], ordinary: Int64[Tensor, "K"], mask_id: int,
                probability: float = 0.15, random: Int64[Tensor, "2"] | None = None, ignore: int = -100) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """The ids with hidden positions, and labels that hold the true id there and `ignore` elsewhere.

    Args:   keep: which positions are tokens and not padding (None: all); kinds: see `token_kinds`; ordinary: the ids that a random replacement may be;
            probability: in (0, 1]; random: (seed, step) on the device (default: drawn).
    Raises: ValueError for another probability.
    """
    if not 0 < probability <= 1:
        raise ValueError(f"probability={probability}; it is the share of the tokens that are hidden: give a number above 0, up to 1")
    random = draw(input_ids.device) if random is None else random
    limit = "an empty batch" if input_ids.numel() == 0 else ""
    k = pick("mask_tokens", "mask_tokens.cu", input_ids, keep, kinds, ordinary, random, limit=limit)
    if k is None:
        return reference(input_ids, keep, kinds, ordinary, mask_id, probability, random, ignore)
    ids = input_ids.contiguous()
    inputs, labels = torch.empty_like(ids), torch.empty_like(ids)
    k("mask_tokens", (-(-ids.numel() // THREADS), 1, 1), (THREADS, 1, 1), inputs, labels, ids, None if keep is None else keep.contiguous().view(torch.uint8), kinds, ordinary,
      random, ids.numel(), ids.shape[1], len(kinds), len(ordinary), threshold(probability), mask_id, ignore)
    return inputs, labels
