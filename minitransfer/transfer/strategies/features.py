"""Feature extraction: the frozen body reads every text once, and the head is trained on what it said."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ...nn.model import Model
from ..base import Strategy, with_gentle_pooler
from ..features import features_of, reading_of, remembered
from ..groups import fresh_names

LR = 1e-2


def features(cache: str | Path | None = None) -> Strategy:
    """Only the head trains, as with `head`, and the body runs once: what it says of each row is kept on disk, for this run and for the next ones.

    The body runs without dropout, which `head` does not switch off. For other classifiers than a head see `extract_features`.

    Args:   cache: the folder of the features; default $XDG_CACHE_HOME/minitransfer/features, or ~/.cache/minitransfer/features.
    """
    @contextmanager
    def once(model: Model, batches: Iterable[dict[str, Tensor]]) -> Iterator[None]:
        reading = reading_of(model)
        with remembered(model, features_of(model, batches, reading, cache), reading):
            yield
    return Strategy("features", trains=fresh_names, settings={"lr": LR}, rate=with_gentle_pooler(LR), during=once)
