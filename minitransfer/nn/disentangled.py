"""Disentangled attention: what a token is and how far away it stands are two vectors, and the scores compare both.

    score(i, j) = (q_i . k_j  +  q_i . K_r(i, j)  +  k_j . Q_r(i, j)) / sqrt(n Dh)         n = 1 + c2p + p2c terms
                   content        content to position   position to content

    r(i, j) = span + bucket(i - j), kept inside the 2 span rows of one table P;  K = W_k P,  Q = W_q P, with the contents' own matrices or others

Source: He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", equations 2-4; He et al. 2023 (DeBERTaV3) and the code of both (buckets).
Differs from the paper: k_j meets Q_r(i, j), where equation 4 has r(j, i): so in the code released with it, and in every checkpoint.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import Disentangled, ModelConfig
from ..ops.dropout import Dropout
from ..ops.linear import Linear
from .attention import Attention
from .norms import make_norm
from .positions import apart


@dataclass(frozen=True)
class Distances:
    """What blocks are told of distances: a vector for each one that occurs, and which of them belongs to a query and a key."""

    vectors: Float[Tensor, "R D"]
    row: Int[Tensor, "#B 1 T S"]


def log_buckets(distance: Int[Tensor, "N"], n: int, furthest: int) -> Int[Tensor, "N"]:
    """d up to m = n / 2, then wider and wider: sign(d) (m + ceil((m - 1) log(|d| / m) / log((furthest - 1) / m))).

    Source: the code of DeBERTa v2; in float32, in which the quotient is 1 exactly where it has to be.
    """
    m = n // 2
    beyond = torch.log(distance.abs().clamp(min=m) / m) / torch.log(torch.tensor((furthest - 1) / m)) * (m - 1)
    return torch.where(distance.abs() <= m, distance, distance.sign() * (m + beyond.ceil().long()))


class DistanceVectors(nn.Module):
    """The table P, which every block reads: a vector for each distance or bucket of distances, both ways."""

    def __init__(self, c: ModelConfig, d: Disentangled):
        super().__init__()
        self.span, self.buckets, self.furthest = d.span, d.buckets, d.furthest
        self.table = nn.Embedding(2 * d.span, c.d_model)
        self.norm = make_norm(c) if d.norm else None

    def row(self, distance: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """The row of P for each distance query - key."""
        bucket = log_buckets(distance, self.buckets, self.furthest) if self.buckets else distance
        return (bucket + self.span).clamp(0, 2 * self.span - 1)

    def forward(self, T: int, S: int, positions: Int[Tensor, "B S"] | None = None) -> Distances:
        """For the last T of S keys as queries; positions: of the keys, if columns do not tell them. Rows no distance here needs are left out."""
        device = self.table.weight.device
        rows = self.row(torch.arange(1 - S, S, device=device))                   # (2 S - 1,), ascending
        first, last = (int(self.row(torch.tensor([d]))) for d in (1 - S, S - 1))
        vectors = self.table.weight[first : last + 1]
        return Distances(vectors if self.norm is None else self.norm(vectors), (rows.clamp(first, last) - first)[apart(T, S, positions, device) + S - 1][:, None])


class DisentangledAttention(Attention):
    """Attention whose scores know distances through vectors. Backends beside "reference" get them as a bias, through PyTorch's own attention."""

    def __init__(self, c: ModelConfig):
        super().__init__(c)
        d = c.disentangled
        assert d is not None
        self.c2p, self.p2c, self.scale, self.stretch = d.c2p, d.p2c, c.score_scale, c.score_scale * math.sqrt(c.d_head)
        self.pos_k_proj, self.pos_q_proj = (Linear(c.d_model, c.n_heads * c.d_head) if used and not d.shared_keys else None for used in (d.c2p, d.p2c))
        self.pos_dropout = Dropout(c.dropout)

    def bias(self, q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], relative: Distances) -> Float[Tensor, "B H T S"]:
        """(q_i . K_r + k_j . Q_r) / sqrt(n Dh); q holds 1 / sqrt(n) already. What is multiplied was scaled before, so that 16 bits hold the products."""
        vectors, row = self.pos_dropout(relative.vectors)[None], relative.row.expand(*q.shape[:3], k.shape[2])
        terms = []
        if self.c2p:
            keys = self.heads((self.k_proj if self.pos_k_proj is None else self.pos_k_proj)(vectors))        # (1, H, R, Dh)
            terms.append(((q / math.sqrt(self.d_head)) @ keys.mT).gather(-1, row))
        if self.p2c:
            queries = self.heads((self.q_proj if self.pos_q_proj is None else self.pos_q_proj)(vectors))
            terms.append(((queries * self.scale) @ k.mT).gather(-2, row))
        return sum(terms[1:], terms[0])
