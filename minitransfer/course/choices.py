"""05, BERT and GPT-2 are choices."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig, Rotary
from ..families import gpt2
from ..nn.feedforward import FeedForward
from ..nn.model import Model
from ..nn.norms import RMSNorm
from .exercise import demand, exercise, gap, same_in_engine
from .models import MOVED, states_and_gradients


def llama(share: float = 1.0) -> Model:
    """A small LLaMA, every parameter moved; `share` of each head turns."""
    model = Model(ModelConfig(vocab_size=97, d_model=48, n_layers=2, n_heads=6, n_kv_heads=2, d_ff=80, max_len=31, norm="rms", norm_eps=1e-5, norm_position="pre", positions="none",
                              rotary=Rotary(share=share), gated=True, activation="silu", qkv_bias=False, o_bias=False, mlp_bias=False, causal=True, n_token_types=0,
                              embed_norm=False, final_norm=True, pooler=False, dropout=0.0), seed=0).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * MOVED)
    return model


@exercise("05", "gpt2_fields(V, D, L, H, longest) -> the fields of a ModelConfig that describe GPT-2")
def gpt2_fields(answer: Callable) -> str:
    for V, D, L, H, longest in ((50_257, 768, 12, 12, 1024), (101, 24, 3, 4, 17)):
        said = {"vocab_size": V, "n_embd": D, "n_layer": L, "n_head": H, "n_positions": longest}
        truth, found = gpt2.config_from_hf(said), ModelConfig(**answer(V, D, L, H, longest))
        other = [f"{name}={value!r}, GPT-2 has {asdict(truth)[name]!r}" for name, value in asdict(found).items()
                 if value != asdict(truth)[name] and name not in ("embed_dropout", "attn_dropout", "head_dropout")]
        demand(not other, "; ".join(other))
    return "as the page of GPT-2 reads its config.json, two sizes"


@exercise("05", "turn(x, cos, sin): the pairs (x_j, x_{j + R/2}) of the first R numbers of each head turned, the rest as it is")
def turn(answer: Callable) -> str:
    def as_rope(q: Tensor, k: Tensor, positions: None, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return tuple(answer(x.transpose(1, 2), cos[:, None], sin[:, None]).transpose(1, 2) for x in (q, k))
    quarter = answer(torch.tensor([1.0, 0.0, 5.0])[None, None, None], torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    gap("(1, 0, 5) with the first two turned by a right angle", quarter[0, 0, 0], torch.tensor([0.0, 1.0, 5.0]))
    worst = max(same_in_engine("ops.rope:rope", as_rope, states_and_gradients(llama(share))) for share in (1.0, 0.5))
    return f"in two models, one turns half of each head, states and gradients within {worst:.0e}"


@exercise("05", "rms_norm(x, weight, eps) for x (..., D)")
def rms_norm(answer: Callable) -> str:
    gap("the norm of zeros", answer(torch.zeros(2, 5), torch.ones(5), 1e-5), torch.zeros(2, 5))

    def as_forward(self: RMSNorm, x: Tensor, stream: Tensor | None = None, rate: float = 0.0, wide: bool = False) -> Any:
        total = x if stream is None else stream + x
        y = answer(total, self.weight, self.eps)
        return y if stream is None else (y, total)
    return f"as every norm of a LLaMA, states and gradients within {same_in_engine('nn.norms:RMSNorm.forward', as_forward, states_and_gradients(llama())):.0e}"


@exercise("05", "gated_feed_forward(x, gate, up, down) -> down(silu(gate(x)) * up(x))")
def gated_feed_forward(answer: Callable) -> str:
    def as_forward(self: FeedForward, x: Tensor) -> Tensor:
        assert self.gate_proj is not None
        return answer(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
    worst = same_in_engine("nn.feedforward:FeedForward.forward", as_forward, states_and_gradients(llama()))
    return f"in every block of a LLaMA, states and gradients within {worst:.0e}"
