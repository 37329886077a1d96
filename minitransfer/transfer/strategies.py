"""The strategies by name. Each is a function of its settings that returns a Strategy; a new one is a page of its own and a line in STRATEGIES."""
from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from ..nn.model import Model
from .base import Strategy
from .groups import fresh_names, layer_groups
from .lora import add_lora, lora_names
from .peft_files import save_adapter


def full() -> Strategy:
    """Everything trains: the most that the data can change, and the most to store."""
    return Strategy("full", trains=lambda model: [name for name, _ in model.named_parameters()])


def head() -> Strategy:
    """Only the head trains, on a frozen body: a linear probe. A pooler trains along if the checkpoint had none."""
    return Strategy("head", trains=fresh_names, settings={"lr": 1e-3})


def last(k: int) -> Strategy:
    """The last `k` blocks train and whatever stands above them: final norm, pooler, head. The backward pass stops below.

    Raises: ValueError, when applied, for a model with fewer blocks.
    """
    def trains(model: Model) -> list[str]:
        blocks = len(model.blocks)
        if not 1 <= k <= blocks:
            raise ValueError(f"strategy 'last:{k}' on a model of {blocks} blocks; it trains the last k of them: "
                             f"give 1 to {blocks}, or use 'head' or 'full'")
        frozen = {"embed", *(f"blocks.{i}" for i in range(blocks - k))}
        return [name for group, names in layer_groups(model).items() if group not in frozen for name in names]
    return Strategy(f"last:{k}", trains)


def lora(r: int = 8, alpha: int | float = 16, dropout: int | float = 0.0, targets: str | list[str] = "q,v", rslora: bool = False) -> Strategy:
    """Low-rank changes of the frozen body's matrices, and the head, train. See `add_lora`; saved as a PEFT adapter."""
    return Strategy(
        "lora", insert=lambda model, seed: add_lora(model, r, alpha, dropout, targets, rslora, seed),
        trains=lambda model: {*lora_names(model), *fresh_names(model)}, settings={"lr": 1e-3}, save=save_adapter)


STRATEGIES: dict[str, Callable[..., Strategy]] = {"full": full, "head": head, "last": last, "lora": lora}


def strategy(wanted: str | Strategy) -> Strategy:
    """A strategy by its name, with one number after a colon if it takes one: "full", "head", "last:2", "lora:16"; or an object, as it is.

    Raises: ValueError for a name that does not exist, with the nearest one that does; or a number it does not take.
    """
    if isinstance(wanted, Strategy):
        return wanted
    name, _, argument = wanted.partition(":")
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, 1)
        raise ValueError(f"no strategy is called {wanted!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
                         + f"; there are {', '.join(STRATEGIES)}: choose one, or pass a Strategy object")
    page = STRATEGIES[name]
    try:
        arguments = [int(argument) if argument.lstrip("-").isdigit() else float(argument)] if argument else []
        inspect.signature(page).bind(*arguments)
    except (TypeError, ValueError):
        raise ValueError(f"strategy {wanted!r} does not fit {name}{inspect.signature(page)}; "
                         f"after the colon stands its first setting, a number: write for example {name}:2, or pass a Strategy object") from None
    return page(*arguments)
