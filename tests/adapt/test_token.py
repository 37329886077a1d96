"""Labels of words: where they stand among the pieces, and that nothing is lost on the way there and back."""
import random

import pytest
import torch

from minitransfer import samples
from minitransfer.config import ModelConfig
from minitransfer.nn.heads import IGNORE
from minitransfer.nn.model import Model
from minitransfer.tasks import TokenTask, finetune, predict
from minitransfer.tasks.token import TokenBatches, first_pieces
from minitransfer.text import Tokenizer, TruncationWarning, read_rows

QUICK = {"progress": False, "precision": "fp32"}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return read_rows(samples.path("tagged.conll"))


@pytest.fixture(scope="module", params=["wordpiece", "byte_bpe"])
def tok(request, rows) -> Tokenizer:
    return Tokenizer.train([" ".join(row["words"]) for row in rows], kind=request.param, vocab_size=400, max_len=97)


def body(tok: Tokenizer) -> Model:
    return Model(ModelConfig(vocab_size=tok.vocab_size, d_model=36, n_layers=2, n_heads=3, d_ff=59, max_len=97, n_token_types=2), head="none", seed=1)


def test_by_hand():
    # "Mr. O'Hara ran": pieces Mr . O ' Hara r an, between two special tokens
    offsets = [(0, 0), (0, 2), (2, 3), (4, 5), (5, 6), (6, 10), (11, 12), (12, 14), (0, 0)]
    assert first_pieces(["Mr.", "O'Hara", "ran"], offsets) == [1, 3, 6]
    spaced = [(0, 2), (2, 3), (3, 5), (5, 6), (6, 10), (10, 12), (12, 14)]            # byte-level pieces that hold the space before
    assert first_pieces(["Mr.", "O'Hara", "ran"], spaced) == [0, 2, 5]
    assert first_pieces(["a", "\u200b", "b"], [(0, 0), (0, 1), (4, 5), (0, 0)]) == [1, None, 2]


def test_labels_stand_at_first_pieces_and_only_there(tok, rows):
    labels = TokenTask().labels(rows, [])
    batches = TokenBatches([r["words"] for r in rows], [r["tags"] for r in rows], tok, labels, 8, None, 97, seed=3)
    seen = []
    for k in range(len(batches)):
        batch = batches[k]
        for ids, wanted, keep in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            marked = [int(i) for i in ids[wanted != IGNORE]]
            assert not set(marked) & tok.special_ids and (wanted[~keep] == IGNORE).all()
            seen.append([labels[int(i)] for i in wanted[wanted != IGNORE]])
    assert sorted(seen) == sorted(r["tags"] for r in rows)


def test_what_is_cut_off_has_no_label(tok, rows):
    with pytest.warns(TruncationWarning, match="longer than 9") as warned:
        batch = TokenBatches([["one"] * 30, ["two"] * 5], [["X"] * 30, ["O"] * 5], tok, ["O", "X"], 2, None, 9, seed=0)[0]
    special = torch.tensor([[int(i) in tok.special_ids for i in row] for row in batch["input_ids"]])
    assert len(warned) == 1 and batch["input_ids"].shape[1] == 9 and (batch["labels"][special] == IGNORE).all()


def test_it_learns_words_and_reads_them_back(rows, tmp_path):
    """A word's label depends on its first letter: a head on a random body can learn that."""
    draw = random.Random(0)
    words = [f"{a}{b}{c}" for a in "abcd" for b in "eiou" for c in ("n", "ning", "st")]
    made = [{"words": (w := draw.choices(words, k=draw.randint(2, 9))), "tags": ["B-X" if one[0] in "ab" else "O" for one in w]} for _ in range(160)]
    tok = Tokenizer.train([" ".join(row["words"]) for row in made], vocab_size=60, max_len=97)
    result = finetune(body(tok), tok, "token", train=made[:120], validation=made[120:], out=tmp_path, lr=3e-3, epochs=6, batch_size=16, **QUICK)
    assert result.metrics["n"] == sum(len(row["words"]) for row in made[120:]) and result.metrics["accuracy"] >= 0.95
    answers = predict(tmp_path, texts=[row["words"] for row in made[120:]])
    assert [[a.word for a in one] for one in answers] == [row["words"] for row in made[120:]]
    right = sum(a.label == tag for one, row in zip(answers, made[120:], strict=True) for a, tag in zip(one, row["tags"], strict=True))
    assert right / result.metrics["n"] == result.metrics["accuracy"]
    (one,) = predict(tmp_path, texts="dun  ain\tbost")
    assert [a.word for a in one] == ["dun", "ain", "bost"] and all(0.5 <= a.probability <= 1 for a in one)
    assert predict(tmp_path, texts=[["ain", "\u200b", "dun"]])[0][1].label is None
    with pytest.raises(ValueError, match="pairs for a token task"):
        predict(tmp_path, texts=["a"], pairs=["b"])


@pytest.mark.parametrize("train,validation,message", [
    ([{"words": ["a", "b"], "tags": ["O"]}], [], "training row 0: 'words' is .* lists of equal length"),
    ([{"words": "a b", "tags": ["O", "O"]}], [], "training row 0"),
    ([{"words": [], "tags": []}], [], "training row 0"),
    ([{"words": ["a"], "tags": ["O"]}], [{"words": ["a", "b"], "tags": ["O", "B-X"]}], "validation row 0, word row 1 has the unknown label 'B-X'"),
])
def test_bad_rows(train, validation, message):
    with pytest.raises(ValueError, match=message):
        TokenTask().labels(train, validation)
