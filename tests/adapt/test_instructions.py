"""Responses and preferences: which tokens are trained, and the loss by hand and in the reference library."""
import copy

import pytest
import torch

import minitransfer as mt
from minitransfer.generate import generate
from minitransfer.objectives import Causal, Preference
from minitransfer.text import InstructionBatches, PreferenceBatches, Tokenizer
from minitransfer.training import train
from minitransfer.training.settings import TrainSettings

GENERATOR = torch.Generator()
ROWS = [{"prompt": f"What is {name}?", "response": f"It is {kind}.", "chosen": f"It is {kind}.", "rejected": "It is a stone, or nothing at all."}
        for name, kind in (("a fir", "a tree"), ("tea", "a drink"), ("red", "a colour"), ("a sparrow", "a small brown bird"), ("May", "a month"))]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    texts = [" ".join(row.values()) for row in ROWS]
    return Tokenizer.train(texts, kind="byte_bpe", vocab_size=320, max_len=61)


def decoder(tok: Tokenizer, seed: int = 0) -> mt.Model:
    return mt.Model(mt.ModelConfig(vocab_size=tok.vocab_size, d_model=36, n_layers=2, n_heads=3, d_ff=59, max_len=61, norm_position="pre", norm_eps=1e-5,
                                   activation="gelu_tanh", causal=True, n_token_types=0, embed_norm=False, final_norm=True, pooler=False, dropout=0.0), "causal", seed=seed)


def test_the_loss_is_on_the_response_and_its_end(tok):
    """The end token has the id of padding here: all three kinds of it stand in one batch."""
    batches = InstructionBatches(ROWS, tok, batch_size=5)
    batch = batches.rows(range(5))
    assert tok.filler == tok.eos_id
    for row, ids, labels, keep in zip(ROWS, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        before, after = (tok.encode(t, specials=False) for t in (row["prompt"] + "\n", row["response"]))
        assert ids[keep].tolist() == [*before, *after, tok.eos_id]
        assert labels[keep].tolist() == [-100] * len(before) + [*after, tok.eos_id]
        assert (labels[~keep] == -100).all() and (ids[~keep] == tok.eos_id).all()
    assert (~batch["attention_mask"]).any()


def test_the_sum_is_that_of_the_response_alone(tok):
    model, batch = decoder(tok).eval(), InstructionBatches(ROWS, tok, batch_size=5).rows(range(5))
    total, n = Causal()(model, batch, GENERATOR)
    log_p, count = 0.0, 0
    for row in ROWS:
        before, after = tok.encode(row["prompt"] + "\n", specials=False), [*tok.encode(row["response"], specials=False), tok.eos_id]
        logits = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        log_p += sum(logits[len(before) + i - 1, t].item() for i, t in enumerate(after))
        count += len(after)
    assert int(n) == count and total.item() == pytest.approx(-log_p, rel=1e-5)


@pytest.mark.slow
def test_a_tuned_model_answers_and_stops(tok):
    model = decoder(tok)
    train(model, InstructionBatches(ROWS, tok, batch_size=5), Causal(), TrainSettings(steps=120, lr=5e-3, precision="fp32", progress=False))
    for row in ROWS:
        ids = tok.collate([tok.encode(row["prompt"] + "\n", specials=False)])["input_ids"]
        made = generate(model, ids, max_new_tokens=20, stop=[tok.eos_id], precision="fp32")[0, ids.shape[1]:].tolist()
        assert tok.decode(made[:made.index(tok.eos_id)]) == row["response"]


def test_cut_responses_have_no_end_and_are_counted(tok):
    with pytest.warns(UserWarning, match="1 of 5 responses lost their ends to fit into"):
        longest = max(len(tok.encode(r["prompt"] + "\n" + r["response"], specials=False)) for r in ROWS)
        batches = InstructionBatches(ROWS, tok, batch_size=5, max_length=longest)
    cut = [labels[labels != -100][-1] != tok.eos_id for labels in batches.rows(range(5))["labels"]]
    assert sum(cut) == 1


def test_preference_is_its_formula(tok):
    reference, model = decoder(tok, 1), decoder(tok, 2)
    batch = PreferenceBatches(ROWS, tok, batch_size=3).rows([0, 2, 4])
    assert batch["input_ids"].shape[0] == 6
    total, n = Preference(reference, beta=0.3)(model, batch, GENERATOR)

    def log_p(m, row, which):
        before, after = tok.encode(row["prompt"] + "\n", specials=False), [*tok.encode(row[which], specials=False), tok.eos_id]
        logits = m(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        return sum(logits[len(before) + i - 1, t] for i, t in enumerate(after))

    expected = 0.0
    for i in (0, 2, 4):
        margin = sum(sign * (log_p(model.eval(), ROWS[i], which) - log_p(reference, ROWS[i], which)) for which, sign in (("chosen", 1), ("rejected", -1)))
        expected += -torch.log(torch.sigmoid(0.3 * margin))
    assert n == 3
    torch.testing.assert_close(total.double(), expected, atol=1e-4, rtol=1e-5)


def test_the_chosen_response_becomes_likelier(tok):
    model = decoder(tok)
    reference, batches = copy.deepcopy(model), PreferenceBatches(ROWS, tok, batch_size=5)
    objective = Preference(reference)
    assert objective(model, batches[0], GENERATOR)[0].item() == pytest.approx(5 * 0.693147, rel=1e-4)      # log 2 at the start
    before = {name: p.clone() for name, p in reference.named_parameters()}
    train(model, batches, objective, TrainSettings(steps=40, lr=2e-3, precision="fp32", progress=False))
    assert objective(model, batches[0], GENERATOR)[0].item() < 0.5
    assert all(torch.equal(p, before[name]) for name, p in reference.named_parameters())


def test_refused(tok):
    bert_like = Tokenizer.train(["a b c d e f g"], kind="wordpiece", vocab_size=40, min_count=1)
    with pytest.raises(ValueError, match="a tokenizer without an end token"):
        InstructionBatches(ROWS, bert_like, batch_size=2)
    with pytest.raises(ValueError, match="row 1 has an empty 'response'"):
        InstructionBatches([ROWS[0], {"prompt": "a", "response": ""}], tok, batch_size=2)
    with pytest.raises(ValueError, match=r"row 0 has a prompt of \d+ tokens, and a row holds 4"):
        InstructionBatches(ROWS, tok, batch_size=2, max_length=4)
    with pytest.raises(ValueError, match="beta=0; it weighs the distance"):
        Preference(decoder(tok), beta=0)
    batch = {name: t[:3] for name, t in PreferenceBatches(ROWS, tok).rows(range(2)).items()}
    with pytest.raises(ValueError, match="a batch of 3 rows; it holds pairs"):
        Preference(decoder(tok))(decoder(tok), batch, GENERATOR)
    with pytest.raises(ValueError, match='a model with head "none"; responses are scored by a causal head'):
        Preference(decoder(tok))(mt.Model(decoder(tok).config), PreferenceBatches(ROWS, tok).rows(range(2)), GENERATOR)
