"""Denoising: an example by hand, the shares and lengths it promises, sentences that stay whole, targets that are the text, and a run that learns."""
import json
import math

import pytest
import torch

import minitransfer as mt
from minitransfer.nn.encoder_decoder import EncoderDecoder
from minitransfer.nn.heads import IGNORE
from minitransfer.objectives import Denoising
from minitransfer.objectives.denoising import infilled, permuted, span_lengths, texts_of

CPU = torch.device("cpu")
TEXT = "A cat sat there . It slept all day . Nobody knew why"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tok():
    return mt.Tokenizer.train([TEXT] * 3, "wordpiece", 60)


def test_by_hand(monkeypatch):
    """Items 1, 4 and 2 of six are spans of 2, 0 and 1 tokens: 10 [11 12] [13] 14 [] 15."""
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.tensor([1, 4, 2, 0, 3, 5][:n]))
    assert infilled(torch.arange(10, 16), torch.tensor([2, 0, 1]), 99, generator()).tolist() == [10, 99, 99, 14, 99, 15]
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.tensor([2, 0, 1, 3, 4, 5, 6][:n]))
    stop = torch.tensor([False, True, False, True, True, False, False])          # sentences 0 1 | 2 3 4 | 5 6 go to places 2, 0, 1
    assert permuted(torch.arange(7), stop, generator()).tolist() == [2, 3, 4, 5, 6, 0, 1]


def test_shares_and_lengths():
    """Each text loses round(rate T) tokens exactly. 10,000 lengths and more: mean and each share within 5 standard deviations of Poisson(3)."""
    g, many = generator(), span_lengths(30_000, 3.0, generator(1), CPU)
    assert int(many.sum()) == 30_000
    assert abs(len(many) - 10_000) < 5 * math.sqrt(10_000 / 3)
    for k in range(8):
        p = math.exp(-3) * 3**k / math.factorial(k)
        assert abs(int((many == k).sum()) - p * len(many)) < 5 * math.sqrt(len(many) * p * (1 - p)) + 1          # one is cut to fit
    for n in (1, 2, 3, 7, 97):
        for _ in range(40):
            lengths = span_lengths(round(0.3 * n), 3.0, g, CPU)
            text = infilled(torch.arange(n), lengths, -1, g)
            stays = text[text >= 0]
            assert len(stays) == n - round(0.3 * n) and len(text) - len(stays) == len(lengths) and len(text) <= n
            assert (stays.diff() > 0).all()                                      # what stays keeps its order


def test_masks_stand_anywhere():
    """One span of 2 among 3 tokens that stay: each of 4 places within 5 standard deviations of a quarter."""
    g, n = generator(), 800
    places = torch.tensor([infilled(torch.arange(5), torch.tensor([2]), -1, g).tolist().index(-1) for _ in range(n)]).bincount(minlength=4)
    assert len(places) == 4 and all(abs(int(count) - n / 4) < 5 * math.sqrt(n * 3 / 16) for count in places)


def test_sentences_stay_whole(tok):
    ids = torch.tensor(tok.encode(TEXT, specials=False))
    objective, g, seen = Denoising(tok), generator(), {}
    for _ in range(300):
        text = tok.decode(permuted(ids, objective.stops[ids], g))
        seen[text] = seen.get(text, 0) + 1
    sentences = [tok.decode(tok.encode(one, specials=False)) for one in ("A cat sat there .", "It slept all day .", "Nobody knew why")]
    orders = {" ".join(sentences[i] for i in order) for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))}
    assert {text.replace(" ", "") for text in seen} == {text.replace(" ", "") for text in orders}
    assert all(abs(n - 50) < 5 * math.sqrt(300 * 5 / 36) for n in seen.values())


def test_targets_are_the_text(tok):
    """Of a packed row each piece, of padded rows each row, between cls and sep; the same seed draws the same."""
    a, b = (tok.encode(text, specials=False) for text in (TEXT, "why slept there"))
    rows = [[tok.cls_id, *one, tok.sep_id] for one in (a, b)]
    short = len(rows[1])
    packed = {"input_ids": torch.tensor([[*rows[1], *rows[0], 0], [*rows[0], 0, *rows[1]]]),
              "document_ids": torch.tensor([[0] * short + [1] * len(rows[0]) + [-1], [0] * len(rows[0]) + [-1] + [1] * short])}
    assert [text.tolist() for text in texts_of(packed)] == [rows[1], rows[0], rows[0], rows[1]]
    objective = Denoising(tok)
    inputs, there, labels = objective.draw(packed, generator(3))
    for one, kept, label, row in zip(inputs, there, labels, (rows[1], rows[0], rows[0], rows[1]), strict=True):
        assert label[label != IGNORE].tolist() == row and label[: len(row)].tolist() == row
        one = one[kept].tolist()
        assert (one[0], one[-1]) == (tok.cls_id, tok.sep_id) and set(one) <= {*row, tok.mask_id}
        assert len([token for token in one if token != tok.mask_id]) == len(row) - round(0.3 * (len(row) - 2))
    again, other = objective.draw(packed, generator(3)), objective.draw(packed, generator(4))
    assert torch.equal(inputs, again[0]) and (other[0].shape != inputs.shape or not torch.equal(inputs, other[0]))
    padded = tok([TEXT, "why slept there"], padding_side="left")
    assert [text.tolist() for text in texts_of(padded)] == rows
    plain = Denoising(tok, rate=0.01, permute=False).draw(padded, generator())   # nothing to cut out, nothing to move
    assert plain[0][plain[1]].tolist() == [*rows[0], *rows[1]]


def bart(tok, head="seq2seq", **changes):
    return EncoderDecoder(mt.ModelConfig(**({
        "vocab_size": tok.vocab_size, "d_model": 32, "n_layers": 1, "n_decoder_layers": 1, "n_heads": 2, "d_ff": 48, "max_len": 24, "n_token_types": 0,
        "position_offset": 2, "norm_eps": 1e-5, "pooler": False, "classifier": "dense", "output_bias": True, "start_id": tok.sep_id, "pad_id": tok.pad_id, "dropout": 0.0}
        | changes)), head)


def test_a_run_learns_and_is_saved(tok, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, batch = bart(tok), tok([TEXT] * 4)

    @torch.no_grad()
    def loss():
        total, count = Denoising(tok)(model, batch, generator(7))
        return total.item() / count
    before = loss()
    mt.pretrain(model, tok, [TEXT] * 60, "denoise", validation=[TEXT] * 4, length=24, batch_size=8, steps=25, lr=1e-2, eval_every=25, out=tmp_path / "run", progress=False)
    assert loss() < 0.6 * before
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["model_type"] == "bart"
    again, ids = mt.Model.from_pretrained(tmp_path / "run" / "model"), torch.randint(5, 40, (2, 11))
    assert torch.equal(again(ids, labels=ids).logits, model.eval()(ids, labels=ids).logits)
    result = mt.adapt(again, tok, [TEXT] * 20, length=24, batch_size=8, steps=1, progress=False)      # a tokenizer without sentinels: the same objective
    assert result.before["loss"] < 0.6 * before


def test_errors(tok):
    plain = mt.Tokenizer.train([TEXT], "byte_bpe", 300)
    with pytest.raises(ValueError, match="a tokenizer without mask, cls, sep; denoising puts a mask in the place of each span, and texts between cls and sep: use"):
        Denoising(plain)
    with pytest.raises(ValueError, match=r"rate=1\.0, mean_length=3\.0; the share that is cut out is in \(0, 1\), and a span has 1 token or more on average: the usual"):
        Denoising(tok, rate=1.0)
    with pytest.raises(ValueError, match=r'a model with head="none"; the targets of this objective are written by an encoder-decoder: load one'):
        Denoising(tok)(bart(tok, "none"), tok([TEXT]), generator())
    with pytest.raises(ValueError, match=r'a model with head="none"; this objective trains a seq2seq head'):
        mt.pretrain(bart(tok, "none"), tok, [TEXT] * 9, "denoise", length=24)
