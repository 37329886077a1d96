"""What a model is given and where it looks, to be seen: `show` a batch, and the `attention_view` of a text."""
from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..nn.heads import IGNORE
from ..nn.model import Model
from ..report import Display, Token, attention, token_rows
from .tokenizer import Tokenizer, TruncationWarning


def kind_of(number: int, kept: bool, second: bool, tok: Tokenizer) -> str:
    return "padding" if not kept else "hidden" if number == tok.mask_id else "special" if number in tok.special_ids else "second" if second else ""


def row_of(batch: Mapping[str, Tensor], row: int, tok: Tokenizer, names: Sequence[str] | None) -> list[Token]:
    """The tokens of one row, each with its label if it has one."""
    ids = batch["input_ids"][row].tolist()
    kept, types, documents = (batch[name][row].tolist() if name in batch else [default] * len(ids)
                              for name, default in (("attention_mask", True), ("token_type_ids", 0), ("document_ids", 0)))
    labels = batch["labels"][row].tolist() if by_token(batch) else [IGNORE] * len(ids)
    texts = [tok.tokens([one])[0] if one != IGNORE and names is None and tok.mask_id in ids else name_of(one, names) for one in labels]
    return [Token(token, kind_of(number, bool(keep) and document >= 0, bool(second), tok), text, document + 1)
            for token, number, keep, second, document, text in zip(tok.tokens(ids), ids, kept, types, documents, texts, strict=True)]


def by_token(batch: Mapping[str, Tensor]) -> bool:
    """Whether each token has a label of its own."""
    labels = batch.get("labels")
    return labels is not None and not labels.is_floating_point() and labels.shape == batch["input_ids"].shape


def name_of(label: int | float, names: Sequence[str] | None) -> str | None:
    return None if label == IGNORE else f"{label:g}" if names is None else names[int(label)]


def label_of(labels: Tensor, names: Sequence[str] | None) -> str | None:
    """What a whole row is labelled with: a class or a number, or yes and no for each class."""
    if labels.dim() == 0:
        return name_of(labels.item(), names if not labels.is_floating_point() else None)
    return ", ".join(f"{one:g}" for one in labels.tolist()) if names is None else ", ".join(name for name, one in zip(names, labels.tolist(), strict=True) if one) or "none"


def show(batch: Mapping[str, Tensor], tok: Tokenizer, names: Sequence[str] | None = None, rows: int = 8) -> Display:
    """A batch as its tokens: what is padding, special or hidden, which text of a pair, where documents begin, and the labels.

    Args:   batch: what `tok(...)`, packed rows or labelled batches give. names: of the classes (model.labels); without them a label is its number, or its token where
            tokens are hidden. rows: at most so many are shown.
    Raises: KeyError for a batch without input_ids.
    """
    if "input_ids" not in batch:
        raise KeyError(f"a batch of {', '.join(map(repr, batch))}; tokens are shown from input_ids: pass what tok(texts) gives")
    shown = [row_of(batch, row, tok, names) for row in range(min(rows, len(batch["input_ids"])))]
    labels = batch.get("labels")
    of_rows = [None if labels is None or by_token(batch) else label_of(labels[row], names) for row in range(len(shown))]
    B, T = batch["input_ids"].shape
    words = [" ".join(f"[{one.text}]" if one.kind == "hidden" else one.text for one in row if one.kind != "padding") for row in shown]
    return Display(token_rows(shown, of_rows), "\n".join([f"{B} rows of {T}: {', '.join(batch)}", *words]))


@torch.no_grad()
def attention_view(model: Model, tok: Tokenizer, text: str, pair: str | None = None, max_length: int = 48) -> Display:
    """Who looks at whom in one text: hover a token, choose the layer and the head. Learned positions before the text (prefix, soft prompt) are left out; of an encoder-decoder
    it is the encoder.

    Args:   max_length: the text is cut after so many tokens.
    Raises: ValueError for a model that has no attention over tokens.
    """
    stack: Model = getattr(model, "encoder", model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)          # the beginning is what was asked for
        batch = {name: t.to(model.device) for name, t in tok(text, pair, max_length=min(max_length, stack.longest)).items()}
    was = stack.training
    try:
        seen = stack.eval()(**batch, output_attentions=True).attentions
    finally:
        stack.train(was)
    ids, n = batch["input_ids"][0].tolist(), batch["input_ids"].shape[1]
    maps = np.stack([one[0, :, -n:, -n:].float().cpu().numpy() for one in seen])      # (L, H, T, T)
    return Display(attention(tok.tokens(ids), maps, [i in tok.special_ids for i in ids]), f"attention: {len(maps)} layers, {maps.shape[1]} heads, {n} tokens")
