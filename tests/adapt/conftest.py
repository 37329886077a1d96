"""Small reference models with every parameter moved, saved as files, and ours loaded from them."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from minitransfer.nn.model import Model
from minitransfer.training import loop
from minitransfer.training.optim import make_optimizer
from tests.reference import HEADS, close, let_peft_pass_prefixes, perturbed

from .small import tokenizer


@dataclass
class Twin:
    """A reference model, the folder it was saved in, and a batch for it."""

    name: str
    folder: Path
    ids: torch.Tensor
    keep: torch.Tensor

    def reference(self) -> Any:
        return getattr(transformers, self.name).from_pretrained(self.folder, attn_implementation="eager").eval()

    def ours(self) -> Model:
        return Model.from_pretrained(self.folder)

    def theirs_out(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            out = model(self.ids, attention_mask=self.keep.long())
        return out[0] if HEADS[self.name] == "none" else out.logits

    def ours_out(self, model: Model) -> torch.Tensor:
        with torch.no_grad():
            out = model(self.ids, attention_mask=self.keep)
        return out.last_hidden_state if HEADS[self.name] == "none" else out.logits

    def same(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Equal to 1e-5 wherever there is a token."""
        close(*((a, b) if HEADS[self.name] == "sequence" else (a[self.keep], b[self.keep])))


@pytest.fixture
def peft_prefixes(monkeypatch):
    let_peft_pass_prefixes(monkeypatch, transformers.BertModel, transformers.GPT2Model, transformers.GPT2ForSequenceClassification)


@pytest.fixture
def twin(tmp_path):
    def build(name: str) -> Twin:
        perturbed(name).save_pretrained(tmp_path / name)
        keep = torch.ones(5, 13, dtype=torch.bool)
        keep[1, 7:] = keep[3, 2:] = False
        return Twin(name, tmp_path / name, torch.randint(2, 100, (5, 13)) * keep, keep)     # id 0 is GPT-2's padding here: the reference goes by it
    return build


@pytest.fixture
def optimizers(monkeypatch):
    """The optimizers of the runs of this test, each from the moment it is made."""
    made = []

    def make(groups, settings):
        made.append(make_optimizer(groups, settings))
        return made[-1]
    monkeypatch.setattr(loop, "make_optimizer", make)
    return made


@pytest.fixture(scope="session")
def word_tok():
    return tokenizer()
