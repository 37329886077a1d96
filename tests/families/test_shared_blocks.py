"""One block that every layer applies: what freezing, rates, gradients, adapters and students mean there."""
from __future__ import annotations

import copy
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import minitransfer as mt
from minitransfer.transfer import add_prefix, layer_groups, load_adapter, save_adapter
from minitransfer.transfer.strategies import strategy
from minitransfer.transfer.strategies.discriminative import by_depth
from minitransfer.transfer.student import student

from .cases import CASES

ALBERT = next(case for case in CASES if case.name == "albert")
IDS = torch.randint(3, ALBERT.vocab, (3, 13), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1])


@pytest.fixture
def model(tmp_path) -> mt.Model:
    ALBERT.reference("AlbertForSequenceClassification").save_pretrained(tmp_path / "base")
    return mt.Model.from_pretrained(tmp_path / "base")


def unshared(model: mt.Model) -> mt.Model:
    """The same function with a block of its own for every layer."""
    made = copy.deepcopy(model)
    made.blocks = nn.ModuleList(copy.deepcopy(made.blocks[0]) for _ in range(model.config.n_layers))
    made.config = replace(model.config, shared_blocks=False)
    return made


def trains(model: mt.Model) -> set[str]:
    return {group for group, names in layer_groups(model).items() if any(model.get_parameter(name).requires_grad for name in names)}


def moved(model: mt.Model) -> mt.Model:
    """Something learned: everything that trains is elsewhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.empty_like(p).normal_(0, 0.1, generator=generator))
    return model.eval()


def test_the_block_freezes_and_thaws_as_a_whole(model):
    assert list(layer_groups(model)) == ["embed", "blocks.0", "pooler", "head"]
    mt.freeze(model, "blocks.0")
    assert trains(model) == {"embed", "pooler", "head"}
    mt.freeze_to(model, 1)
    assert trains(model) == {"blocks.0", "pooler", "head"}
    with pytest.raises(ValueError, match=r"the address 'blocks\.1' names nothing in this model; its layer groups are embed, blocks\.0, pooler, head"):
        mt.freeze(model, "blocks.0-1")
    strategy("last:1").apply(model)
    assert trains(model) == {"blocks.0", "pooler", "head"}
    with pytest.raises(ValueError, match=r"strategy 'last:2' on a model of 1 block \(3 layers share it\); it trains the last k of them: give 1, or use 'head' or 'full'"):
        strategy("last:2").apply(model)


def test_rates_have_three_rungs(model):
    rates = by_depth(model, 2.0)
    assert {group: {rates[name] for name in names} for group, names in layer_groups(model).items()} == {
        "embed": {0.25}, "blocks.0": {0.5}, "pooler": {1.0}, "head": {1.0}}


@pytest.mark.parametrize("name", ["full", "last:1", "lora", "ia3", "adapter", "prefix", "bitfit"])
def test_one_set_of_parameters_is_applied_in_every_layer_and_gathers_their_gradients(model, name):
    """Against a copy with a block for each layer: the same answers, and there the gradient is shared out over the copies."""
    strategy(name).apply(model)
    twin = unshared(moved(model))
    losses = [one(IDS, labels=LABELS) for one in (model, twin)]
    assert (losses[0].logits - losses[1].logits).abs().max() <= 1e-6
    for one in losses:
        one.loss.backward()
    own = [(part, p) for part, p in model.named_parameters() if part.startswith("blocks.0.") and p.requires_grad]
    assert own
    for part, p in own:
        copies = [twin.get_parameter(part.replace("blocks.0.", f"blocks.{i}.")).grad for i in range(3)]
        assert (p.grad - sum(copies)).abs().max() <= 1e-5 * max(1, float(p.grad.abs().max()))
        assert part.endswith("k_proj.bias") or (p.grad - copies[0]).abs().max() > 1e-4 * float(p.grad.abs().max())     # a bias of keys moves no softmax


def test_lora_is_one_pair_of_matrices_and_peft_reads_it(model, tmp_path):
    mt.add_lora(model, r=3, targets="q,down")
    assert sum(p.numel() for n, p in model.named_parameters() if "lora" in n) == 3 * (28 + 28) + 3 * (53 + 28)
    want = moved(model)(IDS).logits
    save_adapter(model, tmp_path / "lora")
    again = load_adapter(mt.Model.from_pretrained(tmp_path / "base"), tmp_path / "lora")
    theirs = peft.PeftModel.from_pretrained(ALBERT.reference("AlbertForSequenceClassification"), tmp_path / "lora").eval()
    assert again is not None and (theirs(IDS).logits - want).abs().max() <= 1e-5
    model = mt.Model.from_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "lora")
    assert torch.equal(model(IDS).logits, want)


def test_a_prefix_stands_in_its_file_once_for_each_layer(model, tmp_path):
    add_prefix(model, 5)
    want = moved(model)(IDS).logits
    save_adapter(model, tmp_path / "prefix")
    file = tmp_path / "prefix" / "adapter_model.safetensors"
    tensors = load_file(file)
    assert tensors["prompt_embeddings"].shape == (5, 3 * 2 * 28)
    again = mt.Model.from_pretrained(tmp_path / "base")
    load_adapter(again, tmp_path / "prefix")
    assert torch.equal(again(IDS).logits, want)
    tensors["prompt_embeddings"][2, 2 * 28 + 1] += 1
    save_file(tensors, file)
    with pytest.raises(ValueError, match="the layers of prompt_embeddings differ; this base has one block"):
        load_adapter(mt.Model.from_pretrained(tmp_path / "base"), tmp_path / "prefix")


def test_a_student_keeps_the_block(model, tmp_path):
    made = student(model, 2)
    assert made.config.n_layers == 2 and len(made.blocks) == 1
    assert torch.equal(made(IDS).last_hidden_state, model(IDS, output_hidden_states=True).hidden_states[2])
    made.save_pretrained(tmp_path / "student")
    again = mt.Model.from_pretrained(tmp_path / "student")
    assert again.config == made.config and torch.equal(again(IDS).logits, made(IDS).logits)
