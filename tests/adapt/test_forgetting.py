"""Penalties, the Fisher information and replay against their formulas."""
import copy

import pytest
import torch

import minitransfer as mt
from minitransfer.nn.model import Model
from minitransfer.objectives import Causal
from minitransfer.tasks.base import supervised
from minitransfer.training import train
from minitransfer.training.settings import TrainSettings
from minitransfer.training.tune import tune
from minitransfer.transfer import full, lora, mixout
from minitransfer.transfer.forgetting import check_keep, ewc, fisher, l2sp, penalised, seen, squared_distance
from minitransfer.transfer.replay import answering_with, copy_of_head, replay
from tests.unit.tiny import bert, gpt2, moved

GENERATOR = torch.Generator()


def classifier(seed: int = 0) -> mt.Model:
    return moved(mt.Model(bert(dropout=0.0), "sequence", labels=["a", "b", "c"], seed=seed)).eval()


def rows(n: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(101, (n, 7), generator=generator), "labels": torch.randint(3, (n,), generator=generator)}


class Same:
    """One batch for ever."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, k):
        return self.batch


def gradients(model, objective, batch):
    total, n = objective(model, batch, GENERATOR)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(total / n, [model.get_parameter(name) for name in names], allow_unused=True)
    return {name: torch.zeros_like(model.get_parameter(name)) if g is None else g for name, g in zip(names, found, strict=True)}


def shaken(model):
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return model


def test_the_gradient_of_l2sp_is_the_distance_times_its_strength():
    """dL/dw = dL_task/dw + alpha (w - w0), and + beta w for the new head, with a mean over 5 targets."""
    model, batch = classifier(), rows(5)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = l2sp(alpha=0.7, beta=0.3)(model, supervised)
    shaken(model)
    plain, pulled = gradients(model, supervised, batch), gradients(model, objective, batch)
    for name, p in model.named_parameters():
        pull = 0.3 * p if name.startswith(("head.", "pooler.")) else 0.7 * (p - start[name])
        torch.testing.assert_close(pulled[name], plain[name] + pull.detach(), atol=2e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_the_fisher_is_the_mean_of_squared_gradients_of_single_texts():
    model, batch = classifier(), rows(5)
    found = fisher(model.train(), Same(batch), supervised, n=7)
    assert model.training
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in (0, 1, 2, 3, 4, 0, 1):
        logits = model.eval()(batch["input_ids"][i:i + 1]).logits
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, batch["labels"][i:i + 1]).backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad.square() / 7
    for name, f in found.items():
        torch.testing.assert_close(f, expected[name], atol=1e-7, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_the_gradient_of_ewc_weighs_each_weight():
    model, batch = classifier(), rows(5)
    importance = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(3)) for name, p in model.named_parameters() if name.startswith("blocks.1")}
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = ewc(importance, strength=1.3)(model, supervised)
    shaken(model)
    plain, pulled = gradients(model, supervised, batch), gradients(model, objective, batch)
    for name, p in model.named_parameters():
        pull = 1.3 * importance[name] * (p.detach() - start[name]) if name in importance else 0.0
        torch.testing.assert_close(pulled[name], plain[name] + pull, atol=2e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_replay_adds_the_old_mean_loss_times_its_weight():
    """Through the old head, on the same body: gradients of both means, in the proportion given."""
    config = bert(dropout=0.0)
    model = moved(mt.Model(config, "masked")).eval()
    old_head = copy_of_head(model)
    model.set_head("sequence", labels=["a", "b", "c"]).eval()
    batch, old = rows(5), {"input_ids": torch.randint(101, (3, 11), generator=torch.Generator().manual_seed(5))}
    labels = old["input_ids"].masked_fill(torch.arange(33).view(3, 11) % 4 != 0, -100)

    def hidden(model, given, generator):
        return model.head.loss(model.body(given["input_ids"]), labels)

    plain, mixed = gradients(model, supervised, batch), gradients(model, replay(Same(old), hidden, 0.6, old_head)(model, supervised), batch)
    with answering_with(model, old_head):
        past = gradients(model, hidden, old)
    for name in plain:
        torch.testing.assert_close(mixed[name], plain[name] + 0.6 * past.get(name, torch.zeros(())), atol=2e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert model.head_name == "sequence" and model.head is not old_head
    assert past["embed.tokens.weight"].ne(0).any() and not any(p.requires_grad for p in old_head.parameters())
    assert old_head.tokens[0] is model.embed.tokens


def test_micro_batches_are_pulled_as_one_batch():
    """The penalty enters a sum of n targets n times, so halves add up to the whole."""
    model, batch = classifier(), rows(6)
    objective = l2sp(0.7, 0.3)(model, supervised)
    shaken(model)
    whole, n = objective(model, batch, GENERATOR)
    halves = [objective(model, {name: t[part] for name, t in batch.items()}, GENERATOR) for part in (slice(0, 2), slice(2, 6))]
    assert n == 6 and sum(total.item() for total, _ in halves) == pytest.approx(whole.item(), rel=1e-5)


def test_frozen_weights_are_not_pulled():
    model = classifier()
    start = {name: p.detach() - 1.0 for name, p in model.named_parameters()}
    model.requires_grad_(False)
    assert squared_distance(seen(model), start) == 0.0
    model.blocks[1].attn.q_proj.bias.requires_grad_(True)
    assert squared_distance(seen(model), start).item() == model.blocks[1].attn.q_proj.bias.numel()


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 1e4], ids=["free", "held"])
def test_a_strong_pull_holds_the_body_in_a_run(strength):
    """Old knowledge: the causal loss on one text. Trained on another it is lost, unless the Fisher of the old one holds the weights."""
    old, new = ({"input_ids": torch.randint(101, (4, 13), generator=torch.Generator().manual_seed(s))} for s in (1, 2))
    model = mt.Model(gpt2(dropout=0.0), "causal")
    settings = {"lr": 5e-3, "schedule": "constant", "warmup": 0, "precision": "fp32", "progress": False, "weight_decay": 0.0}

    def loss(batch):
        with torch.no_grad():
            total, n = Causal()(model, batch, GENERATOR)
        return total.item() / int(n)

    train(model, Same(old), Causal(), TrainSettings(steps=60, **settings))
    knew = loss(old)
    objective = ewc(fisher(model, Same(old), Causal(), n=4), strength)(model, Causal())
    train(model, Same(new), objective, TrainSettings(steps=30, **settings))
    assert knew < 1.0
    assert loss(new) < 1.0
    assert (loss(old) > 4.0, loss(old) < 2.0) == (strength == 0.0, strength > 0.0)      # 4.43 and 1.58, of 4.62 for guessing


@pytest.mark.slow
@pytest.mark.parametrize("strategy, lr", [(full(), 5e-3), (lora(r=8), 2e-2)], ids=["full", "lora"])
def test_every_pull_keeps_some_of_the_old_text_beside_every_strategy(strategy, lr):
    """One text learned, then another: without a pull the first is lost to 4.2 (full) and 6.1 (lora) nats, of 4.62 for guessing."""
    old, new = ({"input_ids": torch.randint(101, (4, 13), generator=torch.Generator().manual_seed(s))} for s in (1, 2))
    settings = {"schedule": "constant", "warmup": 0, "precision": "fp32", "progress": False, "weight_decay": 0.0}
    base = mt.Model(gpt2(dropout=0.0), "causal")
    train(base, Same(old), Causal(), TrainSettings(steps=60, lr=5e-3, **settings))
    pulls = {"none": None, "l2sp": l2sp(alpha=0.3, beta=0.0), "ewc": ewc(fisher(base, Same(old), Causal(), n=4), 3e3), "replay": replay(Same(old), Causal(), share=0.5),
             "mixout": mixout(0.8)}
    lost, learned = {}, {}
    for name, keep in pulls.items():
        model = copy.deepcopy(base)
        tune(model, Same(new), Causal(), TrainSettings(steps=20, lr=lr, **settings), strategy, beside=Model.save_pretrained, data={}, keep=keep)
        with torch.no_grad():
            lost[name], learned[name] = (float(total) / int(n) for total, n in (Causal()(model, text, GENERATOR) for text in (old, new)))
    assert all(value < lost["none"] - 0.8 for name, value in lost.items() if name != "none"), lost
    assert all(value < 6.9 - 2 for value in learned.values()), learned           # 6.9 before


def test_refused():
    model = classifier()
    with pytest.raises(ValueError, match=r"alpha=-1; it is the strength of a pull, at least 0"):
        l2sp(alpha=-1)
    with pytest.raises(ValueError, match=r"n=0; the information is a mean over texts"):
        fisher(model, Same(rows(2)), supervised, n=0)
    with pytest.raises(ValueError, match="an importance of 1 parameters, none of them pretrained ones"):
        ewc({"encoder.weight": torch.ones(3)}, 1.0)(model, supervised)
    for share in (1, -0.1):
        with pytest.raises(ValueError, match=f"share={share}; it is the part of the rows that are old"):
            replay(Same(rows(2)), supervised, share=share)
    with pytest.raises(ValueError, match='copy_of_head of a model with head="none"'):
        copy_of_head(mt.Model(bert(), "none"))


def test_a_pull_that_is_none_is_refused_before_anything_is_read():
    said = "keep={}; it is one of the pulls of minitransfer.transfer, called with its settings"
    for keep, name in (("l2sp", "'l2sp'"), ([], r"\[\]"), (ewc, "ewc"), (replay, "replay"), (mixout, "mixout")):
        with pytest.raises(ValueError, match=said.format(name)):
            check_keep(keep)
    check_keep(None), check_keep(l2sp()), check_keep(mixout())
    tok = mt.Tokenizer.from_pretrained("mini-bert")
    for start in (lambda: mt.finetune(classifier(), tok, train="no such file", keep=l2sp), lambda: mt.adapt(classifier(), tok, "no such file", keep=l2sp)):
        with pytest.raises(ValueError, match=said.format("l2sp")):
            start()


def test_texts_and_rows_are_no_batches():
    for given in ("a text", ["a text", "another"], [{"text": "a text"}], []):
        for ask in (lambda given=given: replay(given, supervised), lambda given=given: fisher(classifier(), given, supervised, 1)):
            with pytest.raises(ValueError, match=rf"batches is a {type(given).__name__}, and no batches of token ids"):
                ask()


def test_replay_of_raw_text_asks_for_the_head_that_reads_it():
    old = Same({"input_ids": rows(3)["input_ids"]})
    with pytest.raises(ValueError, match='replay of raw text, and a model with head="sequence"; the old objective asks a head over the vocabulary'):
        replay(old, Causal())(classifier(), supervised)
    assert callable(replay(old, Causal())(mt.Model(gpt2(), "causal"), supervised))


def test_under_lora_ewc_weighs_what_each_weight_was_moved():
    """dP/dB = strength s (F * s B A) A^T: the base is frozen, its change is what counts as moved."""
    model = classifier()
    importance = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(3)) for name, p in model.named_parameters() if name.endswith("q_proj.weight")}
    mt.add_lora(model, r=3, alpha=7, targets="q,v")
    objective = ewc(importance, strength=1.3)(model, supervised)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    plain, pulled = gradients(model, supervised, rows(5)), gradients(model, objective, rows(5))
    for place in ("blocks.0.attn.q_proj", "blocks.1.attn.q_proj"):
        A, B = (model.get_parameter(f"{place}.lora_{x}").detach() for x in "AB")
        slope = 1.3 * importance[f"{place}.weight"] * (7 / 3 * B @ A) * (7 / 3)
        torch.testing.assert_close(pulled[f"{place}.lora_B"], plain[f"{place}.lora_B"] + slope @ A.T, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(pulled[f"{place}.lora_A"], plain[f"{place}.lora_A"] + B.T @ slope, atol=2e-6, rtol=1e-5)
        assert slope.abs().max() > 1e-3
    assert all(torch.equal(pulled[name], plain[name]) for name in plain if "v_proj" in name)


def test_a_share_of_the_rows_is_old_exactly_in_every_batch():
    """8 rows of the task with 2 old ones: one in five; their losses count by the rows, weight 0.25."""
    model, old, seen_rows = classifier(), rows(3, seed=9), []

    def asked(model, batch, generator):
        seen_rows.append(batch["labels"].tolist())
        return supervised(model, batch, generator)

    objective = replay(Same(old), asked, share=0.2)(model, supervised)
    for seed in range(20):
        seen_rows.clear()
        total, n = objective(model, rows(8), torch.Generator().manual_seed(seed))
        assert sum(map(len, seen_rows)) == 2 and n == 8
    assert len({str(objective(model, rows(8), torch.Generator().manual_seed(seed))[0].item()) for seed in range(9)}) > 1       # other rows each time
    seen_rows.clear()
    total, n = replay(Same(old), asked, share=0.5)(model, supervised)(model, rows(6), GENERATOR.manual_seed(1))
    assert sorted(map(len, seen_rows)) == [3, 3] and sorted(seen_rows[0]) == sorted(seen_rows[1]) == sorted(old["labels"].tolist())
    expected = supervised(model, rows(6), GENERATOR)[0] + supervised(model, old, GENERATOR)[0] * 6 / 3
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_share_that_is_no_whole_number_of_rows_is_right_on_average():
    """5 rows with 0.3 / 0.7 * 5 = 15 / 7 old ones: 2 or 3, and over many batches the mean; so is the weight of the old loss."""
    counts, losses, model = [], [], classifier()

    def asked(model, batch, generator):
        counts.append(len(batch["labels"]))
        return torch.tensor(2.0) * counts[-1], counts[-1]                        # a mean of 2 whichever rows they are

    objective = replay(Same(rows(7)), asked, share=0.3)(model, lambda model, batch, generator: (torch.tensor(0.0), 5))
    generator = torch.Generator().manual_seed(0)
    losses = [objective(model, rows(5), generator)[0].item() for _ in range(4000)]
    assert set(counts) == {2, 3}
    assert sum(counts) / len(counts) == pytest.approx(15 / 7, abs=0.02)          # 0.0055 is one standard deviation
    assert sum(losses) / len(losses) == pytest.approx(5 * 2 * 3 / 7, rel=0.01)
    assert replay(Same(rows(7)), asked, share=0)(model, supervised)(model, rows(5), generator)[0].item() == supervised(model, rows(5), generator)[0].item()


def test_a_penalty_under_autocast_stays_in_float32():
    model = classifier()
    objective = penalised(supervised, lambda m: squared_distance(seen(m), {"norm": torch.zeros(())} | {"blocks.0.attn.q_proj.weight": torch.zeros(())}))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = objective(model, rows(3), GENERATOR)
    assert total.dtype == torch.float32
