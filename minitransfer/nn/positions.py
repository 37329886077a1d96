"""How a model knows where a token stands, when no table says it: waves that are added, queries and keys that turn, numbers for distances."""
from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import ModelConfig, Rotary

Rotation = tuple[Float[Tensor, "#B T half"], Float[Tensor, "#B T half"]]    # cos and sin of every angle: R = 2 half numbers of a head turn


def frequencies(r: Rotary, width: int, theta: float, device: torch.device) -> Float[Tensor, "half"]:
    """Radians a position for each pair of numbers: w_j = theta^(-2 j / R), j = 0 ... R/2 - 1; R numbers of each head turn.

    "linear": w / factor. "llama3", with s = original_len w / (2 pi), the turns in a text of the length trained on:
        w            s > high: fast waves stay
        w / factor   s < low: slow ones are stretched
        between      (1 - b) w / factor + b w,  b = (s - low) / (high - low)
    Source: Su et al. 2021, section 3.2.2; Chen et al. 2023 (linear); Grattafiori et al. 2024, section 3.2, and the code released with it (llama3).
    """
    turning = int(width * r.share)
    w = 1.0 / theta ** (torch.arange(0, turning, 2, dtype=torch.int64).float() / turning)
    if r.scaling == "linear":
        w = w / r.factor
    elif r.scaling == "llama3":
        blend = ((r.original_len * w / (2 * math.pi) - r.low) / (r.high - r.low)).clamp(0, 1)
        w = (1 - blend) * w / r.factor + blend * w
    return w.to(device)


frequencies_on = cache(frequencies)     # made on the CPU for the same bits everywhere; a copy from there is what the host waits for, and no CUDA graph can hold


def rotation(c: ModelConfig, positions: Int[Tensor, "#B T"], local: bool) -> Rotation:
    """The angles of these positions, position x frequency, in float32; `local`: for a block that sees a window only."""
    assert c.rotary is not None
    theta = c.rotary.local_theta if local and c.rotary.local_theta is not None else c.rotary.theta
    of = frequencies if positions.device.type == "cpu" else frequencies_on
    angles = positions[..., None].float() * of(c.rotary, c.d_head, theta, positions.device)
    return angles.cos(), angles.sin()


def apart(T: int, S: int, positions: Int[Tensor, "B S"] | None, device: torch.device) -> Int[Tensor, "#B T S"]:
    """query - key in positions, for the last T of S as queries; positions None: each column is one further."""
    p = torch.arange(S, device=device)[None] if positions is None else positions
    return p[:, S - T :, None] - p[:, None]


def distance_buckets(distance: Int[Tensor, "#B T S"], n: int, furthest: int, causal: bool) -> Int[Tensor, "#B T S"]:
    """The bucket of each distance key - query: one for each small distance, then wider and wider ones up to `furthest`, which the last one begins.

    Both directions have n / 2 buckets of their own; with `causal` the past has all n, and what comes after falls into bucket 0.
    Source: Raffel et al. 2020, section 2.1 (the formula is that of its code).
    """
    if causal:
        bucket, d = torch.zeros_like(distance), (-distance).clamp(min=0)
    else:
        n //= 2
        bucket, d = (distance > 0).long() * n, distance.abs()
    exact = n // 2
    wide = exact + (torch.log(d.float() / exact) / math.log(furthest / exact) * (n - exact)).long()
    return bucket + torch.where(d < exact, d, wide.clamp(max=n - 1))


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of distances, added to the scores of every block.

    Differs from T5's files, where the first block owns the table: every block reads it, so it stands beside them.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.table = nn.Embedding(c.relative_buckets, c.n_heads)
        self.furthest, self.causal = c.relative_distance, c.causal

    def forward(self, T: int, S: int, positions: Int[Tensor, "B S"] | None = None) -> Float[Tensor, "#B H T S"]:
        """For the last T of S keys as queries; positions: of the keys, if columns do not tell them."""
        distance = -apart(T, S, positions, self.table.weight.device)
        return self.table(distance_buckets(distance, self.table.num_embeddings, self.furthest, self.causal)).permute(0, 3, 1, 2)


def sinusoids(positions: Int[Tensor, "#B T"], width: int) -> Float[Tensor, "#B T D"]:
    """sin(p w_j) in the first half and cos(p w_j) in the second, w_j = 10000^(-j / (D/2 - 1)), in float32.

    Source: Vaswani et al. 2017, section 3.5. Differs from the paper: halves instead of neighbours, and D/2 - 1, both as in tensor2tensor and fairseq.
    """
    half = width // 2
    w = torch.exp(torch.arange(half, device=positions.device).float() * -(math.log(10_000) / (half - 1)))
    angles = positions[..., None].float() * w
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return torch.nn.functional.pad(waves, (0, width % 2))
