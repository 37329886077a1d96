"""Write the whole of a text that was broken.

    text      A cat sat there . It slept all day . Nobody knew
    inputs    It slept <mask> . Nobody <mask> knew A <mask> there .
    targets   A cat sat there . It slept all day . Nobody knew
"""
from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..nn.model import Model
from ..text.tokenizer import Tokenizer
from .base import ask_writer, padded, tokens_of


def texts_of(batch: dict[str, Tensor]) -> tuple[Int[Tensor, "_"], ...]:
    """Each text of a batch for itself; of packed rows each piece of a document."""
    ids, keep = batch["input_ids"], tokens_of(batch)
    documents = batch.get("document_ids", torch.zeros_like(ids)) + ids.shape[1] * torch.arange(len(ids), device=ids.device)[:, None]      # (B, T)
    sizes = documents[keep].unique_consecutive(return_counts=True)[1]
    return ids[keep].split(sizes.tolist())


def permuted(ids: Int[Tensor, "T"], stop: Bool[Tensor, "T"], generator: torch.Generator) -> Int[Tensor, "T"]:
    """The sentences of a text in another order, each whole; a sentence ends behind the last full stop of a run, and with the text."""
    ends = stop.clone()
    ends[:-1] &= ~stop[1:]
    sentence = ends.cumsum(0) - ends.long()                                      # (T,) its number
    place = torch.randperm(len(ids), generator=generator, device=ids.device)     # more than there are sentences, whose number stays on the device
    return ids[place[sentence].argsort(stable=True)]


def span_lengths(total: int, mean: float, generator: torch.Generator, device: torch.device) -> Int[Tensor, "n"]:
    """Draws from Poisson(mean) until their sum is `total`; the last is cut to fit.

    If they are more than `total`, those of zero length are left out: a text whose spans become one token each never grows.
    """
    lengths = torch.zeros(0, dtype=torch.long, device=device)
    while int(lengths.sum()) < total:
        lengths = torch.cat([lengths, torch.poisson(torch.full((total,), mean, device=device), generator=generator).long()])
    ends = lengths.cumsum(0).clamp(max=total)
    lengths = ends[: int((ends < total).sum()) + 1].diff(prepend=ends.new_zeros(1)) if total else lengths
    return lengths if len(lengths) <= total else lengths[lengths > 0]


def infilled(ids: Int[Tensor, "T"], lengths: Int[Tensor, "n"], mask_id: int, generator: torch.Generator) -> Int[Tensor, "U"]:
    """The text with one mask in the place of each span of these lengths; every order of the spans and the tokens that stay is equally likely."""
    items = len(ids) - int(lengths.sum()) + len(lengths)                         # spans, and tokens that stay
    spans = torch.randperm(items, generator=generator, device=ids.device)[: len(lengths)]
    widths = torch.ones(items, dtype=torch.long, device=ids.device).index_copy(0, spans, lengths)
    start = (widths.cumsum(0) - widths).clamp(max=len(ids) - 1)                  # a span of zero length may stand behind the last token
    return ids[start].index_fill(0, spans, mask_id)


class Denoising:
    """-sum over all tokens t of log p(x[t] | the broken text, x[<t]), broken anew at every step: sentences change places, then spans become one mask each.

    Spans have Poisson(mean_length) tokens, together round(rate T) of the T of a text; one without tokens puts a mask between two. Each piece of a packed row is a
    text; inputs and targets stand between cls and sep.

    Args:   rate: in (0, 1); mean_length: of a span, in tokens, 1 or more; permute: whether sentences change places.
    Raises: ValueError for a tokenizer without mask, cls or sep tokens, or settings out of range.
    Source: Lewis et al. 2020, section 2.2 and 5.1. Deviations: spans never overlap; a sentence ends behind a token that is a full stop, with closing quotes or brackets;
            a text without one is one sentence.
    """

    name = "denoise"

    def __init__(self, tok: Tokenizer, rate: float = 0.3, mean_length: float = 3.0, permute: bool = True):
        if tok.mask_id is None or tok.cls_id is None or tok.sep_id is None:
            lacking = [role for role in ("mask", "cls", "sep") if getattr(tok, f"{role}_id") is None]
            raise ValueError(f"a tokenizer without {', '.join(lacking)}; denoising puts a mask in the place of each span, and texts between cls and sep: "
                             'use a BART tokenizer, or train a kind that has them, such as "wordpiece"')
        if not 0 < rate < 1 or mean_length < 1:
            raise ValueError(f"rate={rate}, mean_length={mean_length}; the share that is cut out is in (0, 1), and a span has 1 token or more on average: "
                             "the usual values are 0.3 and 3")
        self.mask_id, self.rate, self.mean_length, self.permute = tok.mask_id, rate, mean_length, permute
        self.cls, self.sep = torch.tensor([tok.cls_id]), torch.tensor([tok.sep_id])
        self.stops = torch.tensor([token.lstrip("Ġ▁#").rstrip("\"')]") == "." for token in tok.tokens(range(tok.vocab_size))])

    def broken(self, ids: Int[Tensor, "T"], generator: torch.Generator) -> Int[Tensor, "U"]:
        ids = permuted(ids, self.stops[ids], generator) if self.permute else ids
        return infilled(ids, span_lengths(round(self.rate * len(ids)), self.mean_length, generator, ids.device), self.mask_id, generator) if len(ids) else ids

    def draw(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Int[Tensor, "N M"], Bool[Tensor, "N M"], Int[Tensor, "N U"]]:
        """Returns: the broken texts, which of these positions are tokens, and labels: the texts, IGNORE behind their ends."""
        self.cls, self.sep, self.stops = (one.to(batch["input_ids"].device) for one in (self.cls, self.sep, self.stops))
        texts = [text[(text != self.cls) & (text != self.sep)] for text in texts_of(batch)]
        inputs, targets = ([torch.cat([self.cls, text, self.sep]) for text in some] for some in ([self.broken(text, generator) for text in texts], texts))
        return padded(inputs, targets)

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        """Raises: ValueError for a model that is no encoder-decoder with a seq2seq head."""
        return ask_writer(model, *self.draw(batch, generator))
