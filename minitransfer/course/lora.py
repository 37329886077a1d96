"""10, LoRA and its family."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..config import ModelConfig, Rotary
from ..nn.model import Model
from ..transfer import add_lora, merge_lora
from ..transfer.lora import LowRank
from .exercise import demand, exercise, gap, same_in_engine
from .models import moved, states_and_gradients


def with_lora(dora: bool = False) -> Model:
    """`mini-bert` with changes of rank 3 that are not zero, on every Linear of its blocks."""
    model, generator = moved("mini-bert", head="none"), torch.Generator().manual_seed(5)
    add_lora(model, r=3, alpha=5, targets="all", dora=dora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    return model


def by_layer(model: Model, weight: Callable[[LowRank], Tensor]) -> Mapping[str, Tensor]:
    """What a function makes of the LoRA of each Linear, by its address."""
    return {f"{name}.weight": weight(layer.adapters["default"]).detach() for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


@exercise("10", "lora_change(x, A, B, alpha) -> what LoRA adds to the output, (..., out)")
def lora_change(answer: Callable) -> str:
    x, A, B = torch.randn(2, 5, 12), torch.randn(3, 12), torch.randn(7, 3)
    gap("the change", answer(x, A, B, 6), x @ (2 * B @ A).T)

    def as_change(self: LowRank, x: Tensor, y: Tensor) -> Tensor:
        return answer(x, self.A, self.B, self.alpha)
    worst = same_in_engine("transfer.lora:LowRank.change", as_change, states_and_gradients(with_lora()))
    return f"as every LoRA of a mini-bert, states and gradients within {worst:.0e}"


@exercise("10", "merged_weight(W, A, B, alpha) -> the matrix that gives the same as the frozen one with its LoRA")
def merged_weight(answer: Callable) -> str:
    model = with_lora()
    found = by_layer(model, lambda one: answer(one.layer.weight, one.A, one.B, one.alpha))
    merge_lora(model)
    worst = max(gap(name, one, model.get_parameter(name).detach()) for name, one in found.items())
    return f"as merge_lora changes {len(found)} matrices, within {worst:.0e}"


@exercise("10", "dora_weight(W, A, B, alpha, m) -> W + alpha / R B A, each row as long as m says")
def dora_weight(answer: Callable) -> str:
    model = with_lora(dora=True)
    found = by_layer(model, lambda one: answer(one.layer.weight, one.A, one.B, one.alpha, one.magnitude))
    truth = by_layer(model, lambda one: one.changed())
    worst = max(gap(name, one, truth[name]) for name, one in found.items())
    return f"as DoRA changes {len(found)} matrices, within {worst:.0e}"


@exercise("10", "llama_lora(L, d, inner, H, K, r) -> how many numbers LoRA trains on every Linear of the blocks")
def llama_lora(answer: Callable) -> str:
    for L, d, inner, H, K, r in ((2, 24, 56, 4, 4, 3), (3, 48, 100, 6, 2, 8), (1, 4096, 14_336, 32, 8, 16)):
        config = ModelConfig(vocab_size=11, d_model=d, n_layers=L, n_heads=H, n_kv_heads=K, d_ff=inner, max_len=8, gated=True, norm="rms", qkv_bias=False, o_bias=False,
                             mlp_bias=False, positions="none", rotary=Rotary(), causal=True, norm_position="pre", n_token_types=0, embed_norm=False, final_norm=True, pooler=False)
        with torch.device("meta"):
            model = Model(config, seed=None)
        linears = [m for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)]
        truth, found = sum(r * (m.in_features + m.out_features) for m in linears), answer(L, d, inner, H, K, r)
        demand(found == truth, f"{found:,} for L={L}, d={d}, inner={inner}, H={H}, K={K}, r={r}; it is {truth:,}")
    return "three models, two of them with shared keys and values"
