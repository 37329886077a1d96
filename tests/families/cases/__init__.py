"""The families as tests see them: one file a page, each with its CASES. A new page's file is found by itself."""
from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field

import pytest
import torch
import transformers

from minitransfer.families import FAMILIES

LABELS = {0: "bad", 1: "fair", 2: "good"}
CLASSES_WITHOUT_LABELS = ("ForQuestionAnswering", "ForMultipleChoice", "ForPreTraining")


@dataclass(frozen=True)
class Case:
    """A tiny model of a family, every size a different number so that no two axes can be confused.

    without: classes of transformers that we have no head for, by their endings, each with the reason; lengths: of the longest text, one past the window if there is one.
    """

    name: str
    model_type: str
    sizes: dict
    lengths: tuple[int, int] = (13, 31)
    token_types: bool = False
    bar: float = 1e-5
    scale: float = 0.1                                          # what every parameter of the reference is moved by, standard deviation
    without: dict[str, str] = field(default_factory=dict)
    untied: bool = False                                        # the reference's output matrix is given values of its own, which only the file tells
    heads: tuple[str, ...] = ()                                 # test these only (a variant of a case that has them all)

    @property
    def vocab(self) -> int:
        return self.sizes["vocab_size"]

    @property
    def classes(self) -> dict[str, str]:
        return {name: head for name, head in FAMILIES[self.model_type].heads.items() if not self.heads or head in self.heads}

    def config(self, class_name: str, **changes) -> transformers.PretrainedConfig:
        labels = {} if class_name.endswith(CLASSES_WITHOUT_LABELS) else {"id2label": LABELS, "label2id": {label: i for i, label in LABELS.items()}}
        return transformers.AutoConfig.for_model(self.model_type, **(self.sizes | labels | changes), attn_implementation="eager")

    def reference(self, class_name: str, seed: int = 0, scale: float | None = None, **changes) -> torch.nn.Module:
        """The reference's model in eval mode, with N(0, scale) added to every parameter: at their own init most norms and biases are constants."""
        torch.manual_seed(seed)
        model = getattr(transformers, class_name)(self.config(class_name, **changes)).eval()
        if self.untied and hasattr(model, "lm_head"):
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (self.scale if scale is None else scale))
        return model


CASES: list[Case] = [case for module in pkgutil.iter_modules(__path__) for case in importlib.import_module(f"{__name__}.{module.name}").CASES]
ALL = [(case, name) for case in CASES for name in case.classes]
IDS = [f"{case.name}-{name}" for case, name in ALL]


def slow_after_the_first(pairs: list[tuple[Case, str]]) -> list:
    """Of each case but the variants one class for the quick tests, and the others for all of them."""
    firsts = {case.name: name for case, name in reversed(pairs) if not case.heads}
    return [pytest.param(case, name, marks=[] if firsts.get(case.name) == name else pytest.mark.slow) for case, name in pairs]
