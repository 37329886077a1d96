"""The one question the loop asks, and what the objectives share."""
from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..nn.encoder_decoder import EncoderDecoder
from ..nn.heads import IGNORE
from ..nn.model import Model

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "document_ids", "packed")


@runtime_checkable
class Objective(Protocol):
    """`objective(model, batch, generator)` -> (sum of the losses over all targets, number of targets).

    A sum and a count rather than a mean: micro-batches hold different numbers of targets, and an average of their averages would weigh them wrongly.
    All randomness comes from `generator`, which lives on the model's device and is seeded from (seed, number of the batch).
    """

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]: ...


def tokens_of(batch: dict[str, Tensor]) -> Bool[Tensor, "B T"]:
    """Which positions of a batch hold tokens; the others are padding."""
    if (mask := batch.get("attention_mask")) is not None:
        return mask.bool()
    if (documents := batch.get("document_ids")) is not None:
        return documents >= 0
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


def inputs_of(batch: dict[str, Tensor], input_ids: Int[Tensor, "B T"]) -> dict[str, Any]:
    """What a body reads of a batch, with `input_ids` in the place of the batch's own."""
    return {name: batch[name] for name in INPUTS if name in batch} | {"input_ids": input_ids}


def ask_head(model: Model, batch: dict[str, Tensor], input_ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"]) -> tuple[Tensor, int | Tensor]:
    """The loss of the model's head for `labels`, when its body reads the batch with `input_ids` in the place of the batch's own.

    Raises: ValueError for a model without a head.
    """
    if model.head is None:
        raise ValueError('a model without a head; an objective asks the head for its loss: put one on with model.set_head("masked") or set_head("causal")')
    return model.head.loss(model.body(**inputs_of(batch, input_ids)), labels)


def padded(inputs: list[Tensor], targets: list[Tensor]) -> tuple[Int[Tensor, "N M"], Bool[Tensor, "N M"], Int[Tensor, "N U"]]:
    """Texts and what is to be written about each, in one batch: the texts, which of these positions are tokens, and labels, IGNORE behind their ends."""
    there = pad_sequence([torch.ones_like(one, dtype=torch.bool) for one in inputs], batch_first=True)
    return pad_sequence(inputs, batch_first=True), there, pad_sequence(targets, batch_first=True, padding_value=IGNORE)


def ask_writer(model: Model, input_ids: Int[Tensor, "N M"], keep: Bool[Tensor, "N M"], labels: Int[Tensor, "N U"]) -> tuple[Tensor, int | Tensor]:
    """The loss of an encoder-decoder that reads texts and is to write `labels`.

    Raises: ValueError for a model that is none, or has another head than seq2seq.
    """
    if not isinstance(model, EncoderDecoder) or model.head_name != "seq2seq":
        raise ValueError(f'a model with head="{model.head_name}"; the targets of this objective are written by an encoder-decoder: load one with head="seq2seq"')
    head: Any = model.head
    return head.loss(model.body(input_ids, keep, model.starts(labels)), labels)
