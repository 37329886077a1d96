"""04, a block, a body, a head."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..nn.block import Block
from ..nn.model import Model
from ..nn.norms import LayerNorm
from .exercise import demand, exercise, gap, same_in_engine
from .models import moved, padded, states_and_gradients

BODIES = ("mini-bert", "mini-gpt")      # post-norm and pre-norm


def worst_in(place: str, answer: Callable) -> float:
    return max(same_in_engine(place, answer, states_and_gradients(moved(source, head="none"))) for source in BODIES)


@exercise("04", "layer_norm(x, weight, bias, eps) for x (..., D)")
def layer_norm(answer: Callable) -> str:
    x, (weight, bias) = torch.randn(3, 5, 7) * 30 + 7, torch.randn(2, 7)
    gap("the norm of large numbers", answer(x, weight, bias, 1e-5), torch.nn.functional.layer_norm(x, (7,), weight, bias, 1e-5))
    gap("the norm of equal numbers", answer(torch.ones(2, 7), weight, bias, 1e-5), bias.expand(2, 7))

    def as_forward(self: LayerNorm, x: Tensor, stream: Tensor | None = None, rate: float = 0.0, wide: bool = False) -> Any:
        total = x if stream is None else stream + x
        y = answer(total, self.weight, self.bias, self.eps)
        return y if stream is None else (y, total)
    return f"as every norm of {' and '.join(BODIES)}, states and gradients within {worst_in('nn.norms:LayerNorm.forward', as_forward):.0e}"


@exercise("04", "block(x, attention, mlp, norm_attn, norm_mlp, pre_norm) -> (B, T, D)")
def block(answer: Callable) -> str:
    def as_forward(self: Block, x: Tensor, mask: Any, *more: Any, **named: Any) -> Any:
        return answer(x, lambda y: self.attn(y, mask)[0], self.mlp, self.norm_attn, self.norm_mlp, self.pre_norm), (None, None)
    return f"as every block of {' and '.join(BODIES)}, states and gradients within {worst_in('nn.block:Block.forward', as_forward):.0e}"


@exercise("04", "mean_token(states, keep) -> (B, D), the mean over each text's tokens; without any: zeros")
def mean_token(answer: Callable) -> str:
    model = moved("mini-bert", head="embedding")
    batch = padded(model)
    found = same_in_engine("nn.pooling:mean_token", answer, lambda: {"the embeddings": model(**batch).embeddings.detach()})
    states, keep = torch.randn(3, 4, 5), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()
    truth = torch.stack([states[0, :2].mean(0), torch.zeros(5), states[2, 1:].mean(0)])
    gap("the means", answer(states, keep), truth)
    return f"as the pooling of an embedding model, within {found:.0e}"


@exercise("04", "parameters(V, P, types, D, F, L) -> how many parameters a body has")
def parameters(answer: Callable) -> str:
    for V, P, types, D, F, L in ((101, 17, 2, 12, 30, 3), (8192, 128, 2, 256, 1024, 4), (30_522, 512, 2, 768, 3072, 12)):
        config = ModelConfig(vocab_size=V, max_len=P, n_token_types=types, d_model=D, d_ff=F, n_layers=L, n_heads=4)
        body = Model(config, head="sequence", labels=["a", "b"], seed=None)                      # with the pooler that the head reads
        truth = sum(p.numel() for name, p in body.named_parameters() if not name.startswith("head"))
        found = answer(V, P, types, D, F, L)
        demand(found == truth, f"{found:,} for V={V}, P={P}, types={types}, D={D}, F={F}, L={L}; it is {truth:,}")
    return "three bodies, the last is bert-base"
