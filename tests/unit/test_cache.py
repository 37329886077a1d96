"""The cache: any way of feeding a text gives what the whole text at once gives."""
import pytest
import torch

import minitransfer as mt
from minitransfer.nn.cache import LayerCache
from tests.unit.tiny import bert, gpt2, moved

T = 13
CHUNKS = [[13], [1] * 13, [9, 1, 3], [3, 7, 3]]


def fed(model, ids, chunks, keep=None):
    """The logits of all positions, a chunk of the text at a time."""
    cache, out, start = mt.Cache(model.config.n_layers), [], 0
    for n in chunks:
        here = slice(start, start + n)
        given = model(ids[:, here], None if keep is None else keep[:, here], cache=cache)
        out.append(given.logits)
        start += n
        assert given.cache is cache and cache.length == start
    return torch.cat(out, 1)


@pytest.mark.parametrize("changes, backend", [({}, "auto"), ({}, "reference"), ({}, "tiled"), ({"window": 4}, "auto"), ({"window": 4}, "tiled"),
                                              ({"n_kv_heads": 2}, "auto")],
                         ids=["auto", "reference", "tiled", "window-auto", "window-tiled", "shared heads"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=lambda c: "+".join(map(str, c[:3])))
@torch.no_grad()
def test_chunks_equal_the_whole(chunks, changes, backend):
    model = moved(mt.Model(gpt2(**changes), "causal"))
    model.attention = backend
    ids = torch.randint(101, (3, T))
    assert torch.allclose(fed(model, ids, chunks), model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("chunks", CHUNKS, ids=lambda c: "+".join(map(str, c[:3])))
@torch.no_grad()
def test_left_padded_rows_equal_the_rows_alone(chunks):
    model, ids, keep = moved(mt.Model(gpt2(), "causal")), torch.randint(101, (3, T)), torch.ones(3, T, dtype=torch.bool)
    keep[1, :5], keep[2, :10] = False, False
    logits = fed(model, ids, chunks, keep)
    for row in range(3):
        assert torch.allclose(logits[row][keep[row]], model(ids[row][keep[row]][None]).logits[0], atol=1e-5)


@torch.no_grad()
def test_a_mask_only_where_there_is_padding():
    """The prompt is padded, the tokens after it are not: no mask need be given for them. And the other way round."""
    model, ids, keep = moved(mt.Model(gpt2(), "causal")), torch.randint(101, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    keep[1, :4] = False
    cache = mt.Cache(2)
    model(ids[:, :7], keep[:, :7], cache=cache)
    last = model(ids[:, 7:], cache=cache).logits
    assert torch.allclose(last[1], model(ids[1, 4:][None]).logits[0, -2:], atol=1e-5)
    cache, keep = mt.Cache(2), torch.tensor([[True, True], [False, True]])
    model(ids[:, :7], cache=cache)
    last = model(ids[:, 7:], keep, cache=cache).logits
    assert torch.allclose(last[1, -1], model(torch.cat([ids[1, :7], ids[1, 8:]])[None]).logits[0, -1], atol=1e-5)


@torch.no_grad()
def test_rows_are_chosen_and_repeated():
    """Beams are copied, finished texts leave."""
    model, ids, keep = moved(mt.Model(gpt2(), "causal")), torch.randint(101, (3, 9)), torch.ones(3, 9, dtype=torch.bool)
    keep[1, :4] = False
    cache, rows = mt.Cache(2), torch.tensor([2, 1, 1])
    model(ids[:, :8], keep[:, :8], cache=cache)
    cache.select(rows)
    truth = model(ids[rows], keep[rows]).logits[:, -1]
    assert torch.allclose(model(ids[rows, 8:], cache=cache).logits[:, -1], truth, atol=1e-5)


def test_buffers_grow_by_doubling():
    cache, k = LayerCache(), torch.randn(2, 3, 40, 5)
    sizes = set()
    for i in range(40):
        keys, values = cache.append(k[:, :, i : i + 1], -k[:, :, i : i + 1])
        sizes.add(cache.k.shape[2])
        assert torch.equal(keys, k[:, :, : i + 1]) and torch.equal(values, -k[:, :, : i + 1])
    assert sizes == {2, 6, 14, 30, 62}


@torch.no_grad()
def test_too_long():
    model, cache = mt.Model(gpt2(), "causal"), mt.Cache(2)
    model(torch.randint(101, (1, 37)), cache=cache)
    with pytest.raises(ValueError, match=r"a text of 38 tokens; this model reads at most 37: truncate it \(max_length\), or split it into windows"):
        model(torch.randint(101, (1, 1)), cache=cache)
    padded = torch.arange(45)[None] >= 20                                       # 45 positions, 25 tokens: fits
    assert model(torch.randint(101, (1, 45)), padded).logits.shape == (1, 45, 101)


@pytest.mark.parametrize("config, more, message", [
    (gpt2(), {"attention_mask": torch.ones(2, 9)}, r"attention_mask of shape \(2, 9\) for ids of shape \(2, 1\); it says something of each id given now"),
    (gpt2(), {"document_ids": torch.zeros(2, 1, dtype=torch.long)}, "document_ids together with a cache: packed rows are for training"),
    (bert(), {}, "a cache for a body with causal=False; there every token sees later ones, so nothing computed stays right: run without a cache"),
], ids=["mask of the whole text", "packed", "bidirectional"])
def test_refused(config, more, message):
    with pytest.raises(ValueError, match=message):
        mt.Model(config)(torch.randint(101, (2, 1)), cache=mt.Cache(2), **more)
