"""Packed rows: no text sees another, to the last bit, and each is what it is alone."""
from itertools import pairwise

import pytest
import torch

import minitransfer as mt
from tests.unit.tiny import bert, gpt2, moved

ENDS = (0, 5, 6, 17, 20)                                     # four texts of 5, 1, 11 and 3 tokens, then padding
T = 23
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 1 + [2] * 11 + [3] * 3 + [-1] * 3])
SPANS = list(pairwise(ENDS))
BODIES = {"bert": bert(), "gpt2": gpt2(), "window": gpt2(window=3)}


@pytest.fixture(params=[(body, backend) for body in BODIES for backend in ("auto", "reference", "tiled")], ids="-".join)
def model(request):
    body, backend = request.param
    model = moved(mt.Model(BODIES[body], "masked" if body == "bert" else "causal"))
    model.attention = backend
    return model


def run(model, ids, **more):
    return model(ids, document_ids=DOCUMENTS, output_hidden_states=True, **more)


@torch.no_grad()
def test_each_text_is_what_it_is_alone(model):
    ids = torch.randint(101, (1, T))
    states = run(model, ids).hidden_states
    for start, end in SPANS:
        for packed, alone in zip(states, model(ids[:, start:end], output_hidden_states=True).hidden_states, strict=True):
            assert torch.allclose(packed[:, start:end], alone, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("edited", range(len(SPANS) + 1), ids=lambda i: f"text {i}" if i < len(SPANS) else "padding")
def test_editing_one_text_leaves_the_others_bit_equal(model, edited):
    ids = torch.randint(1, 101, (1, T))
    start, end = SPANS[edited] if edited < len(SPANS) else (ENDS[-1], T)
    other = ids.clone()
    other[:, start:end] = torch.where(ids[:, start:end] == 7, 8, 7)
    before, after = run(model, ids).logits, run(model, other).logits
    elsewhere = torch.ones(T, dtype=torch.bool)
    elsewhere[start:end] = False
    assert torch.equal(before[:, elsewhere], after[:, elsewhere])
    assert not torch.equal(before[:, start:end], after[:, start:end])


def test_gradients_stay_in_their_text(model):
    ids, texts = torch.randint(101, (1, T)), []
    model.embed.register_forward_hook(lambda module, given, x: (texts.append(x), x.retain_grad())[0])
    run(model, ids).last_hidden_state[0, 6:17].square().sum().backward()
    gradient = texts[0].grad[0].abs().sum(1)
    assert gradient[:6].eq(0).all() and gradient[17:].eq(0).all() and gradient[6:17].ne(0).all()


@torch.no_grad()
def test_padding_may_also_be_said_by_the_mask(model):
    """document_ids that number padding with the last text, and an attention_mask that knows better."""
    ids = torch.randint(101, (1, T))
    sloppy = DOCUMENTS.clone()
    sloppy[:, 20:] = 3
    out, truth = model(ids, DOCUMENTS >= 0, document_ids=sloppy), run(model, ids)
    assert torch.equal(out.logits[:, :20], truth.logits[:, :20])
    assert model.head.loss(model.body(ids, DOCUMENTS >= 0, document_ids=sloppy), ids)[1] == model.head.loss(model.body(ids, document_ids=DOCUMENTS), ids)[1]


def test_positions_restart_so_a_row_may_be_longer_than_the_model():
    model = moved(mt.Model(gpt2(), "causal"))                # 37 positions
    ids, documents = torch.randint(101, (1, 60)), torch.arange(60)[None] // 30
    assert torch.allclose(model(ids, document_ids=documents).logits[:, 30:], model(ids[:, 30:]).logits, atol=1e-5)
    with pytest.raises(ValueError, match="a text of 60 tokens; this model reads at most 37"):
        model(ids, document_ids=documents * 0)


def test_document_ids_of_another_shape():
    with pytest.raises(ValueError, match=r"document_ids of shape \(1, 60\) for ids of shape \(1, 23\)"):
        mt.Model(gpt2()).sight(torch.randint(101, (1, 23)), None, torch.zeros(1, 60, dtype=torch.long), None)
