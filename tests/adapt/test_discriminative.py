"""A rate for each depth, groups that thaw from the top: what the optimizer of a real run had, against the papers' formulas."""
import math

import pytest
import torch

from minitransfer.nn.model import Model
from minitransfer.tasks import finetune
from minitransfer.training import param_groups
from minitransfer.transfer import discriminative, layer_groups, strategy, ulmfit
from minitransfer.transfer.strategies.ulmfit import thawed

from .small import QUICK, TRAIN, bert, gpt

FOUR = {"embed": 1e-5, "lower half": 2e-5, "upper half": 3e-5, "head": 5e-5}


def rates_had(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def of_group(rates: dict[str, float], model: Model) -> dict[str, set[float]]:
    return {group: {rates[name] for name in names if name in rates} for group, names in layer_groups(model).items()}


def test_the_decay_divides_from_the_head_down(word_tok, optimizers):
    for model, above in ((bert(word_tok), ("pooler", "head")), (gpt(word_tok), ("norm", "head"))):
        finetune(model, word_tok, train=TRAIN, strategy="discriminative", lr=1e-3, warmup=0, steps=1, **QUICK)
        had = of_group(rates_had(model, optimizers[-1]), model)
        assert {group: rates.pop() for group, rates in had.items()} == pytest.approx(
            {"blocks.2": 1e-3 / 2.6, "blocks.1": 1e-3 / 2.6**2, "blocks.0": 1e-3 / 2.6**3, "embed": 1e-3 / 2.6**4} | dict.fromkeys(above, 1e-3), rel=1e-12)
        assert not any(had.values())                                                     # one rate in each group
    other = discriminative(decay=4).rate(model)
    assert strategy("discriminative:4").rate(model)("embed.tokens.weight") == other("embed.tokens.weight") == 4.0**-4


def test_the_four_groups_in_one_line(word_tok, optimizers):
    model = bert(word_tok, n_layers=5)                                                   # of an odd number the lower half is the smaller one
    finetune(model, word_tok, train=TRAIN, strategy=discriminative(rates=FOUR), warmup=0, steps=1, weight_decay=0.3, **QUICK)
    had = {group: rates.pop() for group, rates in of_group(rates_had(model, optimizers[-1]), model).items()}
    assert had == pytest.approx({"embed": 1e-5, "blocks.0": 2e-5, "blocks.1": 2e-5, "blocks.2": 3e-5, "blocks.3": 3e-5, "blocks.4": 3e-5,
                                 "pooler": 5e-5, "head": 5e-5}, rel=1e-12)
    # inside each of the four: matrices decay, biases and norms do not
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizers[-1].param_groups for p in group["params"]}
    assert decay == {name: 0.0 if name.endswith("bias") or "norm" in name else 0.3 for name, _ in model.named_parameters()}
    assert len(optimizers[-1].param_groups) == 8


def test_a_rate_given_to_the_call_is_the_highest_of_the_map(word_tok, optimizers):
    model = bert(word_tok)
    finetune(model, word_tok, train=TRAIN, strategy=discriminative(rates=FOUR), lr=1e-3, warmup=0, steps=1, **QUICK)
    had = rates_had(model, optimizers[-1])
    assert (had["embed.tokens.weight"], had["head.classifier.bias"]) == (pytest.approx(2e-4), pytest.approx(1e-3))


def test_a_map_of_other_addresses(word_tok):
    model = gpt(word_tok)
    own = discriminative(rates={"embed": 0, "blocks.0-1": 1e-4, "blocks.2.attn": 2e-4, "blocks.2.mlp, blocks.2.norm_attn, blocks.2.norm_mlp": 3e-4,
                                "norm": 4e-4, "head": 8e-4})
    own.apply(model)
    groups = param_groups(model, 0.1, own.rate(model))
    names = {id(p): name for name, p in model.named_parameters()}
    had = {names[id(p)]: group["lr_factor"] * 8e-4 for group in groups for p in group["params"]}
    assert not any(name.startswith("embed") for name in had)                             # 0 freezes
    want = {"blocks.1.mlp.up_proj.weight": 1e-4, "blocks.2.attn.v_proj.bias": 2e-4, "blocks.2.norm_mlp.weight": 3e-4, "norm.bias": 4e-4,
            "head.classifier.weight": 8e-4}
    assert {name: had[name] for name in want} == pytest.approx(want)


@pytest.mark.parametrize("rates,message", [
    ({"embed": 1e-5, "blocks.0-1": 2e-5, "head": 5e-5}, r"say nothing of blocks.2; every layer group of the model \(embed, blocks.0-2, pooler, head\) needs one"),
    ({"embed": 1e-5, "blocks": 2e-5}, "say nothing of pooler, head;"),
    ({"embed": 1e-5, "blocks.0.attn": 2e-5, "blocks.1-2": 2e-5, "head": 5e-5}, "say nothing of blocks.0;"),
    (FOUR | {"blocks.1": 1e-5}, "blocks.1.*has two learning rates, as 'upper half' and as 'blocks.1'"),
    (FOUR | {"embd": 1e-5}, "'embd' names nothing in this model; .*did you mean 'embed'"),
    (FOUR | {"embed": -1e-5}, "the learning rate of 'embed' is -1e-05; it is a number above zero"),
])
def test_a_map_that_does_not_fit(word_tok, rates, message):
    with pytest.raises(ValueError, match=message):
        finetune(bert(word_tok), word_tok, train=TRAIN, strategy=discriminative(rates=rates), steps=1, **QUICK)


@pytest.mark.parametrize("make,message", [
    (lambda: discriminative(decay=0), "decay=0; the rate of a rung is .* divided by it: give a number above zero"),
    (lambda: discriminative(rates={"embed": 0, "head": 0}), "train nothing; one at least has to be above zero"),
    (lambda: ulmfit(per_epoch=0), "per_epoch=0; .* give a number above zero"),
    (lambda: ulmfit(cut_frac=1), "cut_frac=1, ratio=32; .* give a fraction between 0 and 1"),
    (lambda: ulmfit(ratio=1), "ratio=1; .* a ratio above 1"),
])
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def equation_3(t: int, T: int, peak: float, cut_frac: float, ratio: float) -> float:
    cut = math.floor(T * cut_frac)
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    return peak * (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize("made,decay,cut_frac,ratio", [("ulmfit", 2.6, 0.1, 32), (ulmfit(decay=2.0, cut_frac=0.2, ratio=7), 2.0, 0.2, 7)], ids=["usual", "other"])
def test_ulmfit_has_the_rates_of_the_paper_at_every_step(word_tok, optimizers, made, decay, cut_frac, ratio):
    model, seen = bert(word_tok), []
    finetune(model, word_tok, train=TRAIN, strategy=made, lr=0.01, epochs=10, batch_size=30, on_step=lambda one: seen.append(rates_had(model, optimizers[-1])), **QUICK)
    depth = {"head": 0, "pooler": 0, "blocks.2": 1, "blocks.1": 2, "blocks.0": 3, "embed": 4}
    assert len(seen) == 20
    for t, had in enumerate(seen):
        for group, rates in of_group(had, model).items():
            assert len(rates) == 1 and abs(rates.pop() - equation_3(t, 20, 0.01, cut_frac, ratio) / decay ** depth[group]) <= 1e-12


def test_groups_thaw_from_the_top_with_fresh_moments(word_tok, optimizers):
    """One an epoch, at two steps each; what is frozen keeps its bits and has no moments; what joins counts its own steps from one."""
    model = bert(word_tok)
    start, joined = {n: p.detach().clone() for n, p in model.named_parameters()}, []
    order = [("pooler", "head"), ("blocks.2",), ("blocks.1",), ("blocks.0",), ("embed",)]

    def watch(record: dict) -> None:
        state = {name: optimizers[-1].state.get(p) for name, p in model.named_parameters()}
        groups = {group: {int(state[name]["step"]) if state[name] else 0 for name in names} for group, names in layer_groups(model).items()}
        joined.append(groups)
        for group, names in layer_groups(model).items():
            if groups[group] == {0}:
                assert all(torch.equal(model.get_parameter(name), start[name]) for name in names)
    finetune(model, word_tok, train=TRAIN, strategy="ulmfit", on_step=watch, batch_size=30, epochs=6, lr=1e-3, **QUICK)
    for step, groups in enumerate(joined):
        assert groups == {group: {max(0, step + 1 - 2 * i)} for i, rung in enumerate(order) for group in rung}, step
    # the key biases have no gradient but rounding noise; everything else is somewhere else now
    assert not [name for name, p in model.named_parameters() if torch.equal(p, start[name]) and "k_proj.bias" not in name]


def test_epochs_that_are_no_whole_number_of_steps(word_tok):
    """With 7 batches in micro-batches of 3 an epoch is 7 / 3 steps, and 7 / (7 / 3) may fall short of 3."""
    model = bert(word_tok)
    for batches in range(1, 40):
        for micro in range(1, 12):
            for epoch in range(5):
                found = thawed(model, epoch * batches / (batches / micro) / micro)
                assert ("embed.tokens.weight" in found, "blocks.1.mlp.up_proj.weight" in found) == (epoch >= 4, epoch >= 2), (batches, micro, epoch)
    assert len(thawed(model, 1.0, per_epoch=4)) == len(list(model.parameters()))
    assert thawed(model, 0.99, 2) == thawed(model, 0.5, 2) != thawed(model, 0.49, 2)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop,save_every", [(3, 2), (4, 3)], ids=["where a group joins", "inside an epoch"])
def test_ulmfit_goes_on_bit_for_bit(word_tok, tmp_path, stop, save_every):
    def run(out, **more):
        return finetune(bert(word_tok), word_tok, train=TRAIN, strategy="ulmfit", out=out, lr=3e-3, epochs=5, batch_size=30, **QUICK, **more)

    def stopping(record: dict) -> None:
        if record["step"] == stop:
            raise Stopped
    whole = run(tmp_path / "whole").model.state_dict()
    with pytest.raises(Stopped):
        run(tmp_path / "broken", on_step=stopping, save_every=save_every)
    steps: list[int] = []
    rest = run(tmp_path / "broken", resume=True, on_step=lambda one: steps.append(one["step"])).model.state_dict()
    assert steps == list(range(stop, 11))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in rest.items())
