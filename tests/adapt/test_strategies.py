"""Strategies: what they insert, train and save; and that one from outside needs no change of the loop."""
import pytest

from minitransfer.transfer import Strategy, full, head, last, layer_groups, lora, strategy
from minitransfer.transfer.lora import lora_layers

from .test_groups import gpt, small, trains


@pytest.mark.parametrize("name,left", [
    ("full", "embed, blocks.0-2, norm, head"), ("head", "head"), ("last:1", "blocks.2, norm, head"), ("last:3", "blocks.0-2, norm, head")])
def test_what_trains(name, left):
    model = gpt()
    report = strategy(name).apply(model)
    assert trains(model) == left
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_lora_by_name_and_with_settings():
    model = gpt()
    strategy("lora:4").apply(model, seed=3)
    layer = lora_layers(model)["blocks.1.attn.v_proj"]
    assert layer.r == 4 and len(lora_layers(model)) == 6
    other, same = gpt(), gpt()
    lora(r=4).apply(other, seed=4)
    lora(r=4).apply(same, seed=3)
    assert (lora_layers(same)["blocks.1.attn.v_proj"].lora_A == layer.lora_A).all()
    assert not (lora_layers(other)["blocks.1.attn.v_proj"].lora_A == layer.lora_A).all()
    model = gpt()
    lora(r=2, targets="all", alpha=3, dropout=0.25).apply(model)
    assert len(lora_layers(model)) == 18 and lora_layers(model)["blocks.0.mlp.up_proj"].dropout.rate == 0.25


def test_by_name_or_as_it_is():
    own = Strategy("mine", trains=lambda model: ["head.classifier.weight"])
    assert strategy(own) is own
    assert [strategy(n).name for n in ("full", "head", "last:2", "lora")] == [full().name, head().name, last(2).name, lora().name]


@pytest.mark.parametrize("wanted,message", [
    ("laura", r"no strategy is called 'laura' \(did you mean 'lora'\?\); there are full, head, last, lora"),
    ("last", r"strategy 'last' does not fit last\(k: 'int'\)"),
    ("last:two", "strategy 'last:two' does not fit"),
    ("full:2", r"strategy 'full:2' does not fit full\(\)"),
])
def test_names_that_do_not_exist(wanted, message):
    with pytest.raises(ValueError, match=message):
        strategy(wanted)


def test_what_cannot_be_applied():
    with pytest.raises(ValueError, match=r"strategy 'last:4' on a model of 3 blocks; .* give 1 to 3"):
        strategy("last:4").apply(small())
    with pytest.raises(ValueError, match="strategy 'head' leaves nothing to train in a model with head='causal'"):
        strategy("head").apply(gpt().set_head("causal"))


def test_a_group_order_for_the_strategies_to_come():
    """Gradual unfreezing goes down this list; discriminative rates count along it."""
    assert list(layer_groups(gpt())) == ["embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]
