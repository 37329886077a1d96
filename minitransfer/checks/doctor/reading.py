"""What a text is read as must not depend on what stands around it: padding, other rows, other documents, later tokens."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...nn.encoder_decoder import EncoderDecoder
from .finding import Finding, Tried
from .patient import Inputs, Patient

BAR = 1e-4          # times the largest number compared, at least 1: sums in another order stay a hundredfold below
BEHIND = 7          # padding positions


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest max |a - b| / max(1, max |b|) over pairs of tensors; infinite for shapes or numbers that cannot be compared."""
    distances = [float((a - b).abs().max() / b.abs().max().clamp(min=1)) if a.shape == b.shape else float("inf") for a, b in zip(found, wanted, strict=True) if b.numel()]
    return max((float("inf") if d != d else d for d in distances), default=0.0)


def both(read: tuple[list[Tensor], Tensor | None]) -> list[Tensor]:
    states, whole = read
    return [*states, *([] if whole is None else whole)]


def widened(row: Inputs, left: int = 0, right: int = 0, filler: int = 0) -> Inputs:
    """The row with padding on its sides."""
    fill = {"input_ids": filler, "attention_mask": False}
    return {name: torch.nn.functional.pad(t, (left, right), value=fill.get(name, 0)) for name, t in row.items()}


def verdict(say: Tried, distance: float, otherwise: str, same: str, do: str) -> Finding:
    how = "the numbers cannot be compared" if distance == float("inf") else f"{distance:.1e} apart, relative"
    return say.wrong(f"{otherwise}: {how}", do) if distance > BAR else say.ok(f"{same} ({distance:.0e} apart)")


def padding(p: Patient) -> Iterator[Finding]:
    say = Tried("padding", f"{len(p.probe)} texts alone, and with {BEHIND} padding positions behind them that hold two different ids")
    distance = max(apart(both(p.read(widened(row, right=BEHIND, filler=filler))), both(p.read(row))) for row in p.probe for filler in (p.tok.filler, first_word(p)))
    yield verdict(say, distance, "a text is read otherwise when padding stands behind it", "padding is not seen",
                  "hand attention_mask through to every attention, pool by the mask and never by an id or the last column, and let no norm mix positions")


def padding_side(p: Patient) -> Iterator[Finding]:
    say = Tried("padding side", f"{len(p.probe)} texts with {BEHIND} padding positions on the right, and on the left")
    distance = max(apart(both(p.read(widened(row, left=BEHIND, filler=p.tok.filler))), both(p.read(widened(row, right=BEHIND, filler=p.tok.filler)))) for row in p.probe)
    yield verdict(say, distance, "a text is read otherwise when its padding is on the left", "either side reads alike",
                  "number the positions by the attention mask (position_ids = mask.cumsum(1) - 1), and take the first or last token of a text by the mask")


def batch_composition(p: Patient) -> Iterator[Finding]:
    width = min(row["input_ids"].shape[1] for row in p.probe)
    rows = [{name: t[:, -width:] for name, t in row.items()} for row in p.probe]          # from the right: some read the token that ends a text
    together = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    say = Tried("batch composition", f"{len(rows)} texts of {width} tokens alone, and in one batch without padding, in two orders")
    alone = [both(p.read(row)) for row in rows]
    distance = 0.0
    for order in (list(range(len(rows))), list(reversed(range(len(rows))))):
        states, whole = p.read({name: t[order] for name, t in together.items()})
        found = [[states[k], *([] if whole is None else [whole[k]])] for k in range(len(order))]
        distance = max(distance, *(apart(found[k], alone[i]) for k, i in enumerate(order)))
    yield verdict(say, distance, "a text is read otherwise beside other texts", "a text is read as it is alone",
                  "look for what mixes the rows of a batch: batch norm, a mean over the batch axis, an adapter for each row, a reshape that joins rows")


def packing(p: Patient) -> Iterator[Finding]:
    """Tokens of one packed text must see nothing of another, and count their positions from 0."""
    if isinstance(p.model, EncoderDecoder) or p.model.ahead[1] or len(p.probe) < 2:
        return
    a, b = p.probe[0], p.probe[-1]
    row = {name: torch.cat([a[name], b[name]], 1) for name in a if name != "attention_mask"}
    n = a["input_ids"].shape[1]
    row["document_ids"] = (torch.arange(row["input_ids"].shape[1], device=p.model.device) >= n).long()[None]
    say = Tried("packing", "two texts packed into one row, and each alone")
    (state,), _ = p.read(row)
    yield verdict(say, apart([state[:n], state[n:]], [p.read(a)[0][0], p.read(b)[0][0]]), "a text packed behind another is read otherwise than alone",
                  "packed texts do not see one another", "hand document_ids through to the mask of every block, and count positions from 0 in each text")


def causal(p: Patient) -> Iterator[Finding]:
    if not p.model.config.causal or isinstance(p.model, EncoderDecoder):
        return
    say = Tried("causal leak", f"{len(p.probe)} texts, and the same with their second halves replaced")
    distance = 0.0
    for row in p.probe:
        n = row["input_ids"].shape[1] // 2
        other = row["input_ids"].clone()
        other[:, n:] = (other[:, n:] + first_word(p)) % p.model.config.vocab_size
        distance = max(distance, apart([p.read(row | {"input_ids": other})[0][0][:n]], [p.read(row)[0][0][:n]]))
    yield verdict(say, distance, "a token is read otherwise when later ones change", "no token sees later ones",
                  "the loss will be far too low, and generation far worse than it: make every attention causal, and shift labels once, in the head")


def first_word(p: Patient) -> int:
    """The id of some token that is not special."""
    return next((int(i) for i in p.probe[0]["input_ids"][0] if int(i) not in p.tok.special_ids), 1)
