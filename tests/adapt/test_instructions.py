"""Responses and preferences: which tokens are trained, and the loss by hand and in the reference library."""
import copy
import math

import pytest
import tokenizers
import torch

import minitransfer as mt
from minitransfer.generate import generate
from minitransfer.objectives import Causal, Preference, preference
from minitransfer.text import InstructionBatches, PreferenceBatches, Tokenizer, read_instructions
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


def test_what_the_loss_is_on_can_be_seen(tok):
    batches = InstructionBatches(ROWS, tok, batch_size=5)
    end = tok.decode([tok.eos_id], skip_specials=False)
    assert batches.show(batches.rows([1, 3])) == [f"What is tea?\n>>>It is a drink.{end}<<<", f"What is a sparrow?\n>>>It is a small brown bird.{end}<<<"]


def test_the_fields_of_alpaca_dolly_and_preferences():
    rows = read_instructions([{"instruction": "Add.", "input": "1 and 2", "output": "3"}, {"instruction": "Greet.", "input": "", "output": "Hello."},
                              {"instruction": "Who won?", "context": "Ann won.", "response": "Ann", "category": "qa"},
                              {"instruction": "Spell.", "input": "freind", "chosen": "friend", "rejected": "freind"}])
    assert [row["prompt"] for row in rows] == ["Add.\n1 and 2", "Greet.", "Who won?\nAnn won.", "Spell.\nfreind"]
    assert [row.get("response") for row in rows] == ["3", "Hello.", "Ann", None]
    assert rows[2]["category"] == "qa" and (rows[3]["chosen"], rows[3]["rejected"]) == ("friend", "freind")
    with pytest.raises(KeyError, match="row 1 has 'instruction', 'answer' and no response; one is needed, as 'output'"):
        read_instructions([{"instruction": "a", "output": "b"}, {"instruction": "a", "answer": "b"}])
    with pytest.raises(KeyError, match="row 0 has no column 'instruction'"):
        read_instructions([{"prompt": "a", "output": "b"}])


def test_real_instructions_and_preferences(data):
    """In every row of a batch the loss is on the output and the end token, which is GPT-2's padding too, and on nothing else."""
    tok = Tokenizer.from_pretrained(data / "tokenizers/gpt2")
    assert tok.eos_id == tok.filler
    counts = {"alpaca_style_1k.validation.jsonl": 100, "self_instruct_seed.jsonl": 175, "short_instructions.train.jsonl.gz": 899}
    for name, n in counts.items():
        rows = read_instructions(data / "instructions" / name)
        batches = InstructionBatches(rows, tok, batch_size=7, max_length=2048)
        batch = batches.rows(range(20, 27))
        assert len(rows) == n
        for row, ids, labels in zip(rows[20:27], batch["input_ids"], batch["labels"], strict=True):
            trained = ids[labels != -100]
            assert tok.decode(trained[:-1]) == row["output"] and trained[-1] == tok.eos_id and torch.equal(labels[labels != -100], trained)
            asked = row["instruction"] + (f"\n{row['input']}" if row["input"].strip() else "") + "\n"
            assert tok.decode(ids[:int((labels != -100).nonzero()[0])]) == asked
    rows = read_instructions(data / "preferences/train.jsonl.gz")
    batch = PreferenceBatches(rows, tok, max_length=512).rows([3, 5])
    answers = [tok.decode(ids[labels != -100][:-1]) for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
    assert len(rows) == 999 and answers == [rows[i][which] for which in ("chosen", "rejected") for i in (3, 5)]


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


def test_the_preference_loss_on_fixed_log_probabilities(monkeypatch):
    """-log sigmoid(0.1 ((-10 + 11) - (-12 + 11.5))) and the like of a second pair, worked out by hand."""
    policy, before = torch.tensor([-10.0, -7.0, -12.0, -6.0]), torch.tensor([-11.0, -8.0, -11.5, -5.0])      # chosen, chosen, rejected, rejected
    reference, model = (mt.Model(mt.ModelConfig(vocab_size=11, d_model=6, n_layers=1, n_heads=2, d_ff=7, max_len=5)) for _ in range(2))
    monkeypatch.setattr(preference, "log_likelihood", lambda asked, batch: before if asked is reference else policy)
    total, n = Preference(reference, beta=0.1)(model, {"input_ids": torch.zeros(4, 3)}, GENERATOR)
    assert n == 2 and total.item() == pytest.approx(math.log1p(math.exp(-0.15)) + math.log1p(math.exp(-0.2)), rel=1e-6)


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


def test_the_tokens_that_begin_a_text_begin_a_prompt(tok):
    """As LLaMA's <s>: what `tok` puts before a text when it is asked, and nothing of what it puts behind."""
    marked = Tokenizer(tokenizers.Tokenizer.from_str(tok.backend.to_str()), tok.format)
    end = tok.tokens([tok.eos_id])[0]
    marked.backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{end} $A {end}", special_tokens=[(end, tok.eos_id)])
    asked = marked.encode(ROWS[0]["prompt"] + "\n")
    for batch in (InstructionBatches(ROWS[:1], marked, batch_size=1), PreferenceBatches([{**ROWS[0], "chosen": "yes", "rejected": "no"}], marked, batch_size=1)):
        row = batch.rows([0])
        n = len(asked) - 1
        assert row["input_ids"][0, :n].tolist() == asked[:-1] and row["labels"][0, :n].eq(-100).all() and row["labels"][0, n] != -100
