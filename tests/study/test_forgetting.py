"""CKA, drift and the rise of a loss against other ways to compute them; runs that forget and runs that cannot."""
import copy

import numpy as np
import pytest
import torch

from minitransfer.objectives import Masked
from minitransfer.study import cka, forgetting
from minitransfer.study.forgetting import OldTask, drift, mean_loss, packed, rise, states
from minitransfer.training import held_out_loss
from minitransfer.transfer import add_lora
from tests.adapt.small import HELD_OUT, TRAIN, bert, rows, tokenizer

GENERAL = [row["text"] for row in rows(80, 5)]
LONG = {"length": 29, "rows": 3}


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture
def general(tok):
    return packed(tok, GENERAL, 29, 3, Masked(tok))


def plain_cka(x, y):
    """By the Gram matrices of the rows, in which it is defined: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    x, y = (one.double().numpy() for one in (x, y))
    H = np.eye(len(x)) - 1 / len(x)
    K, L = (H @ (one @ one.T) @ H for one in (x, y))
    return float((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))


def test_cka_is_that_of_the_gram_matrices():
    x = torch.randn(211, 7) + 3
    y = torch.tanh(x @ torch.randn(7, 5)) + 0.3 * torch.randn(211, 5) - 2
    found = cka(x, y)
    assert found.value == pytest.approx(plain_cka(x, y), abs=1e-5) and 0.05 < found.value < 0.95
    assert found.low < found.value < found.high
    turn, _ = torch.linalg.qr(torch.randn(7, 7))
    assert cka(x, 5 * x @ turn + 1).value == pytest.approx(1, abs=1e-5)
    left_out = [plain_cka(torch.cat([p for j, p in enumerate(x.chunk(10)) if j != i]), torch.cat([p for j, p in enumerate(y.chunk(10)) if j != i])) for i in range(10)]
    assert found.high - found.value == pytest.approx(1.96 * np.sqrt(0.9 * 10 * np.var(left_out)), rel=1e-3)


def test_drift_of_what_moved_and_of_nothing_else(tok):
    before, after = bert(tok, "masked"), bert(tok, "masked")
    with torch.no_grad():
        for p in after.blocks[1].parameters():
            p.mul_(1.1)
    after.set_head("sequence", ["a", "b"])
    found = drift(before, after)
    assert found["blocks.1"] == pytest.approx(0.1, abs=1e-6) and {found[g] for g in ("embed", "blocks.0", "blocks.2")} == {0.0} and "head" not in found


def test_what_lora_adds_to_a_weight_is_drift(tok):
    before = bert(tok, "masked")
    after = copy.deepcopy(before)
    add_lora(after, r=3, alpha=6, targets="q")
    layer = after.blocks[2].attn.q_proj
    with torch.no_grad():
        layer.adapters["default"].B.normal_()
        change = 2 * layer.adapters["default"].B @ layer.adapters["default"].A
        size = torch.cat([p.flatten() for p in before.blocks[2].parameters()]).norm()
    assert drift(before, after) == {"embed": 0, "blocks.0": 0, "blocks.1": 0, "blocks.2": pytest.approx(float(change.norm() / size), rel=1e-5)}


def test_the_rise_is_of_the_same_targets():
    before, after = np.array([[10.0, 4], [30, 10]]), np.array([[12.0, 4], [35, 10]])
    assert rise(before, after).value == pytest.approx(7 / 14) and rise(before, before) == (0, 0, 0)


def test_the_old_head_is_asked_after_the_task_has_put_its_own(tok, general):
    model = bert(tok, "masked")
    old = OldTask(model, general, Masked(tok))
    before = old.losses(model)
    with torch.no_grad():
        assert mean_loss(before) == pytest.approx(held_out_loss(general, Masked(tok))(model.eval())["loss"], abs=1e-6)
    model.set_head("sequence", ["a", "b"]).train()
    assert np.array_equal(old.losses(model), before) and model.training and model.head_name == "sequence"


def test_states_are_those_of_the_tokens(tok, general):
    model = bert(tok, "masked").eval()
    found = states(model, general, 40)
    assert [tuple(one.shape) for one in found] == [(40, 36)] * 4
    batch = general[0]
    out = model(**batch, output_hidden_states=True).hidden_states
    keep = batch["document_ids"] >= 0
    assert torch.allclose(found[2], out[2][keep][:40], atol=1e-6)


@pytest.mark.slow
def test_runs_beside_one_another(tok):
    model = bert(tok, "masked")
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = forgetting(model, tok, train=TRAIN, validation=HELD_OUT, general=GENERAL, runs=("ewc", "replay", "lora"), rates=(1e-12, 3e-2), epochs=2, precision="fp32", **LONG)
    assert [run.name for run in found.runs] == ["ewc", "replay", "lora", "lr 1e-12", "lr 0.03"] and [run.lr for run in found.runs] == [5e-5, 5e-5, 1e-3, 1e-12, 3e-2]
    still, fast = found.runs[-2:]
    assert abs(still.rise.value) < 1e-6 and still.cka[-1].value == pytest.approx(1, abs=1e-5) and max(still.drift.values()) < 1e-6
    assert fast.rise.low > 0 and fast.cka[-1].value < 0.99 and fast.drift["blocks.2"] > 0.05
    assert [one.epoch for one in fast.epochs] == [1, 2] and fast.epochs[-1].loss == pytest.approx(found.before + fast.rise.value, abs=1e-5)
    assert fast.trained > 10 * found.runs[2].trained / 4
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()) and model.head_name == "masked"
    axes = found.draw()
    assert axes.shape == (2, 2) and len(axes[0, 0].lines) == 5 and axes[0, 0].lines[4].get_ydata()[0] == pytest.approx(found.before)
    assert "accuracy" in str(found) and found.to_dict()["runs"][4]["name"] == "lr 0.03"


def test_refused(tok):
    given = dict(train=TRAIN, validation=HELD_OUT, general=GENERAL, **LONG)
    with pytest.raises(ValueError, match=r'forgetting of a model with head=.*; it is asked of the head that a body was pretrained with: load it with head="masked"'):
        forgetting(bert(tok), tok, **given)
    with pytest.raises(KeyError, match="no run 'fisher'; there are full, lora"):
        forgetting(bert(tok, "masked"), tok, runs=("fisher",), **given)
    with pytest.raises(ValueError, match="no runs and no rates"):
        forgetting(bert(tok, "masked"), tok, runs=(), **given)
    with pytest.raises(ValueError, match="general text that fills 1 rows of 29 tokens"):
        forgetting(bert(tok, "masked"), tok, **{**given, "general": GENERAL[:2]})
