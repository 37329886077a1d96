"""Pixels in, vectors out."""
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.dropout import Dropout
from ..ops.linear import Linear
from .norms import make_norm


def patches(images: Float[Tensor, "B C Y X"], side: int) -> Float[Tensor, "B N CPP"]:
    """Squares of `side` pixels, row by row, each as one vector (channel, then row, then column); what is left at the right and the bottom is not seen."""
    squares = images.unfold(2, side, side).unfold(3, side, side)                 # (B, C, rows, columns, P, P)
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class Patches(nn.Module):
    """An image as a row of vectors: one that is learned, for the image as a whole, then W patch_i for each patch; each + the vector of its position.

    A convolution whose stride is the size of its kernel is this: a matrix applied to patches that do not overlap.
    Source: Dosovitskiy et al. 2021, equation 1.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        assert c.patch_size is not None
        self.side, self.shape = c.patch_size, (c.channels, c.image_size, c.image_size)
        self.tokens = Linear(c.channels * c.patch_size**2, c.d_model, bias=False)
        self.whole = nn.Parameter(torch.zeros(c.d_model))
        self.positions = nn.Embedding(c.max_len, c.d_model)
        self.norm = make_norm(c) if c.embed_norm else None
        self.dropout = Dropout(c.rate("embed_dropout"))
        self.prompt: nn.Module | None = None    # no image has one: it would stand where a patch does

    def places(self, images: Tensor) -> Int[Tensor, "B T"]:
        """The position of each vector these images become. Raises: ValueError for images of another shape."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"pixel_values of shape {tuple(images.shape)}; this model reads (images, {', '.join(map(str, self.shape))}): resize and crop them first")
        return torch.arange(self.positions.num_embeddings, device=images.device).expand(len(images), -1)

    def forward(self, images: Float[Tensor, "B C Y X"], positions: Int[Tensor, "#B T"], types: None = None) -> Float[Tensor, "B T D"]:
        seen = self.tokens(patches(images, self.side).to(self.tokens.weight.dtype))
        x = torch.cat([self.whole.expand(len(images), 1, -1), seen], dim=1) + self.positions(positions)
        return self.dropout(x if self.norm is None else self.norm(x))
