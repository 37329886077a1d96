"""Small models and batches for the tests of the loop. No two sizes are equal, so that no two axes can be confused."""
from __future__ import annotations

import torch
from torch import Tensor

import minitransfer as mt
from minitransfer.training import TrainSettings

V = 43


def bert(seed: int = 0, **changes) -> mt.Model:
    sizes = {"vocab_size": V, "d_model": 20, "n_layers": 3, "n_heads": 5, "d_ff": 29, "max_len": 31, "n_token_types": 2, "pooler": True}
    return mt.Model(mt.ModelConfig(**(sizes | changes)), head="masked", seed=seed)


def gpt(seed: int = 0, **changes) -> mt.Model:
    sizes = {"vocab_size": V, "d_model": 20, "n_layers": 3, "n_heads": 5, "d_ff": 29, "max_len": 31, "n_token_types": 0, "pooler": False, "norm_position": "pre",
             "norm_eps": 1e-5, "activation": "gelu_tanh", "causal": True, "embed_norm": False, "final_norm": True}
    return mt.Model(mt.ModelConfig(**(sizes | changes)), head="causal", seed=seed)


class Listed:
    """Batches from a list, over and over."""

    def __init__(self, batches: list[dict[str, Tensor]]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return self.batches[k % len(self.batches)]


def batches(n: int = 7, B: int = 3, T: int = 13, seed: int = 0) -> Listed:
    """Rows in which each token is followed by the next number, with some noise: something to learn, and not too quickly."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(V, (n, B, 1), generator=generator)
    ids = (starts + torch.arange(T)) % V                                         # (n, B, T)
    noise = torch.rand(ids.shape, generator=generator) < 0.1
    ids = torch.where(noise, torch.randint(V, ids.shape, generator=generator), ids)
    return Listed([{"input_ids": one} for one in ids])


def settings(steps: int | None = 5, **changes) -> TrainSettings:
    return TrainSettings(**({"steps": steps, "lr": 1e-2, "progress": False, "precision": "fp32"} | changes))


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
