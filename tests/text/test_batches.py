"""Batches of labelled rows: all of them, of similar length, within the budget, in an order that (seed, epoch) decides."""
import numpy as np
import pytest
import torch

from minitransfer.text import LabelledBatches, Tokenizer, TruncationWarning
from minitransfer.text.batches import bucket

LABELS = ["neg", "pos", "none"]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    generator = np.random.default_rng(1)
    sizes = np.minimum(generator.geometric(0.06, 397), 90)
    return [{"id": n, "text": f"r{n} " + "word " * int(size), "other": f"more {n}", "label": LABELS[n % 3]} for n, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def tok(rows) -> Tokenizer:
    return Tokenizer.train([row["text"] + row["other"] for row in rows], "wordpiece", 200, max_len=512)


SIZES = [{"batch_size": 16}, {"batch_size": 397}, {"batch_size": 1000}, {"max_tokens": 600}, {"max_tokens": 97}]


@pytest.mark.parametrize("size", SIZES)
def test_every_row_comes_once_an_epoch_as_the_tokenizer_gives_it(rows, tok, size):
    batches = LabelledBatches(rows, tok, LABELS, seed=5, **size)
    want = {tuple(tok.encode(row["text"])): LABELS.index(row["label"]) for row in rows}
    assert len(want) == len(rows)
    for epoch in (0, 3):
        seen = {}
        for k in range(epoch * len(batches), (epoch + 1) * len(batches)):
            batch = batches[k]
            assert batch["attention_mask"].any(0).all() and (batch["token_type_ids"] == 0).all()      # no column is padding alone
            for ids, keep, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
                assert tuple(ids[keep].tolist()) not in seen
                seen[tuple(ids[keep].tolist())] = int(label)
        assert seen == want


@pytest.mark.parametrize("size", SIZES)
def test_sizes_keep_to_the_budget_and_waste_little(rows, tok, size):
    batches = LabelledBatches(rows, tok, LABELS, **size)
    shapes = [batches[k]["input_ids"].shape for k in range(2 * len(batches))]
    real = 2 * sum(len(tok.encode(row["text"])) for row in rows)
    if "batch_size" in size:
        assert len(batches) == -(-len(rows) // size["batch_size"]) and max(rows_ for rows_, _ in shapes) == min(size["batch_size"], len(rows))
    else:
        assert max(a * b for a, b in shapes) <= size["max_tokens"]
    if size in ({"batch_size": 16}, {"max_tokens": 600}):
        assert real / sum(a * b for a, b in shapes) > 0.8                                     # in the order of the file: about 0.35
        if "max_tokens" in size:
            assert len(batches) < 1.35 * real / 2 / size["max_tokens"]


def test_a_batch_is_a_function_of_seed_and_number(rows, tok):
    one, other, third = (LabelledBatches(rows, tok, LABELS, batch_size=8, seed=seed) for seed in (5, 5, 6))
    n = len(one)
    for k in (2 * n + 1, 0, n - 1, 5 * n):
        assert all(torch.equal(one[k][key], other[k][key]) for key in one[k])

    def members(batches, epoch):
        return [frozenset(map(tuple, batches[epoch * n + k]["input_ids"].tolist())) for k in range(n)]

    first, second = members(one, 0), members(one, 1)
    assert first != second and len(set(first) & set(second)) < n / 2                          # other neighbours, not only another order
    assert members(third, 0) != first and len(list(one)) == n


def test_in_order_gives_the_rows_as_they_came(rows, tok):
    for size in ({"batch_size": 16}, {"max_tokens": 600}):
        batches = list(LabelledBatches(rows, tok, LABELS, **size).in_order())
        found = [ids[keep].tolist() for batch in batches for ids, keep in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        assert found == [tok.encode(row["text"]) for row in rows]
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == [n % 3 for n in range(len(rows))]
        assert max(batch["input_ids"].numel() for batch in batches) <= size.get("max_tokens", 1e9)


def test_pairs_and_other_columns(rows, tok):
    renamed = [{"a": row["text"], "b": row["other"], "y": n % 2} for n, row in enumerate(rows)]
    batches = LabelledBatches(renamed, tok, ["0", "1"], text="a", pair="b", label="y", batch_size=7)
    batch, want = next(batches.in_order()), tok([r["text"] for r in rows[:7]], [r["other"] for r in rows[:7]])
    assert all(torch.equal(batch[key], want[key]) for key in want) and batch["token_type_ids"].any()
    assert batch["labels"].tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_long_texts_are_cut_with_one_warning(rows, tok):
    with pytest.warns(TruncationWarning, match="of 397 texts are longer than 20 tokens") as caught:
        batches = LabelledBatches(rows, tok, LABELS, batch_size=16, max_length=20)
    assert len(caught) == 1 and max(batch["input_ids"].shape[1] for batch in batches) == 20


def test_buckets_are_at_most_a_quarter_too_wide():
    lengths = np.arange(1, 2000)
    widths = bucket(lengths)
    assert (widths >= lengths).all() and (np.diff(widths) >= 0).all() and (bucket(widths) == widths).all()
    assert ((widths - lengths) < np.maximum(8, lengths / 4 + 1)).all()
    assert widths[[0, 7, 8, 30, 63, 64, 127, 128]].tolist() == [8, 8, 16, 32, 64, 80, 128, 160]


def test_rows_of_one_label_are_suspicious(rows, tok):
    sorted_rows = sorted(rows, key=lambda row: row["label"])
    with pytest.warns(UserWarning, match=r"all 50 rows have the label 'neg': .* sorted by label; draw them with sample_rows\(rows, n, by"):
        LabelledBatches(sorted_rows[:50], tok, LABELS, batch_size=4)


def test_mistakes(rows, tok):
    byte = Tokenizer.train(["a b"], "byte_bpe", 257)
    one = {"text": "a", "label": "pos"}
    for call, error, said in [
        (lambda: LabelledBatches(rows, tok, LABELS), ValueError, "batch_size=None, max_tokens=None; exactly one of them is needed, 1 or more"),
        (lambda: LabelledBatches(rows, tok, LABELS, batch_size=3, max_tokens=99), ValueError, "batch_size=3, max_tokens=99; exactly one"),
        (lambda: LabelledBatches(rows, tok, LABELS, batch_size=0), ValueError, "batch_size=0, max_tokens=None; exactly one"),
        (lambda: LabelledBatches([], tok, LABELS, batch_size=1), ValueError, "no rows; at least one is needed: check the file or the filter"),
        (lambda: LabelledBatches([one, {"text": "b", "label": "neutral"}], tok, LABELS, batch_size=1), ValueError,
         "row 1 has the label 'neutral'; the classes are 'neg', 'pos', 'none': mend the row, or name every label"),
        (lambda: LabelledBatches([one, {"txt": "b", "label": "pos"}], tok, LABELS[1:2], batch_size=1), KeyError,
         r"row 1 has no column 'text'; it has 'txt', 'label': did you mean 'txt'\?"),
        (lambda: LabelledBatches([one, {"text": None, "label": "neg"}], tok, LABELS, batch_size=1), ValueError, r"texts\[1\] is None \(NoneType\)"),
        (lambda: LabelledBatches([one, {"text": "", "label": "neg"}], byte, LABELS, batch_size=1), ValueError, "the 'text' of row 1 has no token; .*: leave empty texts out"),
        (lambda: LabelledBatches(rows, tok, LABELS, max_tokens=50), ValueError, "tokens; a batch holds max_tokens=50: use a larger"),
    ]:
        with pytest.raises(error, match=said):
            call()
