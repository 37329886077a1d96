"""Fresh weights: modules are made without values, then each value is drawn once, from a generator of its own."""
from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..config import ModelConfig
from .heads import VocabularyHead
from .norms import LayerNorm, RMSNorm
from .patches import Patches

FRESH = 2**16           # numbers that a head may have although its file is smaller still


class Unfilled(TorchFunctionMode):
    """Modules made inside skip PyTorch's own initialisation: their values are drawn, or loaded, later, and torch's global generator is left alone.

    (The meta device would do as well, but its first use imports the compiler and takes longer than `import torch`.)
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class Room(TorchFunctionMode):
    """Modules made inside hold no more than twice the `numbers` of the files they are to be filled from, beside what is known to be `fresh`: a description
    of something larger is refused before memory is asked for.
    """

    def __init__(self, numbers: int, folder: Path, fresh: int = 0):
        super().__init__()
        self.numbers, self.folder, self.left = numbers, folder, 2 * numbers + fresh + FRESH

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.empty, torch.zeros, torch.ones):
            self.left -= math.prod(args[0] if isinstance(args[0], list | tuple) else args)
            if self.left < 0:
                raise ValueError(f"config.json in {self.folder} describes a model of far more than the {self.numbers:,} numbers that its files hold; one of its sizes "
                                 "(of the vocabulary, widths, layers) is not theirs: take the config.json that belongs to these weights, or fetch both again")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def initialise(module: nn.Module, c: ModelConfig, generator: torch.Generator) -> None:
    """Fresh weights: matrices N(0, init_std^2), biases 0, norms 1; all of an LSTM with C cells uniform within 1/sqrt(C).

    With pre-norm the stream x grows with every block, so what is added to it (o_proj, down_proj) is drawn smaller, by 1/sqrt(2 L).
    Source: Devlin et al. 2019 and Radford et al. 2019, section 2.3.
    """
    for name, m in module.named_modules():
        if isinstance(m, nn.Linear | nn.Embedding | nn.Conv1d):
            residual = c.norm_position == "pre" and name.endswith(("o_proj", "down_proj"))
            m.weight.normal_(0.0, c.init_std / (math.sqrt(2 * c.n_layers) if residual else 1.0), generator=generator)
            if not isinstance(m, nn.Embedding) and m.bias is not None:
                m.bias.zero_()
        elif isinstance(m, LayerNorm | RMSNorm):
            m.weight.fill_(1.0)
            if isinstance(bias := getattr(m, "bias", None), nn.Parameter):
                bias.zero_()
        elif isinstance(m, Patches):
            m.whole.normal_(0.0, c.init_std, generator=generator)
        elif isinstance(m, nn.LSTM):
            for p in m.parameters():
                p.uniform_(-1 / math.sqrt(m.hidden_size), 1 / math.sqrt(m.hidden_size), generator=generator)
        elif isinstance(m, VocabularyHead) and m.bias is not None:
            m.bias.zero_()
