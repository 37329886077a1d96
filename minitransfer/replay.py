"""Tokens from a CUDA graph: one token is hundreds of launches that each take the host longer than the GPU; replayed, they are one.

The prompt is read as ever. Every token after it has the same shapes: one id a text, keys and values in buffers of S positions, of which those that hold no token yet
are masked, and a place in them that is a number on the device. So one graph serves every text of as many rows that fits its buffers, in this call and in later ones.
"""
from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .nn.cache import Cache, LayerCache
from .nn.encoder_decoder import EncoderDecoder
from .nn.heads import VocabularyHead
from .nn.model import Model
from .nn.recurrent import RecurrentModel
from .nn.writing import Writing
from .training.captured import Graph
from .transfer.named import by_row

DEVICES = ("cuda",)     # that have graphs
WORTH = 8               # new tokens from which a capture, the time of a few, pays
ROUND = 64              # S is a multiple of this, so that few graphs serve many lengths
KEPT = 4                # graphs of a model; each holds the keys and values of its rows
STEPS: WeakKeyDictionary[Model, tuple[Model, dict[tuple[int, int], Step]]] = WeakKeyDictionary()     # the copy that is captured; its steps by rows and S


def suits(model: Model) -> bool:
    """Whether tokens of this model can come from a graph: one stack with a vocabulary on such a device, whose rows are alike and begin with their tokens."""
    alike = not (isinstance(model, EncoderDecoder | RecurrentModel) or by_row(model) or any(model.ahead) or model.quantized_from)
    return model.device.type in DEVICES and alike and isinstance(model.head, VocabularyHead) and model.config.causal


def positions_for(model: Model, length: int) -> int | None:
    """S for texts that are `length` columns at last; None if the model's positions may end before that many."""
    S, most = -(-length // ROUND) * ROUND, model.config.max_len
    return S if model.config.endless else min(S, most) if length <= most else None


class FixedLayer(LayerCache):
    """Buffers that stay where they are, S positions each. To a body it is a cache that is full but for the token it reads."""

    k: Float[Tensor, "B K S Dh"]
    v: Float[Tensor, "B K S Dh"]

    def __init__(self, shape_of: LayerCache, S: int, place: Int[Tensor, "1"]):
        assert shape_of.k is not None and shape_of.v is not None
        self.k, self.v = (t.new_zeros(*t.shape[:2], S, t.shape[3]) for t in (shape_of.k, shape_of.v))
        self.length, self.place, self.crossed = S - 1, place, None

    def append(self, k: Float[Tensor, "B K 1 Dh"], v: Float[Tensor, "B K 1 Dh"]) -> tuple[Float[Tensor, "B K S Dh"], Float[Tensor, "B K S Dh"]]:
        """Put one position to its place; returns all S, of which `FixedCache.keep` says which are there."""
        return self.k.index_copy_(2, self.place, k), self.v.index_copy_(2, self.place, v)


class FixedCache(Cache):
    """A FixedLayer per block, which of the S positions are tokens, and the place of the next one."""

    keep: Bool[Tensor, "B S"]
    layers: list[FixedLayer]    # type: ignore[assignment]

    def __init__(self, shape_of: Cache, rows: int, S: int, device: torch.device):
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.keep = torch.zeros(rows, S, dtype=torch.bool, device=device)
        self.layers = [FixedLayer(layer, S, self.place) for layer in shape_of.layers]

    def see(self, keep: Bool[Tensor, "B 1"]) -> Bool[Tensor, "B S"]:
        return self.keep.index_copy_(1, self.place, keep)

    def fill(self, given: Cache) -> None:
        """Begin with what has been read."""
        n = given.length
        self.place.fill_(n)
        self.keep.zero_()[:, :n] = True if given.keep is None else given.keep
        for layer, full in zip(self.layers, given.layers, strict=True):
            assert full.k is not None and full.v is not None
            layer.k[:, :, :n], layer.v[:, :, :n] = full.k[:, :, :n], full.v[:, :, :n]

    def select(self, rows: Tensor) -> None:
        for t in (self.keep, *(t for layer in self.layers for t in (layer.k, layer.v))):
            t.copy_(t[rows])


class Step:
    """One token of every text: its id in, the logits of the next one out, which stand until the next call."""

    def __init__(self, model: Model, shape_of: Cache, rows: int, S: int):
        self.model, self.cache = model, FixedCache(shape_of, rows, S, model.device)
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.keep = torch.ones_like(self.ids, dtype=torch.bool)
        self.launch()                                                            # as it is: kernels are loaded, which a capture forbids
        self.graph = Graph(self.launch, torch.Generator(model.device), None)

    def launch(self) -> Float[Tensor, "B V"]:
        body = self.model.body(self.ids, self.keep, cache=self.cache)
        self.cache.place.add_(1)
        return self.model.head.logits(body.x[:, -1]).float()

    def __call__(self, ids: Int[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
        self.ids.copy_(ids)
        self.graph.replay()
        return self.graph.out


class Replayed(Writing):
    """Writing whose tokens after the first come from a graph. Args: model, fast: the model and the copy of it that computes; S: of `positions_for`."""

    def __init__(self, model: Model, fast: Model, ids: Int[Tensor, "N T"], keep: Bool[Tensor, "N T"], S: int):
        super().__init__(fast, ids, keep)
        self.model, self.fast, self.S = model, fast, S
        self.step: Step | None = None

    def logits(self) -> Float[Tensor, "N V"]:
        if self.step is not None:
            return self.step(self.ids[:, -1:])
        logits = super().logits()
        self.step = self.ready()
        self.step.cache.fill(self.cache)                                         # type: ignore[arg-type]
        self.cache = self.step.cache
        return logits

    def ready(self) -> Step:
        """The step for as many rows and positions, captured if it is not there; the oldest leaves when there are too many, and all when the copy is another."""
        fast, steps = STEPS.get(self.model, (None, {}))
        if fast is not self.fast:
            fast, steps = STEPS[self.model] = self.fast, {}
        key = len(self.ids), self.S
        if key not in steps:
            while len(steps) >= KEPT:
                del steps[next(iter(steps))]
            steps[key] = Step(self.fast, self.cache, *key)                       # type: ignore[arg-type]
        return steps[key]
