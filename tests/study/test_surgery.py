"""Blocks that are taken out, moved, shared, drawn anew and averaged: against running the blocks by hand."""
import copy
from dataclasses import replace

import pytest
import torch

from minitransfer.nn.model import Model
from minitransfer.study.surgery import average, drop, reinitialise, share, swap
from minitransfer.transfer import add_lora, quantize
from tests.adapt.small import bert, gpt, tokenizer
from tests.unit.tiny import moved

IDS = torch.randint(5, 90, (3, 11), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture(params=[bert, gpt], ids=["bert", "gpt"])
def model(request, tok):
    return moved(request.param(tok, "none"))


def run(model, blocks) -> torch.Tensor:
    """The last state, with the blocks asked for in this order."""
    other = copy.deepcopy(model)
    other.blocks, other.config = torch.nn.ModuleList(blocks), replace(model.config, n_layers=len(blocks))
    return last(other)


def last(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).last_hidden_state


def test_blocks_are_dropped_swapped_and_shared(model):
    before, (a, b, c) = last(model), model.blocks
    assert torch.equal(last(drop(model, 1)), run(model, [a, c])) and drop(model, 0, 1).config.n_layers == 1
    assert torch.equal(last(swap(model, 0, 2)), run(model, [c, b, a]))
    shared = share(model, 1, 0, 2)
    assert torch.equal(last(shared), run(model, [b, b, b]))
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in shared.parameters()) == 2 * sum(p.numel() for p in b.parameters())
    assert torch.equal(last(model), before), "the model itself stays"


def test_what_was_shared_trains_as_one_and_is_saved_for_each_place(tok, tmp_path):
    made = share(moved(bert(tok, "none")), 1, 2)
    made(IDS).last_hidden_state.square().sum().backward()
    assert made.blocks[1].mlp.up_proj.weight.grad is made.blocks[2].mlp.up_proj.weight.grad is not None
    made.eval().save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    assert again.blocks[1] is not again.blocks[2] and torch.equal(last(again), last(made))


def test_dropped_and_swapped_models_are_saved_as_they_are(tok, tmp_path):
    for i, made in enumerate((drop(moved(bert(tok, "none")), 0), swap(moved(gpt(tok, "none")), 0, 2))):
        made.save_pretrained(tmp_path / str(i))
        assert torch.equal(last(Model.from_pretrained(tmp_path / str(i))), last(made))


def test_the_top_starts_anew_and_the_bottom_stays(tok):
    model = moved(bert(tok, "sequence"))
    made, again, other = reinitialise(model, 2, 3), reinitialise(model, 2, 3), reinitialise(model, 2, 4)
    for name, p in made.named_parameters():
        fresh = name.startswith(("blocks.1", "blocks.2", "pooler"))
        assert torch.equal(p, dict(model.named_parameters())[name]) != fresh, name
        assert torch.equal(p, dict(again.named_parameters())[name])
    assert not torch.equal(made.blocks[2].mlp.up_proj.weight, other.blocks[2].mlp.up_proj.weight)
    assert float(made.blocks[1].attn.q_proj.weight.detach().std()) == pytest.approx(model.config.init_std, rel=0.1) and not made.blocks[1].attn.q_proj.bias.any()


def test_the_average_is_that_of_every_parameter(tok, tmp_path):
    models = [moved(bert(tok), seed=seed) for seed in (1, 2, 3)]
    found, weighted = average(models), average(models[:2], [3, 1])
    for name, p in found.named_parameters():
        parts = [dict(one.named_parameters())[name] for one in models]
        assert torch.allclose(p, torch.stack(parts).mean(0), atol=1e-6)
        assert torch.allclose(dict(weighted.named_parameters())[name], 0.75 * parts[0] + 0.25 * parts[1], atol=1e-6)
    for i, one in enumerate(models):
        one.save_pretrained(tmp_path / str(i))
    tok.save_pretrained(tmp_path / "0"), tok.save_pretrained(tmp_path / "1"), tok.save_pretrained(tmp_path / "2")
    assert all(torch.allclose(p, q) for p, q in zip(average([tmp_path / str(i) for i in range(3)]).parameters(), found.parameters(), strict=True))


def test_what_cannot_be_done(tok):
    plain = bert(tok, "none")
    for call, message in [(lambda: drop(plain, 3), "there is no block 3 in a model of 3"), (lambda: drop(plain, 0, 1, 2), "drop of all 3 blocks"),
                          (lambda: swap(plain, 0, -1), "there is no block -1"), (lambda: reinitialise(plain, 4), "reinitialise with top=4 of 3 blocks"),
                          (lambda: drop(bert(tok, "none", shared_blocks=True), 1), "all its layers are one shared block"),
                          (lambda: average([plain]), "average of 1 models with weights=None"), (lambda: average([plain, plain], [1.0]), "a weight for each"),
                          (lambda: average([plain, bert(tok, "none", n_layers=2)]), "number 1 has another architecture"),
                          (lambda: average([bert(tok), bert(tok, "masked")]), "number 1 has another head")]:
        with pytest.raises(ValueError, match=message):
            call()
    adapted = copy.deepcopy(plain)
    add_lora(adapted, r=2)
    with pytest.raises(ValueError, match=r"it carries adapters; .* call remove_adapters or merge_lora first"):
        swap(adapted, 0, 1)
    with pytest.raises(ValueError, match="the mean of factors is not the factor of the mean"):
        average([adapted, plain])
    held = copy.deepcopy(plain)
    quantize(held)
    with pytest.raises(ValueError, match="codes of a few bits"):
        reinitialise(held, 1)
    first_differs = bert(tok, "none", norm_position="pre", first_norm=False)
    with pytest.raises(ValueError, match="blocks 0 and 1 of this model have different parts"):
        swap(first_differs, 0, 1)
    with pytest.raises(ValueError, match="different parts"):
        drop(first_differs, 0)
    assert drop(first_differs, 1).config.n_layers == 2
