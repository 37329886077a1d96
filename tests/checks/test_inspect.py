"""The tree of a checkpoint's or an adapter's tensors: it holds every tensor of the file, and joins what is alike."""
from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import minitransfer as mt
from minitransfer.transfer import add_lora
from tests.adapt.small import bert, tokenizer


def leaves(values, above=()):
    for name, inside in values.items():
        yield from leaves(inside, (*above, name)) if isinstance(inside, dict) else [(".".join((*above, name)), inside)]


@pytest.fixture(scope="module")
def model():
    return bert(tokenizer())


def test_an_adapter_is_a_tree(tmp_path, model):
    add_lora(model, 5, targets="q,down")
    mt.save_adapter(model, tmp_path)
    found = mt.inspect(tmp_path)
    told = {name: f"{' x '.join(map(str, t.shape))}  float32" for name, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert dict(leaves(found.found["tensors"])) == told
    shown = str(found).splitlines()
    at = shown.index("        0-2")                                             # three blocks in one
    assert [" ".join(line.split()) for line in shown[at + 1 : at + 7]] == ["attention.self.query", "lora_A.weight 5 x 36 float32", "lora_B.weight 36 x 5 float32",
                                                                          "output.dense", "lora_A.weight 5 x 59 float32", "lora_B.weight 36 x 5 float32"]


def test_a_block_that_is_not_like_the_others_stands_alone(tmp_path):
    save_file({f"a.{i}.w": torch.zeros(2, 4 if i == 7 else 3) for i in range(12)} | {"a": torch.zeros(()), "b.2.w": torch.zeros(1), "b.4.w": torch.zeros(1)},
              tmp_path / "model.safetensors")
    shown = [line.split("  ") for line in mt.inspect(tmp_path).listed(True).split("tensors\n")[-1].splitlines()]
    assert [[cell.strip() for cell in line if cell.strip()] for line in shown] == [
        ["a"], ["one number", "float32"], ["0-6, 8-11.w", "2 x 3", "float32"], ["7.w", "2 x 4", "float32"], ["b"], ["2, 4.w", "1", "float32"]]


def test_of_a_checkpoint_it_is_shown_if_asked(tmp_path, model):
    mt.remove_adapters(model)
    model.save_pretrained(tmp_path)
    found = mt.inspect(tmp_path)
    assert "\ntensors\n" not in str(found) and "\ntensors\n" in found.listed(True)
    assert len(dict(leaves(found.found["tensors"]))) == found.found["files"]["tensors"]
