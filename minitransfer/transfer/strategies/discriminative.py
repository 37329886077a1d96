"""A learning rate for each depth: low layers know what every text shares and move little, the head knows nothing yet and moves most."""
from __future__ import annotations

from collections.abc import Callable, Mapping

from ...nn.model import Model
from ..base import Strategy
from ..groups import layer_groups, parameters_at, short_list

Number = int | float
PEAK = 3e-4         # of the head, if the call says nothing: at the usual 5e-5 the rungs below would hardly move


def rungs(model: Model) -> dict[str, list[str]]:
    """The layer groups as the rungs of a ladder: embed, blocks.0, ..., head. A final norm and a pooler stand on the head's rung."""
    groups = layer_groups(model)
    top = max(i for i, group in enumerate(groups) if "blocks." in group)
    below = dict(list(groups.items())[: top + 1])
    above = [name for group, names in groups.items() if group not in below for name in names]
    return {**below, "head": above} if above else below


def by_depth(model: Model, decay: Number) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by: 1 on the highest rung, decay^-k on the k-th below it."""
    ladder = rungs(model)
    return {name: float(decay) ** (i + 1 - len(ladder)) for i, names in enumerate(ladder.values()) for name in names}


def names_at(model: Model, address: str) -> list[str]:
    """The names at an address, or in the "lower half" (the first n // 2 of n blocks) or the "upper half" of the blocks."""
    blocks = [group for group in layer_groups(model) if "blocks." in group]
    half = len(blocks) // 2
    halves = {"lower half": blocks[:half], "upper half": blocks[half:]}
    return parameters_at(model, halves.get(address, [address]))


def by_map(model: Model, rates: Mapping[str, Number]) -> dict[str, float]:
    """The learning rate of each parameter, from a map of addresses. What "head" names includes a norm and a pooler that have no rate of their own.

    Raises: ValueError for an address that names nothing, a rate below zero, a group without a rate, or with two.
    """
    found: dict[str, float] = {}
    source: dict[str, str] = {}
    for address, rate in rates.items():
        if rate < 0:
            raise ValueError(f"the learning rate of {address!r} is {rate}; it is a number above zero: 0 freezes what it names")
        for name in [] if address == "head" and "head" in rungs(model) else names_at(model, address):
            if name in found:
                raise ValueError(f"{name} has two learning rates, as {source[name]!r} and as {address!r}; one is needed: let the addresses not overlap")
            found[name], source[name] = float(rate), address
    if "head" in rates:
        for name in rungs(model).get("head", []):
            found.setdefault(name, float(rates["head"]))
    if missing := [group for group, names in layer_groups(model).items() if not found.keys() >= set(names)]:
        raise ValueError(f"the learning rates {dict(rates)} say nothing of {short_list(missing)}; every layer group of the model "
                         f"({short_list(list(layer_groups(model)))}) needs one: add it to the map, with 0 if it stays frozen")
    return found


def discriminative(decay: Number = 2.6, rates: Mapping[str, Number] | None = None) -> Strategy:
    """Everything trains, each rung of the ladder embed, blocks.0, ..., head at a rate of its own. Norms and biases do not decay at any of them.

        lr of a rung = lr of the rung above / decay, and the highest one has the run's lr (default 3e-4)

    Args:   rates: instead of the decay, a learning rate for every layer group; 0 freezes it. The four rates of a common recipe in one line:
                   discriminative(rates={"embed": 1e-5, "lower half": 2e-5, "upper half": 3e-5, "head": 5e-5})
                   "blocks.0-5" and all other addresses are fine too, and "head" includes a final norm and a pooler that are not named.
                   If the call of `finetune` gives an lr, that one is the highest rate, and the others keep their proportion to it.
    Raises: ValueError for a decay that is not above zero; and, when applied, for a map that misses a group, names one twice or names none.
    Source: Howard & Ruder 2018, section 3.2.
    """
    if not decay > 0:
        raise ValueError(f"decay={decay}; the rate of a rung is that of the rung above divided by it: give a number above zero, 1 for equal rates")
    if rates is None:
        return Strategy("discriminative", trains=lambda model: list(by_depth(model, decay)), rate=lambda model: by_depth(model, decay).__getitem__,
                        settings={"lr": PEAK})
    highest = max(rates.values(), default=0.0)
    if not highest > 0:
        raise ValueError(f"the learning rates {dict(rates)} train nothing; one at least has to be above zero: give every layer group a rate")

    def rate(model: Model) -> Callable[[str], float]:
        found = by_map(model, rates)
        return lambda name: found[name] / highest
    return Strategy("discriminative", trains=lambda model: [name for name, lr in by_map(model, rates).items() if lr > 0], rate=rate,
                    settings={"lr": highest})
