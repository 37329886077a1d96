"""Labels for images without training: the label whose words lie nearest."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..nn.evaluating import evaluating
from ..nn.two_towers import TwoTowers
from ..text import Tokenizer
from .label_scoring import label_words, predictions
from .sequence import Prediction


def classify_images(model: TwoTowers, tok: Tokenizer, images: Float[Tensor, "N C Y X"], labels: Mapping[str, str] | Sequence[str],
                    template: str = "a photo of a {}", batch_size: int = 32) -> list[Prediction]:
    """p(label) = softmax over the labels of exp(logit_scale) cos(image, text of the label): which label fits each image best.

    Args:    images: pixel_values, see `ImageReader`. labels: label -> its words, or the labels themselves. template: the text, with {} for the words.
    Returns: in the order of the images.
    Raises:  ValueError for fewer than two labels, or a template without {}.
    Source:  Radford et al. 2021, section 3.1.2.
    """
    words = label_words(labels)
    if template.count("{}") != 1:
        raise ValueError(f"template={template!r}; it says where the words of a label stand: write {{}} in it, once")
    batch = tok([template.format(one) for one in words.values()], max_length=model.text.longest)
    device = model.logit_scale.device
    with evaluating(model.text), evaluating(model.image), torch.no_grad():
        texts = model.embed_texts(batch["input_ids"].to(device), batch["attention_mask"].to(device))
        scores = torch.cat([model.embed_images(part.to(device)) @ texts.T for part in images.split(batch_size)]) * model.logit_scale.exp()
    return predictions(scores.float().cpu(), list(words))
