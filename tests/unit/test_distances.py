"""Distances count attended tokens: whatever stands between the tokens of a text, it gives the numbers it gives alone."""
import pytest
import torch

import minitransfer as mt
from minitransfer.config import Convolution, Disentangled, Rotary
from minitransfer.nn.masks import Mask, positions_in_documents

BASE = dict(vocab_size=50, d_model=24, n_layers=2, n_heads=3, d_ff=37, max_len=64, n_token_types=0, pooler=False)
TURNED = dict(positions="none", rotary=Rotary())
KINDS = {"learned": {}, "buckets": dict(relative_buckets=8, relative_distance=16), "causal buckets": dict(relative_buckets=8, relative_distance=16, causal=True),
         "window": TURNED | dict(window=3), "causal window": TURNED | dict(window=3, causal=True), "some windows": TURNED | dict(window=3, global_layers=(1,)),
         "vectors": dict(positions="none", disentangled=Disentangled(5)), "neighbours": dict(convolution=Convolution(3))}
IDS = torch.arange(5, 18)[None]                                  # a text of 13
TEXT = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0, 1, 0] + [1] * 8)[None]      # and where its tokens stand in a row of 18


def body(kind: str) -> mt.Model:
    model, g = mt.Model(mt.ModelConfig(**(BASE | KINDS[kind]))).eval(), torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=g))
    return model


def spread(text: torch.Tensor) -> torch.Tensor:
    """The ids at the tokens of `text`, and another token, which has to be out of sight, elsewhere."""
    return torch.full_like(text, 3).masked_scatter(text.bool(), IDS)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["auto", "reference", "tiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_holes_in_a_mask_are_no_distance(kind, backend):
    model = body(kind)
    model.attention = backend
    got = model(spread(TEXT), TEXT).last_hidden_state[:, TEXT[0].bool()]
    torch.testing.assert_close(got, model(IDS).last_hidden_state, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "minus one"])
@pytest.mark.parametrize("kind", KINDS)
def test_holes_in_a_document_are_no_distance(kind, masked):
    model, ids, keep = body(kind), torch.cat([torch.tensor([[7, 8, 9, 10, 11]]), spread(TEXT), torch.tensor([[12, 7]])], 1), TEXT[0].bool()
    documents = torch.tensor([[4] * 5 + [1] * 18 + [9] * 2])
    holes = torch.cat([torch.ones(1, 5), TEXT, torch.ones(1, 2)], 1)
    told = dict(attention_mask=holes, document_ids=documents) if masked else dict(document_ids=documents.masked_fill(holes == 0, -1))
    torch.testing.assert_close(model(ids, **told).last_hidden_state[:, 5:23][:, keep], model(IDS).last_hidden_state, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padding_behind_a_soft_prompt_is_no_distance(kind):
    model, left = body(kind), torch.tensor([[0] * 7 + [1] * 13])
    mt.transfer.add_soft_prompt(model, 4)
    got = model(spread(left), left).last_hidden_state[:, 7:]
    torch.testing.assert_close(got, model(IDS).last_hidden_state, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["causal buckets", "causal window"])
def test_holes_are_no_distance_in_a_cache(kind):
    model, ids, cache = body(kind), spread(TEXT), mt.nn.cache.Cache(2)
    steps = [model(ids[:, a:b], TEXT[:, a:b], cache=cache).last_hidden_state for a, b in ((0, 7), (7, 11), (11, 12), (12, 18))]
    torch.testing.assert_close(torch.cat(steps, 1)[:, TEXT[0].bool()], model(IDS).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_alone_needs_no_positions_in_the_mask(kind):
    keep = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    documents = torch.tensor([[0, 0, 1, 1, 1, -1, -1], [-1, 2, 2, 2, 2, 3, 3]])
    assert body(kind).sight(keep, keep, None, None)[0].positions is None and body(kind).sight(keep, None, documents, None)[0].positions is None


def test_a_window_in_positions_is_the_definition():
    positions = torch.tensor([[0, 0, 1, 1, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    mask = Mask(causal=True, window=3, positions=positions, ahead=2)
    truth = torch.tensor([[[j < 2 or (j - 2 <= i and abs(int(p[i] - p[j - 2])) < 3) for j in range(11)] for i in range(9)] for p in positions])
    assert torch.equal(mask.dense(9, 11, torch.device("cpu"))[:, 0], truth)
    tiles = [torch.cat([mask.part(rows, columns, torch.device("cpu")) for columns in (range(0, 1), range(1, 4), range(4, 11))], -1) for rows in (range(2, 4), range(4, 11))]
    assert torch.equal(torch.cat(tiles, -2)[:, 0], truth)


def test_positions_count_the_tokens_of_a_document_wherever_they_stand():
    documents = torch.tensor([[3, 3, -1, 3, 0, 0, -1, 0], [0, 1, 0, 1, 1, 0, -1, -1]])
    truth = [[row[:j].count(d) for j, d in enumerate(row)] for row in documents.tolist()]
    assert positions_in_documents(documents).tolist() == truth
