"""What is hidden, what is asked, and that the loss is what one gets by hand."""
from __future__ import annotations

import math

import pytest
import torch

from minitransfer.nn.heads import IGNORE
from minitransfer.objectives import Causal, Masked
from minitransfer.text import Tokenizer

from .small import V, bert, gpt

TEXTS = ["the unbelievable weathermen are forecasting uninterrupted thunderstorms", "nobody understood the misunderstanding, unfortunately!",
         "playing, played and player share the beginning of a word: play"] * 7


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=90)


def drawn(tok: Tokenizer, rows: int = 2000, T: int = 101, seed: int = 0, **settings):
    """Random ordinary ids with a few special ones and padding, and what Masked makes of them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(tok.vocab_size, (rows, T), generator=generator)
    keep = torch.arange(T) < torch.randint(1, T + 1, (rows, 1), generator=generator)
    inputs, labels = Masked(tok, **settings).draw(ids, keep, generator)
    special = torch.isin(ids, torch.tensor(sorted(tok.special_ids)))
    return ids, keep & ~special, inputs, labels


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_fifteen_percent_and_eighty_ten_ten(tok, probability):
    ids, ordinary, inputs, labels = drawn(tok, probability=probability)
    chosen = labels != IGNORE
    assert not (chosen & ~ordinary).any()                                        # never a special token, never padding
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(inputs[~chosen], ids[~chosen])
    n, k = int(ordinary.sum()), int(chosen.sum())
    replaced = chosen & (inputs != ids) & (inputs != tok.mask_id)
    kinds = {"chosen": (k, n, probability), "masked": (int((chosen & (inputs == tok.mask_id)).sum()), k, 0.8),
             "random": (int(replaced.sum()), k, 0.1 * (1 - 1 / (tok.vocab_size - len(tok.special_ids))))}   # a random token may be the same one
    for what, (count, of, p) in kinds.items():
        assert abs(count - p * of) < 4.5 * math.sqrt(of * p * (1 - p)), what
    assert not torch.isin(inputs[replaced], torch.tensor(sorted(tok.special_ids))).any()
    assert len(inputs[replaced].unique()) == tok.vocab_size - len(tok.special_ids)


def test_masks_are_a_function_of_the_generator(tok):
    assert all(torch.equal(a, b) for a, b in zip(drawn(tok, seed=3), drawn(tok, seed=3), strict=True))
    assert not torch.equal(drawn(tok, seed=3)[3], drawn(tok, seed=4)[3])


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "unigram"])
def test_whole_words_are_hidden_whole(kind):
    """The truth is the tokenizer's own numbering of words, which knows nothing of ## or Ġ."""
    tok = Tokenizer.train(TEXTS, kind=kind, vocab_size=90 if kind == "wordpiece" else 300)
    tok.mask_id = tok.mask_id or 0
    texts = [text.replace(",", "").replace("!", "").replace(":", "") for text in TEXTS]
    batch, words = tok(texts), [e.word_ids for e in tok.encodings(texts)]
    seen = set()
    for seed in range(20):
        labels = Masked(tok, 0.5, whole_word=True).draw(batch["input_ids"], batch["attention_mask"], torch.Generator().manual_seed(seed))[1]
        for row, ids in zip(labels, words, strict=True):
            fates: dict[int, set] = {}
            for label, word in zip(row.tolist(), ids, strict=False):
                if word is not None:
                    fates.setdefault(word, set()).add(label == IGNORE)
            assert all(len(fate) == 1 for fate in fates.values())
            seen |= {(sum(w == word for w in ids) > 1, fate.copy().pop()) for word, fate in fates.items()}
    assert seen == {(False, False), (False, True), (True, False), (True, True)}   # words of one piece and of several, hidden and not


def test_a_piece_after_a_special_token_starts_a_word(tok):
    """A row may begin in the middle of a word; its first piece must not share the fate of [CLS], which is never hidden."""
    inside = next(i for i, token in enumerate(tok.tokens(range(tok.vocab_size))) if token.startswith("##"))
    ids = torch.tensor([[tok.cls_id, inside, inside, tok.sep_id, inside]])
    assert Masked(tok, whole_word=True).words(ids, ids == inside).tolist() == [[0, 1, 1, 2, 3]]


def test_the_masked_loss_is_the_cross_entropy_at_hidden_positions(tok):
    model = bert(vocab_size=tok.vocab_size, max_len=101, dropout=0.0).double().eval()
    batch = tok(TEXTS)
    objective = Masked(tok)
    total, n = objective(model, batch, torch.Generator().manual_seed(5))
    inputs, labels = objective.draw(batch["input_ids"], batch["attention_mask"], torch.Generator().manual_seed(5))
    logits = model(inputs, attention_mask=batch["attention_mask"], token_type_ids=batch["token_type_ids"]).logits
    rows, columns = (labels != IGNORE).nonzero(as_tuple=True)
    wanted = -logits.log_softmax(-1)[rows, columns, labels[rows, columns]].sum()
    assert n == len(rows) > 10
    torch.testing.assert_close(total, wanted, atol=1e-9, rtol=1e-9)


def test_the_causal_loss_of_a_packed_row_is_that_of_its_texts_alone():
    model, generator = gpt(dropout=0.0).double().eval(), torch.Generator()
    a, b, c = (torch.randint(V, (1, n)) for n in (5, 7, 1))
    packed = {"input_ids": torch.cat([a, b, c, torch.zeros(1, 3, dtype=torch.long)], 1), "document_ids": torch.tensor([[0] * 5 + [1] * 7 + [2] + [-1] * 3])}
    total, n = Causal()(model, packed, generator)
    alone = [-model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum() for ids in (a, b, c)]
    assert n == 4 + 6 + 0
    torch.testing.assert_close(total, sum(alone), atol=1e-9, rtol=1e-9)
    left = {"input_ids": torch.cat([torch.zeros(1, 4, dtype=torch.long), a], 1), "attention_mask": torch.tensor([[False] * 4 + [True] * 5])}
    total, n = Causal()(model, left, generator)
    assert n == 4
    torch.testing.assert_close(total, alone[0], atol=1e-9, rtol=1e-9)


def test_a_batch_may_ask_only_for_some_tokens():
    model, ids = gpt(dropout=0.0).double().eval(), torch.randint(V, (1, 9))
    labels = ids.masked_fill(torch.arange(9) < 6, IGNORE)
    total, n = Causal()(model, {"input_ids": ids, "labels": labels}, torch.Generator())
    wanted = -model(ids).logits[0, 5:8].log_softmax(-1).gather(1, ids[0, 6:, None]).sum()
    assert n == 3
    torch.testing.assert_close(total, wanted, atol=1e-9, rtol=1e-9)


def test_objectives_refuse_what_they_cannot_ask(tok):
    with pytest.raises(ValueError, match="a tokenizer without a mask token"):
        Masked(Tokenizer.train(TEXTS, kind="byte_bpe", vocab_size=300))
    with pytest.raises(ValueError, match=r"probability=1.5; it is the share of tokens to hide"):
        Masked(tok, 1.5)
    characters = Tokenizer.train(TEXTS, kind="character")
    characters.mask_id = 0
    with pytest.raises(ValueError, match="whole_word=True with a vocabulary in which no token starts with"):
        Masked(characters, whole_word=True)
    with pytest.raises(ValueError, match="a model without a head"):
        Causal()(gpt().set_head("none"), {"input_ids": torch.zeros(1, 3, dtype=torch.long)}, torch.Generator())
