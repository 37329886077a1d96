"""A learned average of the layers, for a classifier on features: which depth a task needs is found by training."""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ScalarMix(nn.Module):
    """y = gamma sum_l softmax(s)_l h_l, with one number s_l a layer, and gamma for the scale of all. At the start the plain mean of the layers.

        X, y = extract_features(model, tok, rows, layers=range(model.config.n_layers + 1))
        H = torch.from_numpy(X).unflatten(1, (-1, model.config.d_model))                    # (N, L + 1, D)
        classifier = nn.Sequential(ScalarMix(H.shape[1]), nn.Linear(H.shape[2], 2))

    Source: Peters et al. 2018, equation 1.
    """

    def __init__(self, n_layers: int):
        super().__init__()
        self.scores, self.gamma = nn.Parameter(torch.zeros(n_layers)), nn.Parameter(torch.ones(()))

    @property
    def weights(self) -> Float[Tensor, "L"]:
        """The share of each layer; they add up to 1."""
        return self.scores.softmax(-1)

    def forward(self, states: Float[Tensor, "*N L D"]) -> Float[Tensor, "*N D"]:
        if states.shape[-2] != len(self.scores):
            raise ValueError(f"{states.shape[-2]} layers for a mix of {len(self.scores)}; each layer has a weight of its own: give states (..., {len(self.scores)}, D)")
        return self.gamma * (self.weights[:, None] * states).sum(-2)
