"""A model of texts and a model of images whose vectors can be compared: what belongs together is near."""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from .heads import LossAndCount, ProjectionHead
from .model import Model

LOGIT_SCALE = math.log(1 / 0.07)        # before training


@dataclass
class TwoTowersOutput:
    """P = width of the space both share; N texts, M images."""

    text_embeds: Float[Tensor, "N P"]           # of length 1, as the images' are
    image_embeds: Float[Tensor, "M P"]
    logits_per_text: Float[Tensor, "N M"]
    logits_per_image: Float[Tensor, "M N"]
    loss: Float[Tensor, ""] | None = None


def contrastive_loss(logits: Float[Tensor, "B B"]) -> LossAndCount:
    """Each text chooses among the images of the batch, each image among its texts; pair i is right.

        sum_i -log softmax_j(l_ij)[i]  +  sum_i -log softmax_j(l_ji)[i],    count 2 B

    Source: Radford et al. 2021, section 2.3 and figure 3.
    """
    pairs = torch.arange(len(logits), device=logits.device)
    return cross_entropy(logits.float(), pairs, reduction="sum") + cross_entropy(logits.float().T, pairs, reduction="sum"), 2 * len(logits)


class TwoTowers(nn.Module):
    """logits_ij = exp(logit_scale) cos(text_i, image_j), each vector a projection of what its model pooled.

    Args:   text, image: models with a "projection" head of the same width.
    Raises: ValueError for other heads, or widths that differ.
    Source: Radford et al. 2021, section 2.4 (there exp(logit_scale) is kept under 100 in training; here nothing keeps it).
    """

    def __init__(self, text: Model, image: Model, logit_scale: float = LOGIT_SCALE):
        super().__init__()
        widths = [one.head.project.out_features if isinstance(one.head, ProjectionHead) else one.head_name for one in (text, image)]
        if widths[0] != widths[1] or not isinstance(widths[0], int):
            raise ValueError(f"towers that end in {widths[0]!r} and {widths[1]!r}; both have a projection of the same width: give head=\"projection\" and the same d_project")
        self.text, self.image = text, image
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        self.source_config: dict = {}       # the config.json both came from

    def embed_texts(self, input_ids: Int[Tensor, "N T"], attention_mask: Tensor | None = None) -> Float[Tensor, "N P"]:
        return normalize(self.text(input_ids, attention_mask).embeddings, dim=-1)

    def embed_images(self, pixel_values: Float[Tensor, "M C Y X"]) -> Float[Tensor, "M P"]:
        return normalize(self.image(pixel_values=pixel_values).embeddings, dim=-1)

    def forward(self, input_ids: Int[Tensor, "N T"], pixel_values: Float[Tensor, "M C Y X"], attention_mask: Tensor | None = None,
                pairs: bool = False) -> TwoTowersOutput:
        """Compare every text with every image; `pairs`: text i belongs to image i, which gives a loss.

        Raises: ValueError for pairs of unequal numbers.
        """
        texts, images = self.embed_texts(input_ids, attention_mask), self.embed_images(pixel_values)
        logits = self.logit_scale.exp() * texts @ images.T                       # (N, M)
        out = TwoTowersOutput(texts, images, logits, logits.T)
        if pairs:
            if len(texts) != len(images):
                raise ValueError(f"{len(texts)} texts and {len(images)} images with pairs=True; text i belongs to image i: give as many of both")
            total, count = contrastive_loss(logits)
            out.loss = total / count
        return out
