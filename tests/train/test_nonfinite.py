"""NaN: found before it spreads, named, and nothing good is lost."""
import json

import pytest
import torch
from safetensors.torch import load_file

from minitransfer.objectives import Causal
from minitransfer.training import NonFiniteError, train

from .small import batches, bert, gpt, same, settings, weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_before_training(value, tmp_path):
    model = gpt()
    with torch.no_grad():
        model.blocks[1].mlp.up_proj.weight[3, :2] = value
    with pytest.raises(NonFiniteError, match=r"2 of the 580 values in blocks.1.mlp.up_proj.weight are NaN or infinite; training needs finite weights.*load another"):
        train(model, batches(), Causal(), settings(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["blocks.1.mlp.up_proj", "blocks.0.norm_attn", "embed.positions"])
def test_the_first_module_with_a_non_finite_output_is_named_and_the_last_save_kept(module, tmp_path):
    model, kept = gpt(), {}

    def plant(record):
        if record["step"] == 4:
            kept.update(weights(model))
        if record["step"] == 5:
            with torch.no_grad():
                model.get_submodule(module).weight[0] = float("nan")

    with pytest.raises(NonFiniteError, match=rf"step 6: .*the first module with a non-finite output is {module}\. .*the save of step 4 is intact: lower lr"):
        train(model, batches(), Causal(), settings(9, save_every=2), out=tmp_path, on_step=plant)
    again = gpt(seed=3)
    train(again, batches(), Causal(), settings(9, save_every=2), out=tmp_path, resume=True, on_step=lambda record: None)
    whole = gpt()
    train(whole, batches(), Causal(), settings(9))
    assert kept and same(weights(again), weights(whole))


def test_the_diagnosis_repeats_the_step_that_failed():
    """The fault is in the random numbers of one step: a replay with others would find nothing."""
    class Unlucky(torch.nn.Module):
        def forward(self, x):
            return x / (torch.rand(()) > 0.2)

    model = gpt()
    model.blocks[2].mlp.down_proj = torch.nn.Sequential(model.blocks[2].mlp.down_proj, Unlucky())
    with pytest.raises(NonFiniteError, match=r"the first module with a non-finite output is blocks.2.mlp.down_proj.1"):
        train(model, batches(), Causal(), settings(50))


def test_a_gradient_that_is_not_finite_is_found_although_the_loss_is():
    model = bert()
    before = weights(model)

    def objective(model, batch, generator):
        body = model.body(batch["input_ids"])
        return (body.x.sum() * 0 + model.blocks[1].attn.q_proj.bias.mul(0).sqrt().sum()), 1     # the slope of a root at zero

    with pytest.raises(NonFiniteError, match=r"the loss is finite, the gradient is not; nearest to the loss that is blocks.1.attn.q_proj.bias.*nothing was"):
        train(model, batches(), objective, settings())
    assert same(before, weights(model))


def test_a_loss_that_is_not_finite_although_every_module_is():
    def objective(model, batch, generator):
        return model.body(batch["input_ids"]).x.sum() * float("inf"), 1

    with pytest.raises(NonFiniteError, match="every module's output is finite, the loss of the head is not: look at the labels"):
        train(gpt(), batches(), objective, settings())


@pytest.mark.parametrize("save_every", [1, 500])
def test_a_last_step_that_goes_wrong_takes_the_place_of_no_good_save(tmp_path, save_every):
    """No later loss would show it: the weights themselves are looked at before they are saved."""
    model, kept = gpt(), {}

    def plant(record):
        if record["step"] == 2:
            kept.update(weights(model))
        if record["step"] == 3:
            with torch.no_grad():
                model.blocks[1].mlp.up_proj.bias[4] = float("inf")

    saved = "the save of step 2 is intact" if save_every == 1 else "nothing was saved yet"
    with pytest.raises(NonFiniteError, match=rf"step 3 left NaN or infinite values in blocks.1.mlp.up_proj.bias; .*{saved}: lower lr"):
        train(model, batches(), Causal(), settings(3, save_every=save_every), out=tmp_path, on_step=plant)
    assert not (tmp_path / "model").exists() and (tmp_path / "last").exists() == (save_every == 1)
    if save_every == 1:
        assert torch.equal(load_file(tmp_path / "last" / "parameters.safetensors")["blocks.1.mlp.up_proj.bias"], kept["blocks.1.mlp.up_proj.bias"])


def test_a_held_out_loss_that_is_not_finite_ends_the_run(tmp_path):
    """Huge weights are finite, and so is the loss before them; the first NaN is that of the evaluation, and it is no best."""
    losses = iter([2.0, float("nan")])
    with pytest.raises(NonFiniteError, match=r"step 4: the held-out loss is nan; .* the save of step 3 is intact: lower lr"):
        train(gpt(), batches(), Causal(), settings(6, eval_every=2, save_every=3, best="loss lower"), out=tmp_path, evaluate=lambda model: {"loss": next(losses)})
    assert json.loads((tmp_path / "best/best.json").read_text())["step"] == 2 and not (tmp_path / "model").exists()
