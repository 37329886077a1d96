"""Randomness as a function of (seed, number of the batch): nothing about it has to be saved, any step can be run again, and by any process."""
from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager

import torch


def mix(*parts: int | str) -> int:
    """63 well-mixed bits from some numbers and words; streams with different words share nothing."""
    return int.from_bytes(hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()) >> 1


def seed_batch(seed: int, k: int, device: torch.device) -> torch.Generator:
    """Seed torch's global generators, which dropout draws from, for batch k; and return a generator of its own for the objective.

    The generators are seeded one by one: torch.manual_seed also queues a call for every kind of device that is not in use, and the queue never ends.
    """
    torch.default_generator.manual_seed(mix(seed, "dropout", k))
    if device.type == "cuda":
        torch.cuda.manual_seed(mix(seed, "dropout", k))
    return torch.Generator(device).manual_seed(mix(seed, "objective", k))


def own_randomness(device: torch.device) -> AbstractContextManager:
    """Leave the global generators as they were found: seeding every batch must not decide what the caller draws afterwards."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
