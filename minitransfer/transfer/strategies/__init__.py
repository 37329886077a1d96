"""The strategies by name. Each is a function of its settings that returns a Strategy; a new one is a function on a page of this folder and a line in STRATEGIES.

The learning rates they bring were chosen on a small BERT and rows of sst2 that no figure uses (bench/results/transfer_rates.json); another body may want others."""
from __future__ import annotations

import inspect
from collections.abc import Callable

from ...config_parts import meant
from ..base import Strategy
from .discriminative import discriminative
from .features import features
from .full import bitfit, full, head, last
from .inserted import adapter, compacter, ia3, lora, prefix, soft_prompt
from .ulmfit import ulmfit

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "full": full,
    "head": head,
    "last": last,
    "features": features,
    "discriminative": discriminative,
    "ulmfit": ulmfit,
    "bitfit": bitfit,
    "lora": lora,
    "ia3": ia3,
    "adapter": adapter,
    "compacter": compacter,
    "prefix": prefix,
    "soft_prompt": soft_prompt,
}


def strategy(wanted: str | Strategy) -> Strategy:
    """A strategy by its name, with one number after a colon if it takes one: "full", "head", "last:2", "lora:16"; or an object, as it is.

    Raises: ValueError for a name that does not exist, with the nearest one that does; a number it does not take; or what is neither name nor Strategy.
    """
    if isinstance(wanted, Strategy):
        return wanted
    if not isinstance(wanted, str):
        how = f"call it, {wanted.__name__}()" if callable(wanted) and hasattr(wanted, "__name__") else f"there are {', '.join(STRATEGIES)}"
        raise ValueError(f"strategy={wanted!r}; it is a name or a Strategy object: {how}")
    name, _, argument = wanted.partition(":")
    if name not in STRATEGIES:
        raise ValueError(f"no strategy is called {wanted!r}{meant(name, STRATEGIES)}; there are {', '.join(STRATEGIES)}: choose one, or pass a Strategy object")
    page = STRATEGIES[name]
    try:
        arguments = [int(argument) if argument.lstrip("-").isdigit() else float(argument)] if argument else []
        inspect.signature(page).bind(*arguments)
    except (TypeError, ValueError):
        takes = ", ".join(one.name if one.default is one.empty else f"{one.name}={one.default!r}" for one in inspect.signature(page).parameters.values())
        raise ValueError(f"strategy {wanted!r} does not fit {name}({takes}); "
                         f"after the colon stands its first setting, a number: write for example {name}:2, or pass a Strategy object") from None
    return page(*arguments)
