"""Write what was cut out of a text.

    text      Thank you for inviting me to your party last week
    inputs    Thank you <extra_id_0> me to your party <extra_id_1> week
    targets   <extra_id_0> for inviting <extra_id_1> last <extra_id_2>
"""
from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer as Backend
from torch import Tensor

from ..nn.model import Model
from ..text.tokenizer import Tokenizer
from .base import ask_writer, padded, tokens_of

SENTINEL = "<extra_id_{}>"


def with_sentinels(tok: Tokenizer, n: int = 100) -> Tokenizer:
    """The tokenizer with `<extra_id_0>` ... `<extra_id_{n - 1}>` after its own tokens; as it is if it has them."""
    if SENTINEL.format(0) in tok.vocab:
        return tok
    backend = Backend.from_str(tok.backend.to_str())
    backend.add_special_tokens([SENTINEL.format(i) for i in range(n)])
    return Tokenizer(backend, tok.format)


def segments(items: int, n: int, generator: torch.Generator, device: torch.device) -> Int[Tensor, "n"]:
    """The lengths, each at least 1, of n segments of `items` things; every way to cut them is equally likely."""
    cuts = torch.randperm(items - 1, generator=generator, device=device)[: n - 1].sort().values + 1
    ends = torch.cat([cuts.new_zeros(1), cuts, cuts.new_tensor([items])])
    return ends.diff()


def noise_spans(length: int, rate: float, mean: float, generator: torch.Generator, device: torch.device) -> Bool[Tensor, "length"]:
    """Which tokens of a text are cut out: round(rate length) of them in round(that / mean) spans, between spans that stay; the first span stays."""
    cut = min(max(round(length * rate), 1), length - 1)
    n = min(max(round(cut / mean), 1), length - cut)
    lengths = torch.stack([segments(length - cut, n, generator, device), segments(cut, n, generator, device)], dim=1).flatten()      # stays, cut, stays, cut, ...
    return (torch.arange(2 * n, device=device) % 2).repeat_interleave(lengths) == 1


def with_places(ids: Int[Tensor, "T"], gone: Bool[Tensor, "T"], sentinels: Int[Tensor, "s"]) -> Int[Tensor, "U"]:
    """The ids with each run of those that are gone replaced by one sentinel, the first run by the first one.

    Raises: ValueError for more runs than sentinels.
    """
    first = gone.clone()
    first[1:] &= ~gone[:-1]
    if (runs := int(first.sum())) > len(sentinels):
        raise ValueError(f"{runs} spans in one text and {len(sentinels)} sentinel tokens; each span needs one: use shorter rows, or with_sentinels(tok, {runs})")
    marked = torch.where(first, sentinels[(first.cumsum(0) - 1).clamp(min=0)], ids)
    return marked[first | ~gone]


class Span:
    """-sum over what was cut out of log p(token | the text with places for it, what was written so far), drawn anew at every step.

    A row is one text, whatever documents it is made of: `rate` of its tokens are cut out in spans of `mean_length` on average. Inputs and targets end with eos.

    Args:   rate: in (0, 1); mean_length: of a span, in tokens, 1 or more.
    Raises: ValueError for a tokenizer without sentinel or eos tokens, or settings out of range.
    Source: Raffel et al. 2020, section 3.1.4 and figure 2; how spans are drawn is told by the code released with it.
    """

    name = "span"

    def __init__(self, tok: Tokenizer, rate: float = 0.15, mean_length: float = 3.0):
        self.sentinels = torch.tensor([tok.vocab[SENTINEL.format(i)] for i in range(len(tok.vocab)) if SENTINEL.format(i) in tok.vocab])
        if not len(self.sentinels) or tok.eos_id is None:
            raise ValueError(f"a tokenizer without {'eos' if len(self.sentinels) else SENTINEL.format(0)}; span corruption puts sentinels in the place of what it cuts out, and "
                             "an eos at the end: use a T5 tokenizer, or with_sentinels(tok) on one that has an eos")
        if not 0 < rate < 1 or mean_length < 1:
            raise ValueError(f"rate={rate}, mean_length={mean_length}; the share that is cut out is in (0, 1), and a span has 1 token or more: the usual values are 0.15 and 3")
        self.eos, self.rate, self.mean_length = torch.tensor([tok.eos_id]), rate, mean_length

    def draw(self, input_ids: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"],
             generator: torch.Generator) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"], Int[Tensor, "B U"]]:
        """Returns: the texts with places, which of these positions are tokens, and labels: what stood there, IGNORE behind the end."""
        device = input_ids.device
        sentinels, eos = self.sentinels.to(device), self.eos.to(device)
        inputs, targets = [], []
        for row, kept in zip(input_ids, keep, strict=True):
            ids = row[kept]
            noise = noise_spans(len(ids), self.rate, self.mean_length, generator, device) if len(ids) > 1 else torch.zeros_like(ids, dtype=torch.bool)
            inputs.append(torch.cat([with_places(ids, noise, sentinels), eos]))
            targets.append(torch.cat([with_places(ids, ~noise, sentinels), eos]))
        return padded(inputs, targets)

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        """Raises: ValueError for a model that is no encoder-decoder with a seq2seq head."""
        return ask_writer(model, *self.draw(batch["input_ids"], tokens_of(batch), generator))
