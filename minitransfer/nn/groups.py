"""The layer groups of a model, from the input to the output: what is frozen and thawed together."""
from __future__ import annotations

import re

from torch import nn

GROUP = re.compile(r"(?:(?:encoder|decoder)\.)?(?:blocks\.\d+|\w+)")


def layer_groups(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter's name, in groups from the input to the output: embed, blocks.0, blocks.1, ..., norm, pooler, head.

    Returns: group -> names of its parameters; each parameter of the model is in exactly one group.
    """
    groups: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        match = GROUP.match(name)
        groups.setdefault(match[0] if match else name, []).append(name)
    if "head" in groups:
        groups["head"] = groups.pop("head")
    return groups
