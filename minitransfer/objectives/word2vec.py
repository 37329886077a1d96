"""Predict a word from one word near it, or from all of them: word2vec with negative sampling.

    -log sigmoid(u_o . h) - sum_k log sigmoid(-u_k . h)        k = 1 ... K drawn from p(w) = count(w)^0.75 / sum of these

    skip-gram   h = v of the word in the middle, o = each word of its window in turn
    CBOW        h = mean of the v of the words of the window, o = the word in the middle

With s = sigmoid(u . h), the gradients of one pair are    du_o = (s_o - 1) h    du_k = s_k h    dh = (s_o - 1) u_o + sum_k s_k u_k
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from ..nn.model import Model
from ..nn.static import StaticVectors

POWER = 0.75


def noise_distribution(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """p(w) = count(w)^0.75 / sum, (V,) float64: frequent words less often than they occur, rare ones more often."""
    p = np.asarray(counts, np.float64) ** POWER
    return p / p.sum()


def kept_share(counts: Sequence[int] | np.ndarray, t: float) -> np.ndarray:
    """min(1, sqrt(t / f(w))), (V,) float64: the share of the occurrences of each word that are read, f its frequency.

    Source: Mikolov et al. 2013b, equation 5 (their program computes sqrt(t / f) + t / f).
    """
    f = np.asarray(counts, np.float64) / np.sum(counts)
    return np.minimum(1.0, np.sqrt(t / f))


def negative_sampling_loss(h: Float[Tensor, "N D"], context: Float[Tensor, "V D"], target: Int[Tensor, "N"], noise: Int[Tensor, "N K"]) -> Float[Tensor, ""]:
    """The formula of the module's docstring, summed over N pairs; a drawn word that is the target itself counts nothing, as in the authors' program."""
    words = torch.cat([target[:, None], noise], 1)                               # (N, 1 + K)
    scores = (torch.nn.functional.embedding(words, context) @ h[:, :, None])[..., 0]
    right = torch.zeros_like(words, dtype=torch.bool)
    right[:, 0] = True
    counts = right | (words != target[:, None])
    return (softplus(torch.where(right, -scores, scores)) * counts).sum()


class NegativeSampling:
    """The objective on batches of `WindowBatches`.

    Args:   counts: of each word in the corpus; negatives: K; cbow: False: skip-gram.
    Source: Mikolov et al. 2013a, section 3 (the two models); 2013b, section 2.2, equation 4.
    """

    name = "word2vec"

    def __init__(self, counts: Sequence[int] | np.ndarray, negatives: int = 5, cbow: bool = False):
        self.ends = torch.from_numpy(np.cumsum(noise_distribution(counts)))      # (V,): word w has the interval up to ends[w]
        self.negatives, self.cbow = negatives, cbow

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Int[Tensor, "..."]:
        """Words of the noise distribution: where uniform numbers fall among the intervals."""
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
        return torch.searchsorted(self.ends.to(generator.device), uniform).clamp(max=len(self.ends) - 1)

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int]:
        assert isinstance(model, StaticVectors)
        centers, contexts = batch["input_ids"][:, 0], batch["contexts"]          # (N,), (N, 2 window)
        there, v = contexts >= 0, model.embed.tokens
        if self.cbow:
            h, target = (v(contexts.clamp(min=0)) * there[..., None]).sum(1) / there.sum(1, keepdim=True), centers
        else:
            h, target = v(centers[there.nonzero()[:, 0]]), contexts[there]
        noise = self.draw((len(target), self.negatives), generator)
        return negative_sampling_loss(h, model.context.weight, target, noise), len(target)
