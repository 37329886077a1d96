"""Recurrent bodies under everything that adapts a model: freezing, strategies, finetune, predict, features; ULMFiT from raw text to a classifier."""
import pytest
import torch
from torch import nn

import minitransfer as mt
from minitransfer.nn.heads import BodyOutput
from minitransfer.nn.recurrent_heads import ConcatHead
from minitransfer.tasks import finetune, predict
from minitransfer.transfer import ScalarMix, extract_features, plan, strategy

from .small import HELD_OUT, QUICK, TRAIN, rows

TEXTS = [row["text"] for row in TRAIN]
TOWERS = {"both_ways": True, "causal": False, "projected": True, "residual": True, "n_layers": 2}


@pytest.fixture(scope="module")
def tok():
    return mt.Tokenizer.train(TEXTS, kind="byte_bpe", vocab_size=340, max_len=60, min_count=1)


def body(tok, **changes) -> mt.RecurrentModel:
    sizes = {"vocab_size": tok.vocab_size, "d_model": 16, "n_layers": 2, "d_hidden": 24}
    return mt.RecurrentModel(mt.RecurrentConfig(**(sizes | changes)), head="causal+back" if "both_ways" in changes else "causal", seed=1)


def test_concat_pooling_is_the_last_the_largest_and_the_mean():
    head = ConcatHead(mt.RecurrentConfig(11, 4, 1), 2)
    x = torch.randn(3, 5, 4)
    keep = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    read = head.reads(BodyOutput(x, keep))
    for b in range(3):
        text = x[b, keep[b]]
        assert torch.allclose(read[b], torch.cat([text[-1], text.max(0).values, text.mean(0)]))
    hidden = torch.relu(nn.functional.layer_norm(read, (12,), head.norm_read.weight, head.norm_read.bias, 1e-12) @ head.hidden.weight.T + head.hidden.bias)
    normed = nn.functional.layer_norm(hidden, (50,), head.norm_hidden.weight, head.norm_hidden.bias, 1e-12)
    assert torch.allclose(head.eval()(BodyOutput(x, keep)), normed @ head.classifier.weight.T + head.classifier.bias, atol=1e-5)


def test_parts_rates_and_thawing(tok):
    model = body(tok).set_head("sequence", ["neg", "pos"])
    assert list(mt.layer_groups(model)) == ["embed", "blocks.0", "blocks.1", "head"] and [row[1] for row in mt.explain(model).rows] == ["embed", "blocks.0-1", "head"]
    mt.freeze(model, "embed, blocks.0")
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"blocks", "head"}
    shown = plan(model, "ulmfit", steps=40, epochs=4)
    first_step = {row.group: int((~row_frozen).argmax()) for row, row_frozen in zip(shown.rows, shown.frozen, strict=True)}
    assert first_step == {"head": 0, "blocks.1": 10, "blocks.0": 20, "embed": 30}
    rates = {row.group: row.rates[35] for row in shown.rows}
    assert rates["head"] / rates["blocks.1"] == pytest.approx(2.6) and rates["head"] / rates["embed"] == pytest.approx(2.6**3)


@pytest.mark.slow
def test_ulmfit_from_text_to_labels(tok, tmp_path, monkeypatch):
    """Language model, its tuning on the texts of the rows, classifier; and the same in a folder that `predict` reads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    many = rows(200, 1)
    model = body(tok, d_model=32, d_hidden=40, init_std=0.3, input_dropout=0.1, hidden_dropout=0.1, weight_dropout=0.2, embed_dropout=0.02)
    mt.pretrain(model, tok, [row["text"] for row in many], objective="causal", length=40, batch_size=8, steps=60, lr=2e-2, progress=False, precision="fp32", best=None)
    result = finetune(model, tok, train=many, validation=HELD_OUT, strategy="ulmfit:1", epochs=5, lr=2e-2, batch_size=10, out=tmp_path / "run", **QUICK)
    assert (tmp_path / "run" / "language").is_dir() and result.metrics["accuracy"] > 0.9
    assert type(result.model) is mt.RecurrentModel and isinstance(result.model.head, ConcatHead)
    texts = [row["text"] for row in HELD_OUT]
    saved, own = predict(tmp_path / "run", texts=texts), predict(model, tok, texts)
    assert [one.label for one in saved] == [one.label for one in own] and [one.probability for one in saved] == pytest.approx([one.probability for one in own], abs=1e-6)


@pytest.mark.parametrize("name", ["head", "features"])
def test_a_frozen_body_read_once_or_every_time(tok, tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {}
    for one in ("head", name):
        model = body(tok)
        finetune(model, tok, train=TRAIN[:20], strategy=one, steps=4, batch_size=10, **QUICK)
        found[one] = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if n.startswith("head.")])
    assert torch.allclose(found["head"], found[name], atol=1e-5)


def test_both_ways_tag_words(tok):
    model = body(tok, **TOWERS)
    tagged = [{"words": row["text"].split(), "tags": ["O" if word not in ("film", "book") else "B-X" for word in row["text"].split()]} for row in TRAIN[:30]]
    result = finetune(model, tok, "token", train=tagged, strategy="full", epochs=1, lr=1e-2, batch_size=10, **QUICK)
    assert result.training.steps == 3 and len(predict(model, tok, ["the film was long"])[0]) == 4


def test_mixed_states_are_features(tok, tmp_path):
    """Every layer of the towers, the token vectors among them, as one row a text; a learned mix of them under a linear model."""
    model = body(tok, **TOWERS)
    X, y = extract_features(model, tok, TRAIN, layers=range(3), pooling="mean", cache=tmp_path)
    H = torch.from_numpy(X).unflatten(1, (-1, 16))
    assert H.shape == (60, 3, 16) and torch.equal(H[:, 0, :8], H[:, 0, 8:])
    batch = tok([TRAIN[0]["text"]])
    states = model.eval()(**batch, output_hidden_states=True).hidden_states
    assert torch.allclose(H[0], torch.stack([state[0].mean(0) for state in states]), atol=1e-6)
    torch.manual_seed(0)
    classifier, labels = nn.Sequential(ScalarMix(3), nn.Linear(16, 2)), torch.tensor([int(one == "pos") for one in y])
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(classifier(H), labels)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.6 and float(classifier[0].scores.detach().abs().max()) > 0.01


@pytest.mark.parametrize("name", ["lora", "adapter", "prefix", "soft_prompt", "ia3"])
def test_what_needs_attention_says_so(tok, name):
    with pytest.raises(ValueError, match=r".+;.+: .+"):
        strategy(name).apply(body(tok).set_head("sequence", ["neg", "pos"]))
