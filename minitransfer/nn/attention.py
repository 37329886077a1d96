"""Attention, written out: scores, softmax, weighted sum; and the faster ways to the same numbers."""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from ..config import ModelConfig, choose
from ..ops.attention import attention_packed, attention_padded
from ..ops.dense_attention import dense_attention
from ..ops.dispatch import device_of
from ..ops.dropout import dropout
from ..ops.linear import Linear
from ..ops.rope import rope
from ..ops.tiled_attention import tiled_attention
from .backends import Way, quickest
from .cache import LayerCache
from .masks import Mask
from .norms import RMSNorm
from .packing import Packing
from .positions import Rotation
from .trace import heard

Mixed = tuple[Tensor, Tensor | None, Tensor | None]     # mixed values (B, T, D); probabilities and scores (B, H, T, S), if they were asked for
BACKENDS = ("auto", "reference", "tiled", "sdpa")


def attend(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"],
           mask: Bool[Tensor, "#B #H T S"], rate: float = 0.0,
           bias: Float[Tensor, "#B H T S"] | None = None) -> tuple[Float[Tensor, "B H T Dh"], Float[Tensor, "B H T S"], Float[Tensor, "B H T S"]]:
    """softmax(q k^T / sqrt(Dh) + bias) v over the positions the mask allows.

    Returns: the mixed values, the attention probabilities, the scores (-inf where the mask forbids).
             A query that may look nowhere gets zeros, not NaN.
    Source:  Vaswani et al. 2017, equation 1.
    """
    scores = (q / 8) @ k.transpose(-2, -1) / (math.sqrt(q.shape[-1]) / 8)        # (B, H, T, S); 8 changes no bit, but 16 bits overflow later
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, -math.inf)
    finite = scores.masked_fill(~mask.any(-1, keepdim=True), 0.0)                # keeps softmax finite on empty rows
    probs = (finite.softmax(-1) * mask).to(v.dtype)                              # (B, H, T, S)
    return dropout(probs, rate) @ v, probs, scores                               # (B, H, T, Dh)


def attend_sdpa(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"], mask: Mask, rate: float = 0.0,
                bias: Float[Tensor, "#B H T S"] | None = None) -> Float[Tensor, "B H T Dh"]:
    """The same through PyTorch's scaled_dot_product_attention, which picks a fused kernel where there is one."""
    T, S = q.shape[2], k.shape[2]
    rate = rate if device_of(q) == q.device.type else 0.0                        # rehearsed on a CPU, whose kernel keeps a mask of the dropout that a GPU's makes again
    if bias is None and not mask.restricts() and (not mask.causal or T == S or T == 1):           # one query sees every key: no mask needed
        return scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=mask.causal and T > 1)
    allowed = mask.dense(T, S, q.device)
    some = allowed.any(-1, keepdim=True)                                         # (B, 1, T, 1); PyTorch's backends disagree on empty rows
    visible = allowed | ~some
    added = visible if bias is None else bias.to(q.dtype).masked_fill(~visible, -math.inf)
    out = scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=rate)
    return out * some


def dense_is_faster(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], rate: float) -> bool:
    """On a CPU PyTorch's fused kernel has no fast path for 16-bit numbers or dropout; past a million pairs a text, holding them costs too much memory."""
    slow_path = rate > 0 or q.dtype in (torch.bfloat16, torch.float16)
    return device_of(q) == "cpu" and slow_path and 1 < q.shape[2] * k.shape[2] <= 1024 * 1024


class Attention(nn.Module):
    """Multi-head attention; key/value heads may be fewer than query heads and are then shared.

    `backend` is one of BACKENDS: "reference" is written out below, "tiled" never holds T x S, "sdpa" is PyTorch's, "auto" the fastest known here (a GPU is asked: backends.py).
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.d_head, self.dropout = c.d_head, c.rate("attn_dropout")
        self.q_proj = Linear(c.d_model, c.n_heads * c.d_head, bias=c.qkv_bias)
        self.k_proj = Linear(c.d_model, c.kv_heads * c.d_head, bias=c.qkv_bias)
        self.v_proj = Linear(c.d_model, c.kv_heads * c.d_head, bias=c.qkv_bias)
        self.o_proj = Linear(c.n_heads * c.d_head, c.d_model, bias=c.o_bias)
        self.q_norm, self.k_norm = (RMSNorm(c.d_head, c.norm_eps) if c.qk_norm else None for _ in range(2))
        self.shared_by = c.n_heads // c.kv_heads
        self.stretch = None if c.attn_scale is None else c.attn_scale * math.sqrt(c.d_head)     # every backend divides by sqrt(Dh)
        self.backend = "auto"
        self.joined: nn.Module | None = None    # a quicker product with q, k and v at once, for inference
        self.prefix: nn.Module | None = None    # puts learned keys and values, which every query sees, before the others

    def project(self, x: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B H T Dh"], Float[Tensor, "B K T Dh"], Float[Tensor, "B K T Dh"]]:
        """Queries, keys and values, by head."""
        if x.is_cuda and torch.is_autocast_enabled("cuda"):
            x = x.to(torch.get_autocast_dtype("cuda"))                           # once: each of the three products would cast its own
        if self.joined is None:
            return self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        n = self.k_proj.out_features // self.d_head
        q, k, v = self.heads(self.joined(x)).split([n * self.shared_by, n, n], dim=1)
        return q, k, v

    def heads(self, x: Float[Tensor, "B T _"]) -> Float[Tensor, "B _ T Dh"]:
        return x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)                # (B, H or K, T, Dh)

    def turned(self, q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B K T Dh"], turn: Rotation) -> tuple[Float[Tensor, "B H T Dh"], Float[Tensor, "B K T Dh"]]:
        """Both at their positions; a kernel overwrites what it is given, so a hook's own is copied."""
        if heard(self.q_proj, self.k_proj, self.q_norm, self.k_norm):
            q, k = q.clone(), k.clone()
        q, k = rope(q.transpose(1, 2), k.transpose(1, 2), None, *turn)
        return q.transpose(1, 2), k.transpose(1, 2)

    def forward(self, x: Float[Tensor, "B T D"], mask: Mask, cache: LayerCache | None = None, show: bool = False, turn: Rotation | None = None,
                relative: Any = None) -> Mixed:
        """Mixed values; with `show` also probabilities and scores, which only the reference path has.

        turn: the angles of these T positions, for queries and keys; relative: what is added to the scores for the distance, (1, H, T, S), or is made of (`bias`).
        """
        q, k, v = self.project(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (norm(t.transpose(1, 2)).transpose(1, 2) for norm, t in ((self.q_norm, q), (self.k_norm, k)))     # as they lie in memory
        if turn is not None:
            q, k = self.turned(q, k, turn)
        if self.stretch is not None:
            q = q * self.stretch
        if cache is not None:
            k, v = cache.append(k, v)                                            # (B, K, S, Dh)
        bias = self.bias(q, k, relative)
        if self.prefix is not None:
            k, v = self.prefix(k, v)                                             # (B, K, P + S, Dh)
            bias = None if bias is None else pad(bias, (k.shape[2] - bias.shape[-1], 0))    # a prefix is at no distance
        return self.output(q, k, v, mask, show, bias)

    def output(self, q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B K S Dh"], v: Float[Tensor, "B K S Dh"], mask: Mask, show: bool,
               bias: Tensor | None = None) -> Mixed:
        if show or bias is not None or self.backend != "auto":
            out, probs, scores = self.mix(q, *self.repeated(k, v), mask, show, bias)
        else:
            out, probs, scores = self.mix_quickly(q, k, v, mask), None, None
        return self.o_proj(out.transpose(1, 2).flatten(2)), probs, scores        # (B, T, D)

    def mix_quickly(self, q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B K S Dh"], v: Float[Tensor, "B K S Dh"], mask: Mask) -> Float[Tensor, "B H T Dh"]:
        """The quickest way there is: PyTorch's, or a kernel that knows where texts begin, which heads are shared and what a window hides."""
        rate, longest = self.rate, q.shape[2]
        ways: dict[str, Way] = {"sdpa": lambda q, k, v: self.mix(q, *self.repeated(k, v), mask, False)[0]}
        if mask.packing is not None:
            ways, longest = {"kernel": partial(self.mix_packed, mask, mask.packing), "sdpa": partial(self.mix_padded, mask, mask.packing)}, mask.packing.shape[1]
        elif longest == k.shape[2] and mask.follows_from_columns():
            ways["kernel"] = lambda q, k, v: attention_padded(q, k, v, causal=mask.causal, window=mask.window, rate=rate)
        return quickest(ways, q, k, v, longest, mask.causal, mask.window is not None, rate > 0)(q, k, v)

    def mix_packed(self, mask: Mask, packing: Packing, q: Float[Tensor, "1 H N Dh"], k: Float[Tensor, "1 K N Dh"], v: Float[Tensor, "1 K N Dh"]) -> Float[Tensor, "1 H N Dh"]:
        """Each text for itself: on a GPU in a kernel that knows where texts begin."""
        q, k, v = (t.squeeze(0).transpose(0, 1) for t in (q, k, v))              # not t[0], whose gradient is zeros into which the rest is copied
        return attention_packed(q, k, v, packing.offsets, packing.shape[1], causal=mask.causal, window=mask.window, rate=self.rate).transpose(0, 1)[None]

    def mix_padded(self, mask: Mask, packing: Packing, q: Float[Tensor, "1 H N Dh"], k: Float[Tensor, "1 K N Dh"], v: Float[Tensor, "1 K N Dh"]) -> Float[Tensor, "1 H N Dh"]:
        """The same with the padding put back."""
        q, k, v = (self.heads(packing.unpack(t.transpose(1, 2).flatten(2))) for t in (q, k, v))
        out, _, _ = self.mix(q, *self.repeated(k, v), Mask(packing.keep, mask.causal, mask.window), False)
        return self.heads(packing.pack(out.transpose(1, 2).flatten(2)))

    def repeated(self, k: Float[Tensor, "B K S Dh"], v: Float[Tensor, "B K S Dh"]) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H S Dh"]]:
        n = self.shared_by
        return (k.repeat_interleave(n, dim=1), v.repeat_interleave(n, dim=1)) if n > 1 else (k, v)

    @property
    def rate(self) -> float:
        return self.dropout if self.training else 0.0

    def bias(self, q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B K S Dh"], relative: Any) -> Float[Tensor, "#B H T S"] | None:
        """What distances add to the scores."""
        return relative

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, show: bool, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rate = self.rate
        if show or self.backend == "reference":
            return attend(q, k, v, mask.dense(q.shape[2], k.shape[2], q.device), rate, bias)
        if bias is not None:                                                     # the other ways to the same numbers know no bias
            return attend_sdpa(q, k, v, mask, rate, bias), None, None
        if self.backend == "tiled":
            limited = mask.causal or mask.restricts()
            return tiled_attention(q, k, v, (lambda i, j: mask.part(i, j, q.device)) if limited else (lambda i, j: None), dropout=rate), None, None
        if self.backend == "auto" and dense_is_faster(q, k, rate):
            limited = mask.causal or mask.restricts()
            return dense_attention(q, k, v, mask.dense(q.shape[2], k.shape[2], q.device) if limited else None, rate), None, None
        return attend_sdpa(q, k, v, mask, rate), None, None

    def use(self, backend: str) -> None:
        choose("attention", backend, BACKENDS)
        self.backend = backend


@dataclass(frozen=True)
class Memory:
    """What another stack has read: its last states, and which of them are tokens."""

    x: Float[Tensor, "B M D"]
    mask: Mask


class CrossAttention(Attention):
    """Queries come from the text that is written, keys and values from the memory of what was read; nothing tells of distances.

    Source: Vaswani et al. 2017, section 3.2.3.
    """

    def forward(self, x: Float[Tensor, "B T D"], memory: Memory, cache: LayerCache | None = None, show: bool = False) -> Mixed:      # type: ignore[override]
        """As Attention; a cache keeps the memory's keys and values after the first time."""
        q = self.heads(self.q_proj(x))
        if self.stretch is not None:
            q = q * self.stretch
        crossed = None if cache is None else cache.crossed
        if crossed is None:
            crossed = self.heads(self.k_proj(memory.x)), self.heads(self.v_proj(memory.x))
        if cache is not None:
            cache.crossed = crossed
        return self.output(q, *crossed, memory.mask, show)
