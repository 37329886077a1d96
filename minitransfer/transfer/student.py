"""A shallower copy of a model, to be taught by it."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..nn.model import Model
from ..objectives.distillation import kept_blocks


def student(teacher: Model, n_layers: int) -> Model:
    """A model of `n_layers` of the teacher's blocks, with its embeddings and head: where a distilled model starts.
    One block that all layers share stays, and is applied n_layers times.

    Returns: a copy, all of it trainable. Train it with `objectives.Distilled(teacher)`.
    Source:  Sanh et al. 2019, section 3 (every other block of the teacher).
    Raises:  ValueError for more blocks than the teacher has, or none.
    """
    if not 1 <= n_layers <= teacher.config.n_layers:
        raise ValueError(f"n_layers={n_layers} of a teacher with {teacher.config.n_layers}; a student starts from some of its blocks: "
                         f"give 1 to {teacher.config.n_layers}")
    c = teacher.config
    return with_blocks(teacher, range(n_layers) if c.shared_blocks else kept_blocks(c.n_layers, n_layers).tolist()).requires_grad_(True)


def with_blocks(model: Model, kept: Sequence[int]) -> Model:
    """A copy of a model with these of its blocks, in this order; each goes on seeing as far as it did."""
    made, c = copy.deepcopy(model), model.config
    if not c.shared_blocks:
        made.blocks = nn.ModuleList(made.blocks[i] for i in kept)
    windows = [c.window_of(i) for i in kept]
    made.config = replace(c, n_layers=len(kept), window=c.window if any(windows) else None,
                          global_layers=tuple(i for i, w in enumerate(windows) if w is None) if any(windows) else ())
    made.load_report, made.source_config = None, {}
    return made
