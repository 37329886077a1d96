"""The comparison with the reference library: the same inputs through both, every state, every output, the loss and the gradient of every parameter.

The truth for a padded batch is each row alone, without padding: positions count tokens here, whichever side the padding is on.
Used by `minitransfer verify` and by the project's own tests.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..families.rules import spelled
from ..nn.encoder_decoder import READS_TWICE, EncoderDecoder
from ..nn.heads import IGNORE
from ..nn.model import Model, ModelOutput
from ..weights.save import family_of


@dataclass(frozen=True)
class Difference:
    """How far ours is from theirs in one tensor: largest and mean absolute difference, and the largest absolute value there is in theirs."""

    what: str
    largest: float
    mean: float
    scale: float

    @property
    def error(self) -> float:
        """max |ours - theirs| / max(1, max |theirs|): the project's measure of parity."""
        return self.largest / max(1.0, self.scale)


def difference(what: str, ours: Tensor, theirs: Tensor) -> Difference:
    """Raises: ValueError for tensors of unequal shape: they cannot be the same quantity."""
    if ours.shape != theirs.shape:
        raise ValueError(f"{what} is {tuple(ours.shape)} here and {tuple(theirs.shape)} in the reference; the two models differ in size: compare their configs")
    gap = (ours.detach().double() - theirs.detach().double()).abs()
    if not gap.numel():
        return Difference(what, 0.0, 0.0, 0.0)
    return Difference(what, gap.max().nan_to_num(float("inf")).item(), gap.mean().item(), theirs.detach().double().abs().max().item())


def batch(vocab: int, lengths: list[int], left: bool, seed: int = 0) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Random texts of these lengths and which positions are tokens; the texts are the same on either side, what stands under the padding is not."""
    generator, T = torch.Generator().manual_seed(seed), max(lengths)
    texts, ids = (torch.randint(3, vocab, (len(lengths), T), generator=generator) for _ in range(2))
    keep = torch.zeros_like(ids, dtype=torch.bool)
    for row, n in enumerate(lengths):
        here = slice(T - n, None) if left else slice(None, n)
        keep[row, here], ids[row, here] = True, texts[row, :n]
    return ids, keep


def outputs_of(head: str, reference: Any, ours: ModelOutput, row: int, keep: Bool[Tensor, "T"]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What a head says about a row, ours and the reference's for that row alone."""
    if head == "span":
        assert ours.logits is not None
        yield "logits", ours.logits[row][keep], torch.stack([reference.start_logits[0], reference.end_logits[0]], dim=-1)
    elif head not in ("none", "embedding"):
        assert ours.logits is not None
        theirs = reference.prediction_logits if head == "masked+next" else reference.logits
        whole = head in ("sequence", "choice")
        yield "logits", ours.logits[row] if whole else ours.logits[row][keep], theirs[0]
    if head == "masked+next" and ours.next_logits is not None:
        theirs = reference.sop_logits if "sop_logits" in reference else reference.seq_relationship_logits
        yield "next logits", ours.next_logits[row], theirs[0]
    if getattr(reference, "pooler_output", None) is not None and ours.pooled is not None:
        yield "pooled", ours.pooled[row], reference.pooler_output[0]


def inputs_of(model: Model, ids: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"], token_type_ids: Int[Tensor, "B T"] | None = None) -> dict[str, Tensor]:
    """What the model reads; an encoder-decoder also gets texts for its decoder, padded on the same side, or, where it is to classify, texts that end with eos."""
    given = {"input_ids": ids, "attention_mask": keep} | ({} if token_type_ids is None else {"token_type_ids": token_type_ids})
    if isinstance(model, EncoderDecoder) and model.head_name == "sequence":
        last = torch.where(keep, torch.arange(ids.shape[1]), -1).amax(1, keepdim=True)
        given["input_ids"] = ids.scatter(1, last, model.source_config["eos_token_id"])
    elif isinstance(model, EncoderDecoder) and model.head_name not in READS_TWICE:
        written, kept = batch(model.config.vocab_size, [7 + 5 * row % 11 for row in range(len(ids))], left=not bool(keep[:, 0].all()), seed=1)
        given |= {"decoder_input_ids": written, "decoder_attention_mask": kept}
    return given


def alone(given: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row without its padding, and without a mask."""
    masks = {name: given["decoder_attention_mask" if name.startswith("decoder") else "attention_mask"][row] for name in given}
    return {name: value[row][masks[name]][None] for name, value in given.items() if not name.endswith("attention_mask")}


def layers_of(ours: ModelOutput, theirs: Any, row: int, read: Bool[Tensor, "T"], written: Bool[Tensor, "U"]) -> Iterator[Difference]:
    """Every hidden state and attention map of a row; `written` is another mask than `read` in a decoder that looks at an encoder."""
    two = ours.encoder_last_hidden_state is not None
    side = "decoder_" if two else ""
    stacks = [("state", ours.hidden_states, getattr(theirs, side + "hidden_states"), written, None),
              ("attention", ours.attentions, getattr(theirs, side + "attentions"), written, written)]
    if two:
        stacks += [("encoder state", ours.encoder_hidden_states, theirs.encoder_hidden_states, read, None),
                   ("encoder attention", ours.encoder_attentions, theirs.encoder_attentions, read, read),
                   ("cross-attention", ours.cross_attentions, theirs.cross_attentions, written, read)]
    for what, mine, other, rows, keys in stacks:
        if len(mine or ()) != len(other):
            raise ValueError(f"{len(mine or ())} of {what} here and {len(other)} in the reference: compare the configs")
        for i, (a, b) in enumerate(zip(mine or (), other, strict=True)):
            yield difference(f"{what} {i}", a[row][rows] if keys is None else a[row][:, rows][:, :, keys], b[0])


@torch.no_grad()
def compare_outputs(reference: torch.nn.Module, model: Model, ids: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"],
                    token_type_ids: Int[Tensor, "B T"] | None = None) -> list[Difference]:
    """Every hidden state, attention map and output; the model's fast path (attention "auto") is compared beside the one that shows its attention."""
    given = inputs_of(model, ids, keep, token_type_ids)
    found: list[Difference] = []
    shown, fast = model(**given, output_hidden_states=True, output_attentions=True), model(**given)
    for row in range(len(ids)):
        own, read, written = alone(given, row), keep[row], given.get("decoder_attention_mask", keep)[row]
        if model.head_name == "choice":
            own = {name: value[None] for name, value in own.items()}             # one question with one choice
        want: Any = reference(**own, output_hidden_states=True, output_attentions=True)
        found += layers_of(shown, want, row, read, written)
        for path, said in (("", shown), (" (fast)", fast)):
            found += [difference(what + path, ours, theirs) for what, ours, theirs in outputs_of(model.head_name, want, said, row, written)]
        found.append(difference("last state (fast)", fast.last_hidden_state[row][written], shown.last_hidden_state[row][written]))
    return found


def targets(head: str, ids: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"], n_labels: int) -> Tensor:
    """Labels that a head of this kind takes."""
    generator = torch.Generator().manual_seed(0)
    B, _ = ids.shape
    if head == "sequence":
        return torch.randint(0, n_labels, (B,), generator=generator)
    if head == "choice":
        return torch.zeros(1, dtype=torch.long)
    if head in ("token", "replaced"):
        return torch.randint(0, 2 if head == "replaced" else n_labels, ids.shape, generator=generator).masked_fill(~keep, IGNORE)
    if head == "span":
        first = keep.int().argmax(-1)
        return torch.stack([first + 1, first + 3], dim=1)
    if head == "causal":
        return ids.masked_fill(~keep, IGNORE)
    if head == "seq2seq":
        ends = torch.arange(ids.shape[1] - 2) + 3 * torch.arange(B)[:, None]     # another length than the text's, and targets end at different places
        return ids[:, 2:].masked_fill((ends >= ids.shape[1] - 2) | ~keep[:, 2:], IGNORE)
    return ids.masked_fill((torch.rand(ids.shape, generator=generator) > 0.4) | ~keep, IGNORE)


def reference_loss(reference: torch.nn.Module, head: str, ids: Tensor, labels: Tensor, token_type_ids: Tensor | None, next_labels: Tensor) -> Tensor:
    """Their loss on a batch without padding, under the names their classes use."""
    given = {"input_ids": ids} | ({} if token_type_ids is None else {"token_type_ids": token_type_ids})
    if head == "choice":
        given = {name: value[None] for name, value in given.items()}
    if head == "span":
        return reference(**given, start_positions=labels[:, 0], end_positions=labels[:, 1]).loss
    if head == "masked+next":
        asked = "sentence_order_label" if "sentence_order_label" in signature(reference.forward).parameters else "next_sentence_label"
        return reference(**given, labels=labels, **{asked: next_labels}).loss
    return reference(**given, labels=labels).loss


@torch.enable_grad()                                                             # a notebook may have switched gradients off
def compare_gradients(reference: torch.nn.Module, model: Model, ids: Int[Tensor, "B T"], token_type_ids: Tensor | None = None) -> list[Difference]:
    """The loss and the gradient of every parameter, on a batch without padding.

    Raises: ValueError if a parameter of ours has no gradient to be compared with.
    """
    head, keep = model.head_name, torch.ones_like(ids, dtype=torch.bool)
    labels, next_labels = targets(head, ids, keep, len(model.labels or ()) or 1), torch.arange(len(ids)) % 2
    if isinstance(model, EncoderDecoder):
        ids = inputs_of(model, ids, keep)["input_ids"]
    reference.zero_grad()
    model.zero_grad()
    want = reference_loss(reference, head, ids, labels, token_type_ids, next_labels)
    want.backward()
    more: dict[str, Any] = {"next_labels": next_labels} if head == "masked+next" else {}
    got = model(ids, labels=labels, **more, **({} if token_type_ids is None else {"token_type_ids": token_type_ids}))
    assert got.loss is not None
    got.loss.backward()
    found, seen = [difference("loss", got.loss, want)], set()
    family, parameters = family_of(model), dict(model.named_parameters())
    theirs_by_name = {family.current(name): one for name, one in (*reference.named_parameters(remove_duplicate=False), *reference.named_buffers())}
    for theirs, rule, ours in spelled(family.weights(model.config), head, model.config):
        parameter: Any = theirs_by_name.get(family.prefix(head) + theirs, theirs_by_name.get(theirs))
        if parameter is None or any(one not in parameters for one in ours):
            continue
        if not parameter.requires_grad:                                          # a constant of theirs
            seen.update(ours)
            continue
        whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for one, gradient in zip(ours, rule.op.read(whole, len(ours)), strict=True):
            mine = parameters[one].grad
            found.append(difference(f"gradient of {one}", torch.zeros_like(parameters[one]) if mine is None else mine, gradient))
            seen.add(one)
    if unseen := set(parameters) - seen:
        raise ValueError(f"{', '.join(sorted(unseen)[:5])} ({len(unseen)} in all) stand for no parameter of the reference: the family's table lacks them")
    return found
