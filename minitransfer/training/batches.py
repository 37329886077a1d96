"""Batches as an endless stream that can be entered anywhere."""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..text import Batches, PackedBatches
from . import ranks
from .seeds import mix


class Rows:
    """Some of the rows of packed batches, as batches of their own.

    Args: rows: numbers of rows; epoch e visits them in the permutation drawn from (seed, e).
    """

    def __init__(self, packed: PackedBatches, rows: np.ndarray):
        self.packed, self.numbers = packed, rows
        self.order: tuple[int, np.ndarray] = (-1, rows)

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.packed.batch_size)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        epoch, i = divmod(k, len(self))
        return self.packed.rows(self.epoch(epoch)[i * self.packed.batch_size:(i + 1) * self.packed.batch_size])

    def epoch(self, e: int) -> np.ndarray:
        """The numbers of the rows in the order of one epoch."""
        if self.order[0] != e:
            self.order = e, np.random.default_rng(mix(self.packed.seed, "rows", e)).permutation(self.numbers)
        return self.order[1]

    def between(self, start: int, end: int) -> dict[str, Tensor]:
        """Rows start ... end - 1 of all epochs one after the other, as one batch."""
        places = (divmod(place, len(self.numbers)) for place in range(start, end))
        return self.packed.rows([int(self.epoch(e)[i]) for e, i in places])


class Mixture:
    """Batches of rows of one text, of which an exact share comes from another: after any number of batches it is right to within one row.

    The first k batches, k B rows, hold floor(share k B) rows of the other text. Either text is read in epochs of its own; an epoch here is so many
    batches, all of full size, that every row of the first text was read.

    Args: share: of the other text, in (0, 1).
    """

    def __init__(self, text: Rows, other: Rows, share: int | float):
        self.text, self.other, self.share, self.batch_size = text, other, Fraction(str(share)), text.packed.batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.text.numbers) / (self.batch_size * (1 - self.share)))

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        start, end = k * self.batch_size, (k + 1) * self.batch_size
        before, after = int(start * self.share), int(end * self.share)
        return joined(self.text.between(start - before, end - after), self.other.between(before, after))


def joined(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of both packed batches in one; only rows with padding need an attention mask."""
    if ("attention_mask" in first) != ("attention_mask" in second):
        first, second = ({"attention_mask": one["document_ids"] >= 0} | one for one in (first, second))
    return {name: torch.cat([column, second[name]]) for name, column in first.items()}


class RandomWindows:
    """Windows of `length` tokens from random places of one stream of ids; an epoch is as many as would cover the stream once.

    Args:   ids: one-dimensional, may be memory-mapped. A causal model asked for `length` predictions a row needs windows of length + 1.
    Raises: ValueError for a stream shorter than one window.
    """

    def __init__(self, ids: np.ndarray, length: int, batch_size: int, seed: int = 0):
        if len(ids) < length:
            raise ValueError(f"a stream of {len(ids)} tokens; a window has {length}: give more text, or a smaller length")
        self.ids, self.length, self.batch_size, self.seed = ids, length, batch_size, seed

    def __len__(self) -> int:
        return max(1, len(self.ids) // (self.length * self.batch_size))

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        starts = np.random.default_rng(mix(self.seed, "windows", k)).integers(0, len(self.ids) - self.length + 1, self.batch_size)
        rows = self.ids[starts[:, None] + np.arange(self.length)]                # (B, T)
        return {"input_ids": torch.from_numpy(rows.astype(np.int64))}


def count_tokens(batch: dict[str, Tensor]) -> int:
    """How many positions of a batch hold tokens."""
    if (mask := batch.get("attention_mask")) is not None:
        return int(mask.sum())
    return batch["input_ids"].numel()


def fingerprint(batches: Batches) -> str:
    """A hash of the first batch and the length of an epoch: enough to notice that a run goes on with other data."""
    digest = hashlib.sha256(str(len(batches)).encode())
    for name, tensor in sorted(batches[0].items()):
        digest.update(name.encode() + str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Feed:
    """Hands each step those of its micro-batches that are this process's, on the model's device: number, batch, tokens in it.

    For a GPU a thread prepares the next one meanwhile, in pinned memory; on a CPU the cores have enough to do.

    Args: fit: what is done to each batch, on the CPU.
    """

    def __init__(self, batches: Batches, micro_batches: int, device: torch.device, fit: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict):
        self.batches, self.micro_batches, self.device, self.fit = batches, micro_batches, device, fit
        self.pool = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self.ahead: dict = {}
        self.rank, self.ranks = ranks.rank(), ranks.world()

    @property
    def epoch_steps(self) -> float:
        return len(self.batches) / self.micro_batches

    def get(self, k: int) -> tuple[dict[str, Tensor], int]:
        batch = self.fit(self.batches[k])
        return ({name: t.pin_memory() for name, t in batch.items()} if self.pool else batch), count_tokens(batch)

    def step(self, step: int) -> Iterator[tuple[int, dict[str, Tensor], int]]:
        for k in range(step * self.micro_batches + self.rank, (step + 1) * self.micro_batches, self.ranks):
            if self.pool is None:
                yield k, *self.get(k)
                continue
            batch, tokens = self.ahead.pop(k, None).result() if k in self.ahead else self.get(k)
            self.ahead = {k + self.ranks: self.pool.submit(self.get, k + self.ranks)}
            yield k, {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}, tokens

    def is_last(self, k: int) -> bool:
        """Is batch k the last of its step for this process?"""
        return k % self.micro_batches + self.ranks >= self.micro_batches

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
