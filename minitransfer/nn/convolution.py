"""What neighbours say, learned once for all distances between them: a convolution along the text."""
from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from ..config import Convolution, ModelConfig
from ..ops.activation import ACTIVATIONS
from ..ops.dropout import Dropout
from .masks import Mask
from .norms import make_norm


def places(tokens: Bool[Tensor, "B T"], documents: Int[Tensor, "B T"] | None, gap: int) -> tuple[Int[Tensor, "B T"], int]:
    """Where each token stands, and on how many places, if padding is left out and `gap` places are empty between texts."""
    place = (tokens.cumsum(-1) - 1).clamp(min=0)
    if documents is None:
        return place, tokens.shape[1]
    index = torch.arange(tokens.shape[1], device=tokens.device)
    latest = documents.gather(-1, (index * tokens).cummax(-1).values)           # of the last token so far: padding inside a text does not end it
    place = place + gap * pad(latest[:, 1:] != latest[:, :-1], (1, 0)).cumsum(-1)
    return place, int(place.max()) + 1


class NeighbourConvolution(nn.Module):
    """y = norm(x + activation(dropout(sum_k W_k e_{t + k} + b))), k from -(width - 1) / 2 on; e: the embeddings, x: what the first block made of them.

    What is beyond a text, padding or another text in the row, is zero.
    Source: He et al. 2021, "DeBERTa", the model card of v2 (nGiE); as its code has it.
    """

    def __init__(self, c: ModelConfig, v: Convolution):
        super().__init__()
        self.reach = v.width // 2
        self.conv = nn.Conv1d(c.d_model, c.d_model, v.width, padding=self.reach, groups=v.groups)
        self.norm, self.dropout, self.activation = make_norm(c), Dropout(c.dropout), ACTIVATIONS[v.activation]

    def forward(self, e: Float[Tensor, "B T D"], x: Float[Tensor, "B T D"], mask: Mask) -> Float[Tensor, "B T D"]:
        return self.norm(x + self.activation(self.dropout(self.read(e, mask))))

    def read(self, e: Float[Tensor, "B T D"], mask: Mask) -> Float[Tensor, "B T D"]:
        """The convolution of each text by itself."""
        tokens = mask.keep if mask.documents is None else mask.documents >= 0
        if tokens is None:
            return self.conv(e.mT).mT
        place, n = places(tokens, mask.documents, self.reach)
        place = place[..., None].expand_as(e)
        laid = e.new_zeros(len(e), n, e.shape[2]).scatter_add(1, place, e * tokens[..., None])     # padding adds zero, wherever it falls
        return self.conv(laid.mT).mT.gather(1, place)
