"""Recurrent bodies: the maths against PyTorch and a loop by hand, masks that stay, a state that is carried and cut off; then what they learn, and files."""
import copy
import math

import pytest
import torch
from torch import nn

import minitransfer as mt
from minitransfer.nn.cache import Cache
from minitransfer.nn.lstm import RecurrentBlock, WordEmbeddings, locked_dropout, lstm_step, turned
from minitransfer.objectives import Carried, Causal
from minitransfer.ops.dropout import dropout
from minitransfer.text import StreamBatches, tokenize_corpus
from minitransfer.training import held_out_loss, train

from ..adapt.small import tokenizer
from .small import Listed, batches, same, settings, weights

V = 43
KEEP = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.fixture(scope="module")
def word_tok():
    return tokenizer()


def config(**changes) -> mt.RecurrentConfig:
    return mt.RecurrentConfig(**({"vocab_size": V, "d_model": 14, "n_layers": 3, "d_hidden": 22} | changes))


def lm(seed: int = 0, **changes) -> mt.RecurrentModel:
    return mt.RecurrentModel(config(**changes), head="causal+back" if changes.get("both_ways") else "causal", seed=seed)


BOTH = {"both_ways": True, "causal": False, "projected": True, "residual": True, "n_layers": 2}
SHAPES = {"awd": {}, "both": BOTH, "both plain": {"both_ways": True, "causal": False}, "projected": {"projected": True, "residual": True}}


# ---- the maths ---------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("projection", [0, 3])
def test_the_written_out_cell_is_pytorchs(projection):
    lstm = nn.LSTM(5, 7, batch_first=True, proj_size=projection).double()
    x, h, c = torch.randn(2, 11, 5, dtype=torch.float64), torch.randn(2, projection or 7, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    theirs, (theirs_h, theirs_c) = lstm(x, (h[None], c[None]))
    P = lstm.weight_hr_l0 if projection else None
    for t in range(11):
        h, c = lstm_step(x[:, t], (h, c), lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0, P)
        assert (h - theirs[:, t]).abs().max() < 1e-14
    assert (h - theirs_h[0]).abs().max() < 1e-14 and (c - theirs_c[0]).abs().max() < 1e-14


def by_hand(model: mt.RecurrentModel, ids: torch.Tensor) -> torch.Tensor:
    """The last states of one text, (T, D), step by step."""
    c = model.config
    x = model.embed.tokens.weight[ids].repeat(1, c.directions)
    for i, block in enumerate(model.blocks):
        parts = []
        for k, (lstm, part) in enumerate(zip(block.lstms, x.chunk(c.directions, -1), strict=True)):
            P = lstm.weight_hr_l0 if c.projected else None
            h, cells, out = torch.zeros(1, c.widths(i)[1]).double(), torch.zeros(1, lstm.hidden_size).double(), {}
            for t in range(len(ids)) if k == 0 else reversed(range(len(ids))):
                h, cells = lstm_step(part[t][None], (h, cells), lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0, P)
                out[t] = h[0]
            parts.append(torch.stack([out[t] for t in range(len(ids))]))
        y = torch.cat(parts, -1)
        x = x + y if c.residual and i else y
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_the_body_is_a_loop_by_hand_for_every_padding_and_packing(shape):
    """A text gives the same states alone, before or behind padding, and packed with others."""
    model = lm(**SHAPES[shape]).double().eval()
    ids = torch.randint(V, KEEP.shape)
    with torch.no_grad():
        padded = model(ids, KEEP.long()).last_hidden_state
        expected = torch.zeros_like(padded)
        for b in range(3):
            expected[b, KEEP[b]] = by_hand(model, ids[b, KEEP[b]])
        assert (padded - expected).abs().max() < 1e-13
        documents = torch.tensor([[0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1, 1]])
        packed = model(ids, document_ids=documents).last_hidden_state
        expected = torch.zeros_like(packed)
        for b in range(3):
            for d in range(int(documents[b].max()) + 1):
                expected[b, documents[b] == d] = by_hand(model, ids[b, documents[b] == d])
        assert (packed - expected).abs().max() < 1e-13
        assert bool((model(ids, torch.zeros_like(KEEP)).last_hidden_state == 0).all())


def test_turning_twice_is_nothing():
    x, lengths = torch.randn(3, 5, 2), torch.tensor([5, 2, 4])
    back = turned(x, lengths)
    assert torch.equal(back[1, :2], x[1, :2].flip(0)) and torch.equal(back[2, :4], x[2, :4].flip(0)) and torch.equal(turned(back, lengths), x)


def test_the_loss_of_both_directions():
    """Against the probabilities of each half, token by token."""
    model = lm(**BOTH).double().eval()
    ids = torch.randint(V, KEEP.shape)
    loss, n = model.head.loss(model.body(ids, KEEP.long()), ids)
    expected, count = 0.0, 0
    for b in range(3):
        text = ids[b, KEEP[b]]
        right, left = ((half @ model.embed.tokens.weight.T).log_softmax(-1) for half in by_hand(model, text).chunk(2, -1))
        expected -= sum(float(right[t, text[t + 1]].detach() + left[t + 1, text[t]].detach()) for t in range(len(text) - 1))
        count += 2 * (len(text) - 1)
    assert n == count == 26 and abs(float(loss.detach()) - expected) < 1e-9


def test_neither_direction_sees_what_it_predicts():
    model = lm(**BOTH).double().eval()
    ids = torch.randint(V, (1, 9))
    other = ids.clone()
    other[0, 4] = (ids[0, 4] + 1) % V
    with torch.no_grad():
        changed = (model(ids).last_hidden_state - model(other).last_hidden_state).abs()[0] > 0
    right, left = changed.chunk(2, -1)
    assert not right[:4].any() and right[4:].any(-1).all() and not left[5:].any() and left[:5].any(-1).all()


# ---- dropout -------------------------------------------------------------------------------------------------------------------------------------------

def test_locked_dropout_drops_the_same_numbers_at_every_position():
    x = torch.ones(50, 7, 83)
    y = locked_dropout(x, 0.3)
    assert torch.equal(y, y[:, :1].expand_as(y)) and not torch.equal(y[0], y[1])
    share, n = float((y[:, 0] == 0).double().mean()), 50 * 83
    assert abs(share - 0.3) < 5 * (0.21 / n) ** 0.5 and torch.allclose(y[y > 0], torch.tensor(1 / 0.7), atol=1e-4)


def test_words_are_dropped_wherever_they_stand():
    embed = WordEmbeddings(config(vocab_size=997, embed_dropout=0.2))
    nn.init.constant_(embed.tokens.weight, 1.0)
    x = embed(torch.arange(997).repeat(3, 2)).detach()
    assert torch.equal(x[0, :997], x[0, 997:]) and torch.equal(x[0], x[2]) and set(x.sum(-1).unique().tolist()) == {0.0, float(x.sum(-1).max())}
    assert abs(float((x[0, :997, 0] == 0).double().mean()) - 0.2) < 5 * (0.16 / 997) ** 0.5 and abs(float(x.max()) - 1.25) < 1e-4
    assert not torch.equal(x, embed(torch.arange(997).repeat(3, 2))) and bool((embed.eval()(torch.arange(997)[None]) == 1).all())


def test_recurrent_weights_are_dropped_once_for_a_pass():
    """The states are those of a network whose matrix has exactly the dropped connections, at every step and in every text; the parameter itself stays whole."""
    block = RecurrentBlock(config(weight_dropout=0.4, n_layers=1), 0).double()
    x, before = torch.randn(2, 6, 14, dtype=torch.float64), block.lstms[0].weight_hh_l0.detach().clone()
    torch.manual_seed(3)
    y, _ = block(x, torch.tensor([6, 6]))
    torch.manual_seed(3)
    U = dropout(before, 0.4)
    assert 0.25 < float((U == 0).double().mean()) < 0.55
    whole = copy.deepcopy(block).eval()
    with torch.no_grad():
        whole.lstms[0].weight_hh_l0.copy_(U)
        assert (y - whole(x, torch.tensor([6, 6]))[0]).abs().max() < 1e-14
    y.sum().backward()
    gradient = block.lstms[0].weight_hh_l0.grad
    assert bool((gradient[U == 0] == 0).all()) and bool((gradient[U != 0] != 0).all()) and torch.equal(block.lstms[0].weight_hh_l0, before)


def test_evaluation_drops_nothing():
    rates = {"input_dropout": 0.5, "hidden_dropout": 0.5, "weight_dropout": 0.5, "dropout": 0.5, "embed_dropout": 0.5}
    ids = torch.randint(V, (2, 5))
    model, plain = lm(**rates), lm()
    assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)
    for name in rates:
        one = lm(**{name: 0.5}).train()
        assert not torch.equal(one(ids).logits, plain(ids).logits), name


# ---- the state -----------------------------------------------------------------------------------------------------------------------------------------

def stream(n: int, B: int, T: int) -> list[dict]:
    ids = torch.randint(V, (B, n * T + 1))
    return [{"input_ids": ids[:, k * T:(k + 1) * T + 1], "continues": torch.tensor(k > 0)} for k in range(n)]


def test_the_state_is_carried_over_and_the_gradient_is_cut():
    """The loss of the second half is that of the whole text; its gradient is that of a text which begins with the state as a constant."""
    model, (first, second) = lm().double(), stream(2, B=3, T=5)
    objective, whole = Carried(), torch.cat([first["input_ids"], second["input_ids"][:, 1:]], 1)
    objective(model, first, torch.Generator())
    loss, n = objective(model, second, torch.Generator())
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy((x @ model.embed.tokens.weight.T).flatten(0, 1), whole[:, 6:].flatten(), reduction="sum")
    model.zero_grad()
    full = loss_of(model.body(whole[:, :-1]).x[:, 5:])
    assert n == 15 and abs(float(loss.detach()) - float(full.detach())) < 1e-10
    full.backward()
    assert max(float((p.grad - found[name]).abs().max()) for name, p in model.named_parameters()) > 1e-3            # not cut: another gradient
    model.zero_grad()
    with torch.no_grad():
        model.body(whole[:, :5], cache=(cache := Cache(3)))
    loss_of(model.body(whole[:, 5:-1], cache=cache).x).backward()
    assert max(float((p.grad - found[name]).abs().max()) for name, p in model.named_parameters()) < 1e-12


def test_states_begin_anew_and_training_has_one_of_its_own():
    model, (first, second) = lm(), stream(2, B=2, T=4)
    objective = Carried()

    def loss(batch: dict) -> float:
        return float(objective(model.train(), batch, torch.Generator())[0].detach())
    alone = loss({**second, "continues": torch.tensor(False)})
    loss(first)
    with torch.no_grad():
        held_out_loss(Listed(stream(3, B=5, T=4)), objective)(model.eval())      # other rows, between two steps
    carried = loss(second)
    loss(first)
    assert loss(second) == carried != alone


def test_generation_goes_on_from_the_state():
    model = lm().eval()
    ids = torch.randint(V, KEEP.shape)
    quick = mt.generate(model, ids, KEEP.long(), max_new_tokens=6, precision="fp32")
    assert torch.equal(quick, mt.generate(model, ids, KEEP.long(), max_new_tokens=6, use_cache=False, precision="fp32"))
    alone = mt.generate(model, ids[1:2, :4], max_new_tokens=6, precision="fp32")
    assert torch.equal(alone[0, 4:], quick[1, 7:])


def test_streams(word_tok, tmp_path):
    texts = [f"{'the film was ' * n}good" for n in range(1, 60)]
    made = StreamBatches(tokenize_corpus(word_tok, texts, cache=tmp_path), word_tok, length=7, batch_size=3)
    whole = made.ids.tolist()
    first = [made[k] for k in range(len(made))]
    assert [bool(one["continues"]) for one in first] == [False] + [True] * (len(made) - 1) and bool(made[len(made)]["continues"]) is False
    for b in range(3):
        joined = [first[0]["input_ids"][b, 0].item()] + [i for one in first for i in one["input_ids"][b, 1:].tolist()]
        assert any(whole[s:s + len(joined)] == joined for s in range(len(whole))) and len(joined) == 7 * len(made) + 1
    assert whole.count(word_tok.sep_id) == 59 and 21 * len(made) > len(whole) - 28 and torch.equal(made[4]["input_ids"], made[4]["input_ids"])
    assert len({int(made[e * len(made)]["input_ids"][0, 0]) + 1000 * int(made[e * len(made)]["input_ids"][0, 1]) for e in range(6)}) > 1
    with pytest.raises(ValueError, match="tokens for 9000 streams in batches of 7"):
        StreamBatches(tokenize_corpus(word_tok, texts, cache=tmp_path), word_tok, length=7, batch_size=9000)


# ---- learning ------------------------------------------------------------------------------------------------------------------------------------------

def test_training_learns_the_transitions_of_a_planted_language():
    """Each token decides the next but for one in ten; frequencies alone give log 43 = 3.76 nats, and so does a model that mixes up what follows what."""
    model = lm(n_layers=1, d_model=30, init_std=0.3)

    def held() -> float:
        with torch.no_grad():
            return held_out_loss(batches(seed=9), Causal())(model.eval())["loss"]
    before = held()
    train(model, batches(n=40, B=8), Causal(), settings(60, lr=2e-2))
    assert before > 3.5 and held() < 2.3


def signed(seed: int, T: int) -> list[dict]:
    """Streams `s 7 8 s 7 8 ...` with a sign s of their own, in batches of T tokens: of two tokens, none that asks for s holds it. It is a third of what is asked."""
    sign = 10 + torch.randint(2, (16, 1), generator=torch.Generator().manual_seed(seed))
    ids = torch.cat([sign, torch.full_like(sign, 7), torch.full_like(sign, 8)], 1).repeat(1, 5)[:, :13]
    return [{"input_ids": ids[:, T * k:T * (k + 1) + 1], "continues": torch.tensor(k > 0)} for k in range(12 // T)]


def test_a_carried_state_knows_what_a_batch_does_not_hold():
    model = lm(n_layers=1, d_model=30, init_std=0.5)
    train(model, Listed(signed(0, T=12)), Carried(), settings(120, lr=2e-2))
    with torch.no_grad():
        carried, cut = (held_out_loss(Listed([{**one, "continues": one["continues"] & on} for one in signed(1, T=2)]), Carried())(model)["loss"] for on in (True, False))
    assert carried < 0.05 and cut > math.log(2) / 3 - 0.03


@pytest.mark.parametrize("shape", ["awd", "both"])
def test_pretraining_on_packed_rows(shape, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = [f"{a} {b} was {c}" for a in ("the film", "a song", "this place") for b in ("very quite", "not too", "long and") for c in ("good", "dull", "awful", "lovely")]
    tok = mt.Tokenizer.train(texts, kind="byte_bpe", vocab_size=300)
    sizes = {"vocab_size": tok.vocab_size, "d_model": 40, "d_hidden": 50, "n_layers": 1, "init_std": 0.3}
    model = mt.RecurrentModel(config(**(SHAPES[shape] | sizes)), head="causal+back" if shape == "both" else "causal")
    result = mt.pretrain(model, tok, texts, objective="causal", validation=texts[::5], length=24, batch_size=4, steps=60, lr=2e-2, progress=False, precision="fp32")
    assert result.metrics["loss"] < result.metrics["unigram_loss"] - 1


# ---- files and settings --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", SHAPES)
def test_files_bring_back_the_same_bits(shape, tmp_path):
    model = lm(seed=3, **SHAPES[shape], weight_dropout=0.2)
    model.save_pretrained(tmp_path)
    again = mt.Model.from_pretrained(tmp_path)
    ids = torch.randint(V, (2, 7))
    assert type(again) is mt.RecurrentModel and again.config == model.config and again.head_name == model.head_name and same(weights(again), weights(model))
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    other = mt.Model.from_pretrained(tmp_path, head="sequence", labels=["a", "b"])
    assert set(other.load_report.new) == {name for name, _ in other.named_parameters() if name.startswith("head.")}
    other.save_pretrained(tmp_path / "tuned")
    assert same(weights(mt.Model.from_pretrained(tmp_path / "tuned")), weights(other))


def test_a_grown_vocabulary_is_that_of_the_head_too():
    for shape in ("awd", "both"):
        model = lm(**SHAPES[shape]).eval()
        ids = torch.randint(V, (2, 5))
        before = model(ids).logits
        assert torch.equal(model.resize_vocabulary(V + 4)(ids).logits[..., :V], before) and model(ids).logits.shape[-1] == V + 4


@pytest.mark.parametrize("changes,message", [
    ({"both_ways": True}, "causal=True, both_ways=True"), ({"causal": False}, "causal=False, both_ways=False"), ({**BOTH, "d_model": 15}, "d_model=15 for two directions"),
    ({"projected": True, "d_hidden": 14}, "d_hidden=14, projected to 14"), ({"residual": True}, "layer 2 takes 22 numbers to 14"),
    ({"weight_dropout": 1.0}, r"weight_dropout=1.0; it is a probability in \[0, 1\)"), ({"d_hidden": 0}, "d_hidden=0")])
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_wrong_questions_are_answered():
    model, ids = lm(), torch.randint(V, (2, 5))
    for call, message in ((lambda: model(ids + V), "this model has 43 of them"), (lambda: model(ids, output_attentions=True), "it has none: ask for hidden states"),
                          (lambda: model(ids, token_type_ids=torch.ones_like(ids)), "it has no table of segments"),
                          (lambda: model(ids, torch.ones(2, 4)), r"attention_mask of shape \(2, 4\)"),
                          (lambda: model(ids, document_ids=torch.zeros_like(ids), cache=Cache(3)), "a cache with packed rows"),
                          (lambda: lm(**BOTH)(ids, cache=Cache(2)), "a cache for a body with both_ways=True"),
                          (lambda: mt.RecurrentModel(mt.ModelConfig(V, 14, 1, 2, 5, 7)), "a ModelConfig for a RecurrentModel"),
                          (lambda: mt.RecurrentModel(config(), head="causal+back"), "a body that is not two towers"),
                          (lambda: Carried()(lm(**BOTH), {}, torch.Generator()), "a state is carried by a recurrent model")):
        with pytest.raises(ValueError, match=message):
            call()
