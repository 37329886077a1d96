"""A plan is what the optimizer of the run then has: rates and frozen states, at every step."""
import numpy as np
import pytest
import torch

from minitransfer.tasks import finetune
from minitransfer.transfer import Strategy, discriminative, full, layer_groups, plan, ulmfit
from minitransfer.transfer.plan import Plan

from .small import QUICK, TRAIN, bert, gpt

TWO_RATES = Strategy("two rates", trains=full().trains, rate=lambda model: lambda name: 0.5 if "attn" in name else 2.0)
FROZEN_BELOW = discriminative(rates={"embed": 0, "lower half": 2e-5, "upper half": 3e-5, "head": 5e-5})
CASES = {"full": ({}, "full"), "head": ({"schedule": "cosine", "min_lr": 0.1}, "head"), "last:2": ({"warmup": 5}, "last:2"), "bitfit": ({}, "bitfit"),
         "lora": ({"lr": 3e-3}, "lora"), "discriminative": ({}, "discriminative"), "map": ({}, FROZEN_BELOW), "ulmfit": ({"lr": 1e-2}, "ulmfit"),
         "ulmfit twice": ({"micro_batches": 2}, ulmfit(per_epoch=2)), "two rates": ({}, TWO_RATES)}


@pytest.mark.parametrize("build", [bert, pytest.param(gpt, marks=pytest.mark.slow)], ids=["bert", "gpt2"])
@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_what_the_optimizer_had(word_tok, optimizers, build, case):
    settings, strategy = CASES[case]
    micro = settings.get("micro_batches", 1)
    model, rates, trained = build(word_tok), [], []
    planned = plan(model, strategy, steps=12 // micro, epochs=3, **settings)

    def watch(record: dict) -> None:
        names = {id(p): name for name, p in model.named_parameters()}
        rates.append({names[id(p)]: group["lr"] for group in optimizers[-1].param_groups for p in group["params"]})
        trained.append({names[id(p)] for p, state in optimizers[-1].state.items() if state})      # nothing is frozen again here
    finetune(model, word_tok, train=TRAIN, strategy=strategy, epochs=3, batch_size=15, on_step=watch, **(QUICK | settings))
    assert len(rates) == planned.steps == 12 // micro
    everything = [name for row in planned.rows for name in row.names]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters())
    for step in range(planned.steps):
        assert {name for row in planned.rows if not np.isnan(row.rates[step]) for name in row.names} == trained[step]
        for row, rate in zip(planned.rows, planned.rates[:, step], strict=True):
            assert np.isnan(rate) or all(rates[step][name] == rate for name in row.names), (row.group, step)
    assert (planned.frozen == np.isnan(planned.rates)).all() and planned.rates.shape == (len(planned.rows), planned.steps)


def test_the_model_stays_as_it_is(word_tok):
    model = bert(word_tok)
    model.embed.requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    plan(model, "lora", steps=3)
    plan(model, "ulmfit", steps=3)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[n].requires_grad == trains and torch.equal(after[n], p) for n, (trains, p) in before.items())


def test_it_prints_as_a_table(word_tok):
    planned = plan(bert(word_tok), "ulmfit", steps=30, epochs=3, lr=1e-2)
    *table, note = str(planned).splitlines()
    assert note == "epochs assumed: 3. embed, blocks.0 never trained: with ulmfit all have thawed after 4 epochs, and this run has 3: give epochs=5, " \
                   "or a strategy that thaws more with each, as ulmfit(per_epoch=...) does"
    assert plan(bert(word_tok), ulmfit(per_epoch=2), steps=30, epochs=3).note == "epochs assumed: 3."
    lines = [line.split() for line in table]
    assert [line[0] for line in lines] == ["group", *layer_groups(bert(word_tok))]
    shown = planned.shown_steps()
    assert {0, 3, 10, 20, 29} <= set(shown) and len(shown) == 7                          # first, peak, two epochs' ends, last, and two between
    assert lines[0] == ["group", "parameters", *(word for step in shown for word in ("step", str(step + 1)))]
    row = lines[4]
    assert row[:3] == ["blocks.2", f"{planned.rows[3].parameters:,}", "frozen"] and row[2:].count("frozen") == sum(step < 10 for step in shown)
    assert row[2:][shown.index(20)] == f"{planned.rates[3, 20]:.2e}" and set(lines[1][2:]) == {"frozen"}
    assert len({len(line) for line in table}) == 1 and repr(planned) == str(planned)
    html = planned._repr_html_()
    assert html.count("<tr>") == 7 and html.count("<td>frozen</td>") == sum(line.count("frozen") for line in lines)
    parts = plan(bert(word_tok), "bitfit", steps=1)
    assert [(row.group, row.parameters) for row in parts.rows if row.group == "embed"] == [("embed", bert(word_tok).embed.tokens.weight.numel() + 29 * 36 + 3 * 36), ("embed", 36)]
    assert parts.shown_steps() == [0]
    named = [line.split("  ")[0] for line in str(plan(bert(word_tok), "lora", steps=1)).splitlines()]
    assert named == ["group", "embed", *(f"blocks.{i}: {part}" for i in range(3) for part in ("bias, weight", "lora_A, lora_B")), "pooler", "head"]


def test_what_never_thaws_is_not_counted_and_is_named(word_tok):
    """Two epochs of one group each: the head's rung and the highest block."""
    model = bert(word_tok)
    was = {name: p.clone() for name, p in model.named_parameters()}
    result = finetune(model, word_tok, train=TRAIN, strategy="ulmfit", epochs=2, batch_size=15, **QUICK)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, was[name])}
    assert {name.partition(".")[0] for name in moved} == {"blocks", "pooler", "head"} and not any("blocks.0" in name or "blocks.1" in name for name in moved)
    assert result.report.trainable == sum(p.numel() for name, p in model.named_parameters() if name.startswith(("blocks.2", "pooler", "head")))
    assert str(result).endswith("\nembed, blocks.0-1 never trained: with ulmfit all have thawed after 4 epochs, and this run has 2: give epochs=5, "
                                "or a strategy that thaws more with each, as ulmfit(per_epoch=...) does")
    assert finetune(bert(word_tok), word_tok, train=TRAIN, strategy="full", steps=1, **QUICK).report.note == ""


def test_it_is_drawn(word_tok, tmp_path):
    planned: Plan = plan(gpt(word_tok), "ulmfit", steps=20, epochs=4, lr=1e-2)
    axes = planned.draw()
    assert [line.get_label() for line in axes.lines] == ["embed (frozen)", "blocks.0", "blocks.1", "blocks.2", "norm, head"] and axes.get_title() == "strategy ulmfit"
    assert [row.group for row in planned.rows[-2:]] == ["norm", "head"]
    for line, rates in zip(axes.lines, planned.rates[:-1], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), rates)
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 21))
    axes.figure.savefig(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 5000
    assert planned.draw(axes) is axes and len(axes.lines) == 10
    assert [line.get_label() for line in plan(gpt(word_tok), "lora", steps=3).draw().lines] == ["embed, blocks.0-2, norm (frozen)", "blocks.0-2, head"]


def test_without_matplotlib(word_tok, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"drawn with matplotlib, which is not installed; .* pip install matplotlib"):
        plan(bert(word_tok), steps=2).draw()


@pytest.mark.parametrize("given,message", [
    ({"steps": 0}, "steps=0, epochs=3; a plan is of a run that has both"), ({"steps": 5, "epochs": 0}, "steps=5, epochs=0; a plan"),
    ({"strategy": "ulmfti"}, r"no strategy is called 'ulmfti' \(did you mean 'ulmfit'\?\)"), ({"strategy": "last:9"}, "on a model of 3 blocks")])
def test_a_plan_of_nothing(word_tok, given, message):
    with pytest.raises(ValueError, match=message):
        plan(bert(word_tok), **given)
