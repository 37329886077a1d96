"""Span corruption: the paper's own example token for token, the shares it promises, and a run that learns."""
import pytest
import torch

import minitransfer as mt
from minitransfer.nn.encoder_decoder import EncoderDecoder
from minitransfer.nn.heads import IGNORE
from minitransfer.objectives import Span, with_sentinels
from minitransfer.objectives.span import noise_spans, segments, with_places

TEXT = "Thank you for inviting me to your party last week".split()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tok():
    return with_sentinels(mt.Tokenizer.train([" ".join(TEXT)] * 3, "byte_bpe", 300), 9)


def test_the_example_of_the_paper():
    """Raffel et al. 2020, figure 2: <X> <Y> <Z> are the first three sentinels."""
    words = [*TEXT, "<X>", "<Y>", "<Z>"]
    gone = torch.tensor([word in ("for", "inviting", "last") for word in TEXT])
    sentinels = torch.arange(len(TEXT), len(words))

    def written(ids):
        return " ".join(words[i] for i in ids.tolist())
    assert written(with_places(torch.arange(len(TEXT)), gone, sentinels)) == "Thank you <X> me to your party <Y> week"
    assert written(with_places(torch.arange(len(TEXT)), ~gone, sentinels)) == "<X> for inviting <Y> last <Z>"
    with pytest.raises(ValueError, match=r"3 spans in one text and 2 sentinel tokens; each span needs one: use shorter rows, or with_sentinels\(tok, 3\)"):
        with_places(torch.arange(len(TEXT)), ~gone, sentinels[:2])


@pytest.mark.parametrize("length, rate, mean", [(512, 0.15, 3.0), (97, 0.15, 3.0), (97, 0.5, 1.0), (2, 0.15, 3.0), (5, 0.9, 8.0)])
def test_share_and_number_of_spans(length, rate, mean):
    """The rounded share is cut out of every text, in the rounded number of spans; the first token stays, the last goes; runs never touch."""
    cut = min(max(round(length * rate), 1), length - 1)
    spans = min(max(round(cut / mean), 1), length - cut)
    for seed in range(5):
        noise = noise_spans(length, rate, mean, generator(seed), torch.device("cpu"))
        starts = noise & ~torch.cat([torch.tensor([False]), noise[:-1]])
        assert (len(noise), int(noise.sum()), int(starts.sum())) == (length, cut, spans)
        assert not noise[0] and noise[-1]


def test_every_way_to_cut_is_equally_likely():
    """Of 5 things in 3 segments there are 6 ways; each within 5 standard deviations of a sixth."""
    g, counts = generator(), {}
    for _ in range(1200):
        lengths = tuple(segments(5, 3, g, torch.device("cpu")).tolist())
        counts[lengths] = counts.get(lengths, 0) + 1
    assert set(counts) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert all(abs(n - 200) < 5 * (1200 / 6 * 5 / 6) ** 0.5 for n in counts.values())


def test_inputs_and_targets_give_the_text_back(tok):
    """Each sentinel of the inputs stands for what follows it in the targets; padding on either side changes nothing; the same seed draws the same."""
    ids = torch.tensor([tok.encode(" ".join(TEXT * 9), specials=False)[:37]] * 3)
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[1, :9], keep[2, 20:] = False, False
    objective = Span(tok)
    inputs, there, labels = objective.draw(ids, keep, generator(3))
    assert torch.equal(labels, objective.draw(ids, keep, generator(3))[2]) and not torch.equal(labels, objective.draw(ids, keep, generator(4))[2])
    sentinels = set(objective.sentinels.tolist())
    for row in range(3):
        read, written = inputs[row][there[row]].tolist(), labels[row][labels[row] != IGNORE].tolist()
        assert read.pop() == written.pop() == tok.eos_id
        spans, text = {}, []
        for token in written:
            if token in sentinels:
                span = spans.setdefault(token, [])
            else:
                span.append(token)
        for token in read:
            text += spans[token] if token in sentinels else [token]
        assert text == ids[row][keep[row]].tolist()


def t5(tok, head="seq2seq"):
    return EncoderDecoder(mt.ModelConfig(
        vocab_size=tok.vocab_size, d_model=32, n_layers=1, n_decoder_layers=1, n_heads=2, d_ff=48, max_len=64, n_token_types=0, positions="none", relative_buckets=8,
        norm_position="pre", norm="rms", norm_eps=1e-6, qkv_bias=False, o_bias=False, mlp_bias=False, attn_scale=1.0, activation="relu", wide_stream=True,
        embed_norm=False, final_norm=True, pooler=False, classifier="dense", logit_scale=32**-0.5, dropout=0.0, head_dropout=0.0), head)


def test_a_run_learns_and_is_saved(tok, tmp_path):
    model, batch = t5(tok), {"input_ids": torch.tensor([tok.encode(" ".join(TEXT), specials=False)] * 4)}

    @torch.no_grad()
    def loss():
        total, count = Span(tok)(model, batch, generator(7))
        return total.item() / int(count)
    before = loss()
    mt.pretrain(model, tok, [" ".join(TEXT)] * 60, "span", validation=[" ".join(TEXT)] * 4, length=24, batch_size=8, steps=30, lr=1e-2, eval_every=30, out=tmp_path)
    assert loss() < 0.75 * before
    again = mt.Model.from_pretrained(tmp_path / "model")
    ids, labels = torch.randint(5, 90, (2, 11)), torch.randint(5, 90, (2, 7))
    assert isinstance(again, EncoderDecoder) and torch.equal(again(ids, labels=labels).logits, model.eval()(ids, labels=labels).logits)


def test_errors(tok):
    plain = mt.Tokenizer.train([" ".join(TEXT)], "byte_bpe", 300)
    with pytest.raises(ValueError, match=r"a tokenizer without <extra_id_0>; span corruption puts sentinels in the place of what it cuts out"):
        Span(plain)
    with pytest.raises(ValueError, match=r"rate=1\.5, mean_length=3\.0; the share that is cut out is in"):
        Span(tok, rate=1.5)
    with pytest.raises(ValueError, match=r'a model with head="none"; this objective trains a seq2seq head'):
        mt.pretrain(t5(tok, "none"), tok, [" ".join(TEXT)] * 9, "span", length=24)
    assert with_sentinels(tok) is tok
