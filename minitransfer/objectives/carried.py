"""Predict the next token of an unbroken stream, with the state that was reached before."""
from __future__ import annotations

import torch
from torch import Tensor

from ..nn.cache import Cache
from ..nn.heads import VocabularyHead
from ..nn.model import Model
from ..ops.linear_cross_entropy import linear_cross_entropy


class Carried:
    """Truncated backpropagation through time, on batches of `StreamBatches`: -sum_t log p(x[t] | all of the stream before t).

    The states after a batch are where the next one begins; the gradient stops there. Training and evaluation have states of their own.

    A run that is resumed begins its first batch with zero states, since no save holds them: the one case in which it does not end with the bits of a run that
    never stopped.

    Source: Williams & Peng 1990; Merity et al. 2018, section 5. Raises: ValueError for a model without a causal head on an LSTM body.
    """

    name = "carried"

    def __init__(self) -> None:
        self.caches: dict[bool, Cache] = {}         # by whether the model is in training

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int]:
        head = model.head
        if not (isinstance(head, VocabularyHead) and head.shift and hasattr(model.config, "d_hidden")):
            raise ValueError(f'a {type(model).__name__} with head "{model.head_name}"; a state is carried by a recurrent model with head="causal": use one, or Causal()')
        if not bool(batch["continues"]) or model.training not in self.caches:
            self.caches[model.training] = Cache(model.config.n_layers)
        cache, ids = self.caches[model.training], batch["input_ids"]
        x = model.body(input_ids=ids[:, :-1], cache=cache).x                     # (B, T, D)
        for layer in cache.layers:
            assert layer.k is not None and layer.v is not None
            layer.k, layer.v = layer.k.detach(), layer.v.detach()
        targets = ids[:, 1:].flatten()
        return linear_cross_entropy(head.transformed(x.flatten(0, 1)), head.matrix, head.bias, targets), len(targets)
