"""CORAL and adversarial alignment: formulas against numpy, gradients exactly, and a planted shift that they take away."""
import math

import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer.objectives.alignment import Discriminator, coral_loss, reversal_at, reverse_gradient, vectors
from minitransfer.tasks import finetune
from minitransfer.tasks.base import supervised
from minitransfer.text import TextBatches
from minitransfer.training import param_groups, train
from minitransfer.training.settings import TrainSettings
from minitransfer.transfer import adversarial, coral, plan, strategy
from minitransfer.transfer.forgetting import pretrained
from tests.adapt import small
from tests.unit import tiny

GENERATOR = torch.Generator()


@pytest.fixture(scope="module")
def tok():
    return small.tokenizer()


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ torch.randn(d, d, generator=torch.Generator().manual_seed(seed + 50),
                                                                                                             dtype=torch.float64) + seed


def test_coral_is_the_formula():
    source, target = normal(13, 7, 1).requires_grad_(True), normal(11, 7, 2).requires_grad_(True)
    a, b = (np.cov(x.detach().numpy(), rowvar=False) for x in (source, target))
    assert coral_loss(source, target).item() == pytest.approx(((a - b)**2).sum() / (4 * 49), rel=1e-12)
    assert torch.autograd.gradcheck(coral_loss, (source, target))
    assert coral_loss(source, target + 5.0).item() == pytest.approx(coral_loss(source, target).item(), rel=1e-10)      # means do not count
    assert coral_loss(source, source).item() == 0.0 == coral_loss(source, target[:1]).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_reversed_and_nothing_else(dtype):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_(True)
    g = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    y = reverse_gradient(x, 0.375)
    assert torch.equal(y, x)
    y.backward(g)
    assert torch.equal(x.grad, -0.375 * g)


def test_the_schedule():
    assert reversal_at(0.0) == 0.0 and reversal_at(0.1) == pytest.approx(math.tanh(0.5), rel=1e-12) and reversal_at(1.0) == pytest.approx(math.tanh(5), rel=1e-12)


def test_the_discriminators_loss():
    judge = Discriminator(7, 5).double()
    source, target = normal(13, 7, 1), normal(11, 7, 2)
    p = [torch.sigmoid(torch.relu(x @ judge.hidden.weight.T + judge.hidden.bias) @ judge.out.weight[0] + judge.out.bias) for x in (source, target)]
    assert judge.loss(source, target).item() == pytest.approx((-(1 - p[0]).log().mean() - p[1].log().mean()).item(), rel=1e-10)


@pytest.mark.parametrize("config", [tiny.bert(dropout=0.0), tiny.gpt2(dropout=0.0)], ids=["encoder", "decoder"])
def test_vectors_are_what_the_head_reads(config):
    model = tiny.moved(mt.Model(config, "sequence", labels=["a", "b", "c"]))
    ids = torch.randint(101, (3, 7), generator=torch.Generator().manual_seed(1))
    keep = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5])
    read = vectors(model, model.body(ids, keep))
    assert read.shape == (3, 28)
    torch.testing.assert_close(model.head.classifier(read), model(ids, keep).logits, atol=0, rtol=0)


def batch_of(n: int, T: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(101, (n, T), generator=generator), "labels": torch.randint(3, (n,), generator=generator)}


class Same:
    """One batch for ever."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, k):
        return self.batch


def both_sides():
    model = tiny.moved(mt.Model(tiny.bert(dropout=0.0), "sequence", labels=["a", "b", "c"]))
    return model, batch_of(5, 11, 1), batch_of(7, 13, 2)


def gradients(model, total):
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for name, g, p in zip(names, found, model.parameters(), strict=True)}


def test_coral_enters_as_a_mean_of_the_targets():
    model, here, there = both_sides()
    total, n = coral(Same(there), weight=0.7).objective(model, supervised)(model, here, GENERATOR)
    states = [vectors(model, model.body(one["input_ids"])) for one in (here, there)]
    plain, _ = supervised(model, here, GENERATOR)
    expected = plain + 5 * 0.7 * coral_loss(*states)
    assert n == 5 and total.item() == pytest.approx(expected.item(), rel=1e-6) != plain.item()
    expected_gradients = gradients(model, expected)
    for name, g in gradients(model, total).items():
        torch.testing.assert_close(g, expected_gradients[name], atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("progress", [0.0, 0.2])
def test_the_body_climbs_what_the_discriminator_descends(progress):
    """d/dbody = dL_task - strength lambda_p dL_domain; d/ddiscriminator = + dL_domain, whatever lambda is."""
    model, here, there = both_sides()
    way = adversarial(Same(there), strength=0.6, hidden=19)
    way.apply(model, seed=3)
    tiny.moved(model.discriminator)
    model.progress = progress
    total, n = way.objective(model, supervised)(model, here, GENERATOR)
    domain = gradients(model, model.discriminator.loss(*(vectors(model, model.body(one["input_ids"])) for one in (here, there))))
    plain = gradients(model, supervised(model, here, GENERATOR)[0])
    lam = 0.6 * (2 / (1 + math.exp(-10 * progress)) - 1)
    for name, g in gradients(model, total).items():
        factor = 1.0 if name.startswith("discriminator.") else -lam
        torch.testing.assert_close(g, plain[name] + n * factor * domain[name], atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert domain["blocks.0.attn.q_proj.weight"].abs().max() > 1e-5 < domain["discriminator.hidden.weight"].abs().max()


def marked(model, n: int, seed: int, mark: int) -> dict[str, torch.Tensor]:
    """Texts whose label is in their fourth token. The domain is a mark where the head reads."""
    batch = batch_of(n, 7, seed)
    batch["input_ids"][:, -1 if model.config.causal else 0] = mark
    return batch | {"labels": batch["input_ids"][:, 3] % 3}


@torch.no_grad()
def apart(model) -> tuple[float, float]:
    """On new texts: CORAL's distance, and how many radii of a domain lie between the domains' means."""
    s, t = (vectors(model, model.body(marked(model, 200, seed, mark)["input_ids"])) for seed, mark in ((3, 99), (4, 100)))
    radius = torch.cat([s - s.mean(0), t - t.mean(0)]).norm(dim=-1).mean()
    return coral_loss(s, t).item(), ((s.mean(0) - t.mean(0)).norm() / radius).item()


@pytest.mark.slow
@pytest.mark.parametrize("config", [tiny.bert(dropout=0.0, n_layers=1), tiny.gpt2(dropout=0.0, n_layers=1)], ids=["encoder", "decoder"])
def test_a_planted_shift_shrinks(config):
    def tuned(make, lr):
        model = tiny.moved(mt.Model(config, "sequence", labels=["a", "b", "c"]))
        way = make(Same(marked(model, 48, 2, 100)))
        way.apply(model)
        settings = TrainSettings(steps=60, lr=lr, beta1=0.0, warmup=0, precision="fp32", progress=False)
        with way.during(model, ()):
            train(model, Same(marked(model, 48, 1, 99)), way.objective(model, supervised), settings, groups=param_groups(model, 0.0, way.rate(model)))
        return apart(model)

    # encoder, decoder: 0.0112 -> 0.0002, 0.0263 -> 0.0015
    full, near = (tuned(make, 1e-3) for make in (lambda target: strategy("full"), lambda target: coral(target, weight=100.0)))
    assert near[0] < full[0] / 5
    # 9.29 -> 3.64, 1.04 -> 0.44
    full, fooled = (tuned(make, 3e-4) for make in (lambda target: strategy("full"), adversarial))
    assert fooled[1] < full[1] / 2


@pytest.mark.parametrize("inner", ["full", "lora", "ulmfit", "discriminative", "last:1", "bitfit"])
def test_around_any_strategy(tok, inner):
    """The same rates and phases as without; the discriminator trains all the time."""
    model, target = small.bert(tok), TextBatches(small.rows(40, 5), tok, batch_size=12)
    alone, around = (plan(model, one, steps=12) for one in (inner, adversarial(target, inner, rate=4.0)))
    judge, others = [row for row in around.rows if row.group == "discriminator"], [row for row in around.rows if row.group != "discriminator"]
    assert len(judge) == 1 and not np.isnan(judge[0].rates).any() and around.strategy == f"{strategy(inner).name} + adversarial"
    assert [(row.group, row.names) for row in others] == [(row.group, row.names) for row in alone.rows]
    assert all(np.array_equal(a.rates, b.rates, equal_nan=True) for a, b in zip(others, alone.rows, strict=True))
    assert not hasattr(model, "discriminator")


def test_a_run_leaves_a_model_like_any_other_and_goes_on_exactly(tok, tmp_path):
    target = TextBatches(small.rows(40, 5), tok, batch_size=12)
    arguments = {"train": small.TRAIN, "validation": small.HELD_OUT, "strategy": adversarial(target), "lr": 1e-3, "batch_size": 15, "epochs": 2, "save_every": 3, **small.QUICK}
    models = [small.bert(tok, dropout=0.1) for _ in range(3)]
    whole = finetune(models[0], tok, out=tmp_path / "whole", **arguments)
    assert whole.report.rows[-2].group == "discriminator" and whole.report.rows[-2].trainable == 36 * 128 + 128 + 128 + 1
    assert not hasattr(models[0], "discriminator")
    again = mt.Model.from_pretrained(tmp_path / "whole" / "model")
    assert all(torch.equal(t, models[0].state_dict()[name]) for name, t in again.state_dict().items()) and again.state_dict().keys() == models[0].state_dict().keys()

    class Killed(Exception):
        pass

    def kill(record):
        if record["step"] == 5:
            raise Killed
    with pytest.raises(Killed):
        finetune(models[1], tok, out=tmp_path / "killed", on_step=kill, **arguments)
    assert not hasattr(models[1], "discriminator")
    finetune(models[2], tok, out=tmp_path / "killed", resume=True, **arguments)
    assert all(torch.equal(t, models[0].state_dict()[name]) for name, t in models[2].state_dict().items())


def test_the_discriminator_is_new_and_a_language_model_is_refused(tok):
    model, target = small.bert(tok), TextBatches(small.rows(40, 5), tok, batch_size=12)
    adversarial(target).apply(model)
    assert any(name.startswith("discriminator.") for name, _ in model.named_parameters()) and not [name for name in pretrained(model) if "discriminator" in name]
    with pytest.raises(ValueError, match="coral of a model with head 'masked', whose language goes on; domains are aligned in what a task's head reads: use it with finetune"):
        mt.adapt(small.bert(tok, "masked"), tok, [row["text"] for row in small.TRAIN], strategy=coral(target), length=24, steps=1, **small.QUICK)


def test_text_batches_have_no_labels(tok):
    rows = small.rows(23, 6)
    batches = TextBatches(rows, tok, batch_size=5)
    assert len(batches) == 5 and all(batch.keys() == {"input_ids", "attention_mask", "token_type_ids"} for batch in batches)
    read = sorted(tuple(ids[keep.bool()].tolist()) for batch in batches for ids, keep in zip(batch["input_ids"], batch["attention_mask"], strict=True))
    assert read == sorted(tuple(tok.encode(row["text"])) for row in rows)


def test_refused(tok):
    target = TextBatches(small.rows(23, 6), tok)
    with pytest.raises(ValueError, match="weight=-1; it is the strength of a pull, at least 0"):
        coral(target, weight=-1)
    with pytest.raises(ValueError, match=r"strength=0, hidden=128, rate=3.0; each has to be above zero"):
        adversarial(target, strength=0)
    for way, name in ((coral(target, "head"), "coral"), (adversarial(target, "head"), "adversarial")):
        model = small.gpt(tok)
        with pytest.raises(ValueError, match=f"{name} around strategy 'head', which trains nothing below the head"):
            finetune(model, tok, train=small.TRAIN, strategy=way, **small.QUICK)
        assert not hasattr(model, "discriminator")
    for way in (coral, adversarial):
        with pytest.raises(ValueError, match="target is a list, and no batches of token ids"):
            way(small.rows(23, 6))
    with pytest.raises(ValueError, match="no strategy is called 'lorra'"):
        coral(target, "lorra")
