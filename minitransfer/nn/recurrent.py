"""A recurrent body under the same heads: embed -> blocks -> head, where a block is a layer of LSTMs."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..config import ModelConfig, RecurrentConfig
from .cache import Cache
from .heads import BodyOutput
from .lstm import RecurrentBlock, WordEmbeddings, locked_dropout
from .model import Model
from .trace import Trace


@dataclass(frozen=True)
class Texts:
    """The texts of a batch laid out one a row, each from column 0, wherever its row had padding, or other texts before it."""

    places: Int[Tensor, "n"]        # of the tokens among the B T positions
    text: Int[Tensor, "n"]          # the row that each goes to
    column: Int[Tensor, "n"]
    lengths: Int[Tensor, "N"]

    @classmethod
    def of(cls, keep: Bool[Tensor, "B T"], documents: Int[Tensor, "B T"] | None) -> Texts:
        rows = torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)
        whose = rows if documents is None else rows * (int(documents.max()) + 2) + documents
        places = keep.flatten().nonzero()[:, 0]
        _, text, lengths = whose.flatten()[places].unique_consecutive(return_inverse=True, return_counts=True)
        return cls(places, text, torch.arange(len(places), device=keep.device) - (lengths.cumsum(0) - lengths)[text], lengths)

    def lay(self, t: Int[Tensor, "B T"]) -> Int[Tensor, "N L"]:
        laid = t.new_zeros(len(self.lengths), int(self.lengths.max()))
        laid[self.text, self.column] = t.flatten()[self.places]
        return laid

    def back(self, x: Tensor, B: int, T: int) -> Tensor:
        """(N, L, D) -> (B, T, D), zeros where no token is."""
        return x.new_zeros(B * T, x.shape[2]).index_put((self.places,), x[self.text, self.column]).unflatten(0, (B, T))


class RecurrentModel(Model):
    """A `Model` whose body is a stack of LSTM layers; its config is a RecurrentConfig. Heads, freezing, finetune, predict, saving and loading are those of Model.

    A text is read alone, from a zero state, whatever stands beside it in its row; a cache carries the states of all layers over to the next tokens: for
    generation, or for training on a stream (`StreamBatches`, `Carried`).

    Source: Merity et al. 2018 (AWD-LSTM); Peters et al. 2018 (both_ways).
    """

    config: RecurrentConfig     # type: ignore[assignment]

    def make_body(self, c: ModelConfig) -> None:
        """Raises: ValueError for a config of a body with attention."""
        if not isinstance(c, RecurrentConfig):
            raise ValueError(f"a {type(c).__name__} for a RecurrentModel; its layers are described by a RecurrentConfig: give one, or make a Model")
        self.embed, self.blocks, self.relative, self.norm = WordEmbeddings(c), nn.ModuleList(RecurrentBlock(c, i) for i in range(c.n_layers)), None, None

    @property
    def ahead(self) -> tuple[int, int]:
        return 0, 0

    def body(self, input_ids: Int[Tensor, "B T"], attention_mask: Tensor | None = None, token_type_ids: Int[Tensor, "B T"] | None = None,  # type: ignore[override]
             position_ids: Int[Tensor, "#B T"] | None = None, document_ids: Int[Tensor, "B T"] | None = None, cache: Cache | None = None,
             trace: Trace | None = None) -> BodyOutput:
        """Everything below the head. The arguments are those of `Model`; position_ids are not read, the state knows how far it is.

        Raises: ValueError for token_type_ids, attentions, and a cache that does not fit.
        """
        (B, T), c, block = input_ids.shape, self.config, None
        keep = self.tokens_of(input_ids, attention_mask, document_ids)
        self.check(keep, token_type_ids, document_ids, cache, trace)
        if not keep.any():
            return BodyOutput(self.embed.tokens.weight.new_zeros(B, T, c.d_model), keep, None, document_ids)
        texts = Texts.of(keep, document_ids)
        x = self.embed(texts.lay(input_ids)).repeat(1, 1, c.directions)          # (N, L, D)
        states = [x]
        x = self.dropped(x, c.input_dropout)
        for i, block in enumerate(self.blocks):
            layer: Any = None if cache is None else cache.layers[i]
            x, (h, cells) = block(x, texts.lengths, None if layer is None or layer.k is None else (layer.k, layer.v))
            if layer is not None:                                                # h and c stand where attention keeps keys and values
                layer.k, layer.v, layer.length = h, cells, layer.length + T
            states.append(x)
            x = self.dropped(x, c.hidden_dropout if i < c.n_layers - 1 else c.dropout)
        if trace is not None:
            trace.states += [texts.back(state, B, T) for state in states]
        return BodyOutput(texts.back(x, B, T), keep, None, document_ids)

    def dropped(self, x: Tensor, rate: float) -> Tensor:
        return locked_dropout(x, rate) if self.training else x

    def tokens_of(self, input_ids: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None) -> Bool[Tensor, "B T"]:
        keep = torch.ones_like(input_ids, dtype=torch.bool)
        for name, given in (("attention_mask", attention_mask), ("document_ids", document_ids)):
            if given is not None and given.shape != input_ids.shape:
                raise ValueError(f"{name} of shape {tuple(given.shape)} for ids of shape {tuple(input_ids.shape)}; it says something of each id given now: "
                                 "pass one of the same shape")
        keep = keep if attention_mask is None else attention_mask.bool()
        return keep if document_ids is None else keep & (document_ids >= 0)

    def check(self, keep: Tensor, types: Tensor | None, documents: Tensor | None, cache: Cache | None, trace: Trace | None) -> None:
        if types is not None and bool(types.any()):
            raise ValueError("token_type_ids for a recurrent body; it has no table of segments: leave them out")
        if trace is not None and trace.attention:
            raise ValueError("attentions of a recurrent body; it has none: ask for hidden states")
        if cache is not None and self.config.both_ways:
            raise ValueError("a cache for a body with both_ways=True; there every token sees later ones, so nothing computed stays right: run without a cache")
        if cache is not None and (documents is not None or not bool(keep.any(1).all())):
            raise ValueError("a cache with packed rows, or with a row without a token; it carries one state a row: give one text a row")
