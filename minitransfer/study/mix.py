"""At which depth a task lies: the layers that a classifier mixes when it may choose."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..nn.model import Model
from ..text import Tokenizer
from ..transfer.groups import Table
from ..transfer.scalar_mix import ScalarMix
from .examples import examples
from .probe import STRENGTH, folds_of
from .tables import Interval, new_axes
from .treebank import Labels, Treebank, read_treebank

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)        # Student's, for 1 to 9 degrees of freedom


@dataclass(frozen=True, repr=False)
class Centre(Table):
    """The share of each layer in the mix, and their mean depth. Prints as a table."""

    note = "Shares: of the layers that a linear classifier mixes when it may choose; centre: their mean depth."
    task: str
    shares: np.ndarray          # (F, L + 1): of each fold
    centre: Interval            # over folds, by Student's t

    def cells(self) -> list[tuple[str, ...]]:
        body = [(str(i) if i else "embed", f"{share:.3f}", f"{low:.3f} to {high:.3f}")
                for i, (share, low, high) in enumerate(zip(self.shares.mean(0), self.shares.min(0), self.shares.max(0), strict=True))]
        return [("layer", "share", "over folds"), *body, ("centre", *str(self.centre).split(" ", 1))]

    def draw(self, axes: Any = None) -> Any:
        """Shares as bars, their centre as a line. Returns: matplotlib's axes."""
        axes = new_axes(6, 3)[0, 0] if axes is None else axes
        layers, mean = np.arange(self.shares.shape[1]), self.shares.mean(0)
        axes.bar(layers, mean, yerr=np.abs(np.stack([self.shares.min(0), self.shares.max(0)]) - mean), color="lightsteelblue", capsize=3)
        axes.axvline(self.centre.value, color="black", linestyle="--")
        axes.axvspan(self.centre.low, self.centre.high, color="grey", alpha=0.2, linewidth=0)
        axes.set(xlabel="layer (0: embeddings)", ylabel="share of the mix", xticks=layers, xlim=(-0.6, layers[-1] + 0.6), title=f"{self.task}: centre at {self.centre.value:.2f}")
        return axes


def centre_of_gravity(model: Model, tok: Tokenizer, treebank: Treebank, task: str | Labels = "pos", sentences: int | None = 500, folds: int = 5, seed: int = 0,
                      cache: str | Path | None = None) -> Centre:
    """sum_l l s_l, where s_l is the share of layer l in the scalar mix that a linear classifier learns with itself; learned on each fold of
    the sentences alone, so that the fits are independent.

    Every layer is standardised first, so that a share does not stand for a scale. Shares near 0 and 1 are usual: the mix is learned to the end.

    Args:   as for `probe`; folds: 2 to 10.
    Source: Tenney et al. 2019b, equation 2; the mix: Peters et al. 2018, equation 1. Deviation: single words and a linear classifier, by L-BFGS.
    Raises: as `probe`.
    """
    chosen = read_treebank(treebank, sentences, seed)
    found = examples(model, tok, chosen, task, cache)
    fold = folds_of(found, folds, "sentence", seed)
    if folds > len(T_95) + 1:
        raise ValueError(f"folds={folds}; the interval over folds is known for 2 to {len(T_95) + 1}: give one of these")
    states = torch.from_numpy(found.states)
    states = (states - states.mean(0)) / states.std(0).clamp(min=1e-6)           # (N, L + 1, D)
    y = torch.from_numpy(found.y)
    shares = np.stack([learned_shares(states[fold == i], y[fold == i], len(found.names)) for i in range(folds)])
    centres = shares @ np.arange(shares.shape[1])
    half = T_95[folds - 2] * centres.std(ddof=1) / np.sqrt(folds)
    return Centre(task if isinstance(task, str) else getattr(task, "__name__", "labels"), shares, Interval(centres.mean(), centres.mean() - half, centres.mean() + half))


def learned_shares(states: Float[Tensor, "N L D"], y: Int[Tensor, "N"], K: int) -> Float[np.ndarray, "L"]:
    """The shares after L-BFGS on the loss of a probe's logistic regression, from equal shares and a classifier of zeros."""
    mix, classifier = ScalarMix(states.shape[1]), nn.Linear(states.shape[2], K)
    mix.gamma.requires_grad_(False)                                              # the classifier has a scale of its own
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    search = torch.optim.LBFGS([mix.scores, *classifier.parameters()], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        total = cross_entropy(classifier(mix(states)), y) + classifier.weight.square().sum() / (2 * STRENGTH * len(y))
        total.backward()
        return total
    search.step(loss)       # type: ignore[arg-type]
    return mix.weights.detach().numpy()
