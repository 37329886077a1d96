"""Heads: what they read under either padding side, against the same text alone or a few lines of arithmetic; their losses are sums with counts."""
import pytest
import torch
from torch.nn.functional import cross_entropy

import minitransfer as mt
from minitransfer.nn.heads import IGNORE, BodyOutput, EmbeddingHead, SequenceHead
from tests.unit.tiny import bert, gpt2, moved

LENGTHS = (5, 13, 1)
LABELS = ["bad", "fair", "good"]


def padded(side: str, T: int = 13):
    """Three texts of LENGTHS tokens; padding has an ordinary id, so that reading it would show."""
    ids, keep = torch.randint(1, 101, (3, T)), torch.zeros(3, T, dtype=torch.bool)
    for row, n in enumerate(LENGTHS):
        keep[row, slice(T - n, None) if side == "left" else slice(None, n)] = True
    return ids, keep


def alone(model, ids, keep, row, **more):
    return model(ids[row][keep[row]][None], **more)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("config", [bert(), bert(pooler=False), gpt2()], ids=["bert", "no pooler", "gpt2"])
def test_a_sequence_is_judged_as_it_is_alone(config, side):
    model, (ids, keep) = moved(mt.Model(config, "sequence", LABELS)), padded(side)
    with torch.no_grad():
        logits = model(ids, keep).logits
        for row in range(3):
            assert torch.allclose(logits[row], alone(model, ids, keep, row).logits[0], atol=1e-5)


def test_what_a_sequence_head_reads():
    """Encoders: the first token; decoders: the last; by planting states that say where they are."""
    x = torch.arange(13.0)[None, :, None].expand(3, 13, 28)
    for side, first, last in (("left", (8, 0, 12), (12, 12, 12)), ("right", (0, 0, 0), (4, 12, 0))):
        keep = padded(side)[1]
        for config, wanted in ((bert(), first), (gpt2(), last)):
            head = SequenceHead(config, 3).eval()
            assert torch.allclose(head(BodyOutput(x, keep)), head.classifier(torch.tensor(wanted).float()[:, None].expand(3, 28)), atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_span_is_never_in_the_padding(side):
    model, (ids, keep) = moved(mt.Model(bert(), "span")), padded(side)
    with torch.no_grad():
        logits = model(ids, keep).logits
        assert (logits[~keep] == torch.finfo(torch.float32).min).all()
        for row in range(3):
            one = alone(model, ids, keep, row).logits[0]
            assert torch.allclose(logits[row].softmax(0)[keep[row]], one.softmax(0), atol=1e-6)      # as a distribution, not only as scores
        first = keep.int().argmax(1)
        labels = torch.stack([first, first + torch.tensor(LENGTHS) - 1], 1)
        true = sum(cross_entropy(alone(model, ids, keep, row).logits[0].T, labels[row] - first[row], reduction="sum") for row in range(3))
        total, count = model.head.loss(model.body(ids, keep), labels)
    assert count == 6 and torch.allclose(total, true, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_an_embedding_is_that_of_the_text_alone(pooling, normalise, side):
    model, (ids, keep) = moved(mt.Model(bert(), "embedding", pooling=pooling, normalise=normalise)), padded(side)
    with torch.no_grad():
        out = model(ids, keep)
        assert out.logits is None
        for row in range(3):
            x = alone(model, ids, keep, row).last_hidden_state[0]
            vector = {"mean": x.mean(0), "cls": x[0], "max": x.max(0).values}[pooling]
            vector = vector / vector.norm() if normalise else vector
            assert torch.allclose(out.embeddings[row], vector, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_an_embedding_of_no_tokens_is_zero(pooling, normalise):
    keep = torch.tensor([[True] * 5, [False] * 5])
    out = EmbeddingHead(pooling, normalise)(BodyOutput(torch.randn(2, 5, 7), keep))
    assert torch.equal(out[1], torch.zeros(7)) and out[0].abs().sum() > 0


def true_loss(logits, labels):
    """-log softmax at each target, added up by hand."""
    log_probs = logits.double() - logits.double().logsumexp(-1, keepdim=True)
    picked = [-log_probs[i][int(label)] for i, label in enumerate(labels.flatten()) if int(label) != IGNORE]
    return sum(picked), len(picked)


@pytest.mark.parametrize("head, config", [("sequence", bert()), ("sequence", gpt2()), ("token", bert()), ("masked", bert()), ("masked+next", bert())],
                         ids=["sequence", "sequence of a decoder", "token", "masked", "masked+next"])
def test_a_loss_is_a_sum_and_a_count(head, config):
    model, (ids, keep) = moved(mt.Model(config, head, LABELS if head in ("sequence", "token") else None)), padded("right")
    n = model.head.classifier.out_features if head in ("sequence", "token") else 101
    labels = torch.randint(n, (3,) if head == "sequence" else (3, 13))
    labels[labels % 3 == 0] = IGNORE
    body = model.body(ids, keep)
    total, count = model.head.loss(body, labels)
    true_total, true_count = true_loss(model(ids, keep).logits.flatten(0, -2), labels)
    assert count == true_count and torch.allclose(total.double(), true_total, rtol=1e-6)
    assert torch.allclose(model(ids, keep, labels=labels).loss.double(), true_total / true_count, rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_causal_target_is_the_next_token_of_the_same_text(side):
    """With labels = ids: neither padding nor the first token of a text is a target, from either side."""
    model, (ids, keep) = moved(mt.Model(gpt2(), "causal")), padded(side)
    with torch.no_grad():
        total, count = model.head.loss(model.body(ids, keep), ids)
        true_total, true_count = 0.0, 0
        for row in range(3):
            one = ids[row][keep[row]]
            if len(one) > 1:
                value, n = true_loss(alone(model, ids, keep, row).logits[0, :-1], one[1:])
                true_total, true_count = true_total + value, true_count + n
    assert count == true_count == 4 + 12 and torch.allclose(total.double(), true_total, rtol=1e-5)


def test_causal_targets_stay_in_their_document():
    model, ids = moved(mt.Model(gpt2(), "causal")), torch.randint(101, (1, 13))
    documents = torch.tensor([[0] * 4 + [1] * 6 + [-1] * 3])
    with torch.no_grad():
        total, count = model.head.loss(model.body(ids, document_ids=documents), ids)
        parts = [true_loss(model(ids[:, a:b]).logits[0, :-1], ids[0, a + 1 : b]) for a, b in ((0, 4), (4, 10))]
    assert count == 3 + 5 and torch.allclose(total.double(), parts[0][0] + parts[1][0], rtol=1e-5)


@pytest.mark.parametrize("head", ["masked", "causal"])
def test_no_target_is_a_loss_of_zero_with_zero_gradients(head):
    model = mt.Model(bert() if head == "masked" else gpt2(), head)
    total, count = model.head.loss(model.body(torch.randint(101, (2, 5))), torch.full((2, 5), IGNORE))
    total.backward()
    assert count == 0 and total.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_only_targets_reach_the_vocabulary(monkeypatch):
    model, seen = mt.Model(bert(), "masked"), []
    monkeypatch.setattr(model.head, "transformed", lambda x: (seen.append(len(x)), x)[1])
    labels = torch.full((3, 13), IGNORE)
    labels[0, 2], labels[2, 5] = 7, 9
    model.head.loss(model.body(torch.randint(101, (3, 13))), labels)
    assert seen == [2]


def test_the_next_sentence_loss_is_added():
    model, ids = moved(mt.Model(bert(), "masked+next")), torch.randint(101, (3, 7))
    labels, follows = torch.randint(101, (3, 7)), torch.tensor([1, 0, 1])
    out = model(ids, labels=labels, next_labels=follows)
    alone_loss = model(ids, next_labels=follows).loss
    assert torch.allclose(alone_loss.double(), true_loss(out.next_logits, follows)[0] / 3)
    assert torch.allclose(out.loss, model(ids, labels=labels).loss + alone_loss)


@pytest.mark.parametrize("head, labels, bad, message", [
    ("masked", None, torch.tensor([[5, 101]]), r"a label 101; this head has 101 tokens, numbered 0 to 100 \(-100 marks no target\)"),
    ("token", LABELS, torch.tensor([[0, 3]]), "a label 3; this head has 3 labels"),
    ("sequence", LABELS, torch.tensor([-1]), "a label -1; this head has 3 labels"),
    ("span", None, torch.tensor([[0, 2]]), "a label 2; this head has 2 positions"),
])
def test_a_label_outside_the_head(head, labels, bad, message):
    with pytest.raises(ValueError, match=message):
        mt.Model(bert(), head, labels)(torch.tensor([[1, 2]]), labels=bad)


@pytest.mark.parametrize("config, head, labels, message", [
    (bert(), "classifier", None, "head='classifier'; it is one of 'none', 'masked', .*: choose one of these"),
    (bert(), "sequence", None, 'head="sequence" without labels; it needs one output per label: pass labels='),
    (bert(), "token", [], 'head="token" without labels'),
    (bert(), "masked", ["a", "b"], r"labels=\['a', 'b'\] for head=\"masked\"; only sequence and token heads have classes"),
    (bert(), "sequence", ["a", "b", "a"], r"labels=\['a', 'b', 'a'\] name a class twice; each class needs a name of its own"),
    (bert(), "causal", None, 'head="causal" on a body with causal=False; each token would see the one it has to predict'),
    (bert(pooler=False), "masked+next", None, r'head="masked\+next" on a body with pooler=False; its second question is asked of the pooled'),
])
def test_a_head_that_cannot_be(config, head, labels, message):
    with pytest.raises(ValueError, match=message):
        mt.Model(config, head, labels)
    body = mt.Model(config, "none")
    with pytest.raises(ValueError, match=message):
        body.set_head(head, labels)
    assert body.head is None and body.head_name == "none"                       # a refused head changes nothing


def test_an_embedding_head_refuses():
    with pytest.raises(ValueError, match="pooling='median'; it is one of 'mean', 'cls', 'max'"):
        EmbeddingHead("median")
    with pytest.raises(ValueError, match="1 texts and 1 labels for an embedding head; it learns from pairs"):
        mt.Model(bert(), "embedding")(torch.tensor([[1, 2]]), labels=torch.tensor([0]))
