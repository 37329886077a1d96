"""What a training step will take, before anything is downloaded or computed: memory by component, time, the largest batch, and what would make it smaller.

Memory is counted by a rehearsal of the step (training/rehearsal.py). Time is

    max(FLOP / (products x rate) + bytes / (streams x bandwidth), launches x LAUNCH)

with FLOP of the matrix products and bytes that everything else reads and writes, as the rehearsal counts them; the card's rates and the shares of them that are
reached are those of cards.py.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config import ModelConfig, RecurrentConfig, choose
from ..families import read_config
from ..nn.encoder_decoder import make_model
from ..nn.heads import CLASSIFIES
from ..nn.model import Model
from ..training.optim import param_groups
from ..training.precision import DTYPES
from ..training.rehearsal import Footprint, StepShape, rehearse
from ..training.savings import Saving, mib, savings
from ..training.settings import PRECISIONS
from ..transfer.base import Strategy
from ..transfer.strategies import strategy as strategy_of
from ..weights.files import read_json
from ..weights.sources import resolve
from .cards import Card, card_of

LAUNCH = 8e-6                           # seconds that PyTorch takes on the host for an operation of a GPU: assumed
MOST = 1 << 16                                  # rows of a batch
GENERATE = "generate"


@dataclass(frozen=True, repr=False)
class StepPlan:
    """Predictions. Prints as a table."""

    about: str
    step: StepShape
    card: Card
    footprint: Footprint
    largest: int | None                 # rows of a batch that fit; None: not asked
    savings: tuple[Saving, ...]

    @property
    def memory(self) -> int:
        """Bytes, with what PyTorch and the driver take."""
        return self.footprint.peak + self.card.reserve

    @property
    def fits(self) -> bool:
        return self.memory <= self.card.memory

    @property
    def seconds(self) -> float:
        return seconds_of(self.footprint, self.step, self.card)

    @property
    def tokens_per_second(self) -> float:
        return self.footprint.tokens / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {"predicted": True, "about": self.about, "step": asdict(self.step), "card": self.card.name, "parts": self.footprint.parts, "kept": self.footprint.kept,
                "memory": self.memory, "card_memory": self.card.memory, "fits": self.fits, "largest_batch": self.largest, "flop": self.footprint.flop,
                "seconds": self.seconds, "tokens_per_second": self.tokens_per_second,
                "savings": [{"change": one.change, "bytes": self.footprint.peak - one.footprint.peak, "kept": one.footprint.kept, "fits": self.room(one.footprint) >= 0,
                             "seconds": seconds_of(one.footprint, self.step, self.card)} for one in self.savings]}

    def room(self, footprint: Footprint) -> int:
        return self.card.memory - self.card.reserve - footprint.peak

    def __str__(self) -> str:
        reserve = {"PyTorch and the driver": self.card.reserve} if self.card.reserve else {}
        rows = self.footprint.parts | reserve | {"at the peak": self.memory}
        lines = [f"predicted, not measured: {self.about} on {self.card.name}", *(f"  {name:<24}{mib(size):>12}" for name, size in rows.items()),
                 f"{'fits' if self.fits else 'does not fit'} {mib(self.card.memory)}"
                 + (f"; {mib(self.footprint.kept)} are kept for the backward pass" if self.step.trains else ""),
                 f"{self.seconds:.3g} s, {self.tokens_per_second:,.0f} tokens/s, if products reach {self.card.products:.0%} of {self.card.rates[self.step.precision] / 1e12:,.3g} "
                 f"TFLOP/s and the rest {self.card.streams:.0%} of {self.card.bandwidth / 1e9:,.0f} GB/s ({self.card.source})"]
        if self.largest is not None:
            lines.append(f"the largest batch that fits: {self.largest} rows" if self.largest else
                         "not one row fits: shorten the length, take one of the changes below, or a larger card")
        if self.savings:
            width = max(len(one.change) for one in self.savings)
            lines += ["what makes it smaller, the cheapest change first:", *(
                f"  {one.change:<{width}}  {mib(self.footprint.peak - one.footprint.peak):>11} less, {mib(one.footprint.kept):>11} kept, "
                f"{seconds_of(one.footprint, self.step, self.card):>8.3g} s{'' if self.fits or self.room(one.footprint) < 0 else ', then it fits'}" for one in self.savings)]
        return "\n".join(lines)

    __repr__ = __str__


def seconds_of(footprint: Footprint, step: StepShape, card: Card) -> float:
    work = footprint.flop / (card.products * card.rates.get(step.precision, card.rates["fp32"])) + footprint.moved / (card.streams * card.bandwidth)
    return max(work, footprint.launches * LAUNCH if card.device == "cuda" else 0.0)


def described(source: Any) -> ModelConfig:
    """The architecture of a source (a folder, a name, an id, or a config), from its config.json alone. Raises: ValueError for one without ids to read."""
    if not isinstance(source, ModelConfig | RecurrentConfig):
        hf = read_json(resolve(source, patterns=("config.json",)) / "config.json")
        if isinstance(hf.get("vision_config"), dict):
            raise ValueError(f"{source} holds a text model and an image model; a plan is of one that reads texts: give the config of that")
        source = read_config(hf)[1]
    if isinstance(source, RecurrentConfig):
        raise ValueError("a recurrent body; its LSTM is one operation, into which a rehearsal does not see: plan a transformer, or measure a step of this one")
    if source.patch_size is not None:
        raise ValueError(f"a body of images (patch_size={source.patch_size}); a plan is of texts, rows of tokens: give the config of one that reads ids")
    return source


def usual_head(c: ModelConfig) -> str:
    return "seq2seq" if c.n_decoder_layers else "causal" if c.causal else "sequence"


def built(c: ModelConfig, head: str, strategy: Strategy | None, dtype: str) -> Model:
    """The model of a plan, called on stage: no number of it exists."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        model = make_model(c, head, ["no", "yes"] if head in CLASSIFIES else None, seed=None)
    finally:
        torch.set_default_dtype(usual)
    if strategy is not None:
        strategy.apply(model)
        param_groups(model, 0.0)                                                 # which refuses to train what is not float32
    return model


def largest_batch(takes: Callable[[int], int], room: int, first: int) -> int:
    """The most rows that fit, with a handful of rehearsals: memory is nearly a straight line over them. first: rows to look at first."""
    known = {rows: takes(rows) for rows in (1, first)}
    if known[1] > room:
        return 0
    for _ in range(3):
        (a, low), (b, high) = sorted(known.items())[-2:] if max(known.values()) <= room else beside(known, room)
        guess = min(MOST, max(a + 1, a + (room - low) * (b - a) // max(high - low, 1)))
        if guess in known:
            break
        known[guess] = takes(guess)
    return min(MOST, max(rows for rows, size in known.items() if size <= room))


def beside(known: dict[int, int], room: int) -> list[tuple[int, int]]:
    """The largest that fits, and the smallest that does not."""
    return [max(one for one in known.items() if one[1] <= room), min(one for one in known.items() if one[1] > room)]


def plan(source: str | Path | ModelConfig | Model, strategy: str | Strategy = "full", *, card: str | int | Card = "T4", batch_size: int = 32, length: int = 128,
         head: str | None = None, precision: str = "auto", checkpointing: bool | str = False, micro_batches: int = 1, dtype: str = "fp32", look_further: bool = True) -> StepPlan:
    """Memory by component and time of a step that has not been taken. Nothing but a config.json is read or fetched.

    Args:    source: a folder, a bundled name, a hub id, a ModelConfig, or a model. strategy: as for `finetune`, such as lora(base="nf4"); "generate": no step, but a prompt of
             `length` tokens read into a KV cache.
             card: a name of checks.cards.CARDS, a memory in GB (6, 8, 12, 16, 24, 80), "cpu" for this machine, or a Card. batch_size, length: rows of a micro-batch, all
             full: padding takes as much as tokens, except where a GPU drops it.
             head: None: causal of a decoder, seq2seq of an encoder-decoder, else sequence; of a masked one 15 % of the positions have a target.
             precision, checkpointing, micro_batches: as in TrainSettings. dtype: of the weights as they are loaded; what trains is fp32.
             look_further: also search the largest batch, and rehearse what makes the step smaller.
    Raises:  ValueError for a card, a precision it has not, a length that the model cannot read, a strategy or a source that does not fit.
    """
    source = getattr(source, "config", source)                                   # of a model: its numbers are not looked at
    c, device = described(source), card_of(card)
    choose("precision", precision, PRECISIONS)
    choose("dtype", dtype, tuple(DTYPES))
    for name, size in (("batch_size", batch_size), ("length", length), ("micro_batches", micro_batches)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name}={size!r}; a step reads whole rows of whole tokens: give a whole number above zero")
    if length > c.max_len and not c.endless:
        raise ValueError(f"length={length}; this model reads at most {c.max_len} tokens: plan a length up to that")
    chosen = "fp32" if precision == "auto" and device.half is None else device.half if precision == "auto" else precision
    if chosen not in device.rates:
        raise ValueError(f"precision={precision} on {device.name}, which computes {', '.join(device.rates)}: choose one of these, or auto")
    trains = strategy != GENERATE
    if not trains and (not c.causal or c.n_decoder_layers):
        raise ValueError(f'strategy="{GENERATE}" for a model that is no decoder; a KV cache is one\'s: plan a decoder, or a training step of this model')
    if not trains and micro_batches > 1:
        raise ValueError(f'micro_batches={micro_batches} with strategy="{GENERATE}"; they share the update of one step, and a prompt is read without one: leave micro_batches out')
    if c.causal and head in ("masked", "masked+next", "replaced"):
        raise ValueError(f'head="{head}" on a decoder; hidden tokens are guessed from both sides, and a decoder reads one: plan head="causal", or a bidirectional body')
    wanted, head = strategy_of(strategy) if trains else None, head or usual_head(c)
    step = StepShape(batch_size, length, str(chosen), checkpointing, micro_batches, trains)

    known: dict[StepShape, Footprint] = {}

    def rehearsed(one: StepShape, other: Strategy | None = None) -> Footprint:
        if other is None and one in known:
            return known[one]
        found = rehearse(lambda: built(c, head, other or wanted, dtype), one, device.device)
        return known.setdefault(one, found) if other is None else found
    room = device.memory - device.reserve
    largest = largest_batch(lambda rows: rehearsed(replace(step, batch_size=rows)).peak, room, max(2, batch_size)) if look_further else None
    smaller = savings(step, rehearsed, device.half) if look_further and trains else []
    name = f"{c.n_layers} x {c.d_model}" if isinstance(source, ModelConfig) else str(source)
    what = f"{name}, {wanted.name if wanted else GENERATE}, {micro_batches} x {batch_size} x {length} tokens, {chosen}, head {head}"
    return StepPlan(what, step, device, rehearsed(step), largest, tuple(smaller))
