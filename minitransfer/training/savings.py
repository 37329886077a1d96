"""What makes a step smaller, the cheapest change first, each with what a rehearsal says it saves. Predictions, all of them."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from ..nn.model import Model
from ..transfer.base import Strategy
from ..transfer.strategies import lora
from ..transfer.wrapped import inserted
from .precision import gpu_computes_bf16
from .rehearsal import Footprint, StepShape, rehearse, twin

Rehearsed = Callable[[StepShape, Strategy | None], Footprint]
HALF = "half the batch_size with twice the micro_batches, for the same gradient"
GENERAL = (HALF, "checkpointing=True, which keeps one activation per block and recomputes the rest",
           'precision="auto" if it was fp32', 'training less: strategy="lora", or freezing the lower blocks', "a shorter length")


@dataclass(frozen=True)
class Saving:
    """A change, and the step with it."""

    change: str
    footprint: Footprint


def changes(step: StepShape, half: str | None, parts: bool) -> Iterator[tuple[str, StepShape, Strategy | None]]:
    """What can be changed: first what gives the same gradient, then what gives another, then what trains less.

    Args: half: the 16-bit precision of the device, if it has one; parts: the choices of what to compute again one by one.
    """
    if step.batch_size > 1:
        yield HALF, replace(step, batch_size=step.batch_size // 2, micro_batches=2 * step.micro_batches), None
    if not step.checkpointing:
        yield from ((f"checkpointing={one!r}", replace(step, checkpointing=one), None) for one in (("attention", "mlp", "blocks:2") if parts else ()))
        yield "checkpointing=True", replace(step, checkpointing=True), None
    if step.precision == "fp32" and half is not None:
        yield f'precision="{half}"', replace(step, precision=half), None
    yield 'strategy="lora"', step, lora()
    yield 'strategy=lora(base="nf4")', step, lora(base="nf4")


def savings(step: StepShape, rehearsed: Rehearsed, half: str | None, parts: bool = True) -> list[Saving]:
    """Those of the changes that save something. A strategy that does not fit the model is left out."""
    now, found = rehearsed(step, None).peak, []
    for change, other, strategy in changes(step, half, parts):
        try:
            footprint = rehearsed(other, strategy)
        except ValueError:
            continue
        if footprint.peak < now:
            found.append(Saving(change, footprint))
    return found


def advice(model: Model, step: StepShape | None, device: torch.device) -> str:
    """What helps a run that needs too much memory: with numbers, if its step can be rehearsed."""
    def rehearsed(other: StepShape, strategy: Strategy | None) -> Footprint:
        def make() -> Model:
            again = twin(model)
            if strategy is not None:
                if inserted(again):
                    raise ValueError("a model that carries an adapter already")
                strategy.apply(again)
            return again
        return rehearse(make, other, device.type)
    lines = list(GENERAL)
    if step is not None:
        try:
            now = rehearsed(step, None).peak
            half = "bf16" if device.type == "cuda" and gpu_computes_bf16(device) else "fp16"
            told = [f"{one.change}: {mib(now - one.footprint.peak)} less" for one in savings(step, rehearsed, half, parts=False)]
            lines = [*told, f"{GENERAL[-1]}; the step was predicted to take {mib(now)}"]
        except Exception as unrehearsed:             # which must not hide the error that is being explained
            lines = [*GENERAL, f"no numbers, since this step cannot be rehearsed ({type(unrehearsed).__name__})"]
    return "; ".join(f"({i}) {line}" for i, line in enumerate(lines, 1))


def mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if abs(size) >= 2**20 else f"{size / 2**10:,.0f} KiB"
