"""Packed rows against a plain packer written out here, and against the model: no document sees another."""
import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer.text import PackedBatches, Tokenizer, tokenize_corpus

LENGTH = 31


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = np.random.default_rng(3)
    sizes = [*generator.integers(1, 60, 83), 1, 1, 2, 211, 31, 29, 30, 1, 28, 97]
    return [" ".join(f"{word:x}" for word in generator.integers(0, 90, n)) for n in sizes]


@pytest.fixture(scope="module")
def toks(texts) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(texts, kind, 300) for kind in ("wordpiece", "byte_bpe", "bpe")}


@pytest.fixture(scope="module")
def make(texts, toks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")

    def packed(kind: str, causal: bool, batch_size: int = 5, seed: int = 7, length: int = LENGTH) -> PackedBatches:
        return PackedBatches(tokenize_corpus(toks[kind], texts, cache=folder), toks[kind], length, batch_size, seed, causal)
    return packed


def rows_by_hand(tok: Tokenizer, texts: list[str], causal: bool, least: int) -> list[list[list[int]]]:
    """Rows as lists of pieces, one document and one piece at a time."""
    around = 0 if causal else 2
    rows, room = [], 0
    for text in texts:
        rest = tok.encode(text, specials=False)
        if causal:
            rest = [tok.bos_id] * (tok.bos_id != tok.eos_id) + rest + [tok.eos_id]
        first = True
        while rest:
            if not rows or room - around < (min(least, len(rest)) if first else 1):
                rows.append([])
                room = LENGTH
            piece, rest, first = rest[:room - around], rest[room - around:], False
            rows[-1].append(piece if causal else [tok.cls_id, *piece, tok.sep_id])
            room -= len(piece) + around
    return rows


CASES = [("wordpiece", False), ("byte_bpe", True), ("bpe", True), ("bpe", False)]


@pytest.mark.parametrize("kind, causal", CASES)
def test_rows_are_those_of_a_plain_packer(make, toks, texts, kind, causal):
    packed, want = make(kind, causal), rows_by_hand(toks[kind], texts, causal, 1 if causal else 8)
    assert packed.n_rows == len(want) > 30
    for row, pieces in enumerate(want):
        batch = packed.rows([row])
        ids = [i for piece in pieces for i in piece]
        n = len(ids)
        assert batch["input_ids"][0, :n].tolist() == ids
        assert batch["document_ids"][0].tolist() == [d for d, piece in enumerate(pieces) for _ in piece] + [-1] * (LENGTH - n)
        assert batch["position_ids"][0].tolist() == [p for piece in pieces for p in range(len(piece))] + [0] * (LENGTH - n)
        assert ("attention_mask" in batch) == (n < LENGTH)
        if n < LENGTH:
            assert batch["attention_mask"][0].tolist() == [True] * n + [False] * (LENGTH - n)


@pytest.mark.parametrize("kind, causal", CASES)
def test_an_epoch_holds_every_token_once(make, toks, texts, kind, causal):
    packed, tok = make(kind, causal), toks[kind]
    bare = sorted(i for text in texts for i in tok.encode(text, specials=False))
    ends = 0
    for epoch in (0, 2):
        batches = [packed[k] for k in range(epoch * len(packed), (epoch + 1) * len(packed))]
        seen = [batch["input_ids"][batch["document_ids"] >= 0] for batch in batches]
        ids = torch.cat(seen).tolist()
        assert sorted(i for i in ids if i not in tok.special_ids) == bare
        ends = sum(i == (tok.eos_id if causal else tok.sep_id) for i in ids)
    assert ends == len(texts) if causal else ends >= len(texts)


def test_little_is_padded(make):
    for kind, causal in CASES:
        packed = make(kind, causal)
        share = np.mean([(packed.rows([r])["document_ids"] < 0).float().mean().item() for r in range(packed.n_rows - 1)])
        assert share == 0 if causal else share < 0.12


def test_a_batch_is_a_function_of_seed_and_number(make):
    one, other, third = make("byte_bpe", True), make("byte_bpe", True), make("byte_bpe", True, seed=8)
    n = len(one)
    assert n == -(-one.n_rows // 5) and sum(len(b["input_ids"]) for b in one) == one.n_rows
    for k in (n + 1, 3 * n, 2, n - 1, 0):                                        # in any order, as a resumed run asks
        assert all(torch.equal(one[k][key], other[k][key]) for key in one[k])
    assert not torch.equal(one[0]["input_ids"], one[n]["input_ids"]) and not torch.equal(one[0]["input_ids"], third[0]["input_ids"])
    assert torch.equal(one.rows([4, 2])["input_ids"], torch.cat([one.rows([4])["input_ids"], one.rows([2])["input_ids"]]))


def test_documents_longer_than_many_rows_and_chunks_of_the_plan(tmp_path):
    tok = Tokenizer.train(["x y"], "byte_bpe", 257)
    cache = tokenize_corpus(tok, ["x" * 100_003, "y" * 17], cache=tmp_path)
    packed = PackedBatches(cache, tok, 64, 1, causal=True)
    whole = packed.rows(range(packed.n_rows))
    assert whole["input_ids"][whole["document_ids"] >= 0].tolist() == [tok.vocab["x"]] * 100_003 + [tok.eos_id] + [tok.vocab["y"]] * 17 + [tok.eos_id]


def sized(tok: Tokenizer, causal: bool) -> mt.Model:
    config = mt.ModelConfig(vocab_size=tok.vocab_size, d_model=20, n_layers=2, n_heads=5, d_ff=23, max_len=LENGTH, causal=causal, dropout=0.0,
                            norm_eps=1e-6, norm_position="pre" if causal else "post", activation="gelu", embed_norm=not causal, final_norm=causal, pooler=False)
    model = mt.Model(config, head="causal" if causal else "masked", seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.mark.parametrize("kind, causal", [("wordpiece", False), ("byte_bpe", True)])
def test_no_document_sees_another(make, toks, kind, causal):
    """Logits of each piece are those of the piece alone, bit for bit unmoved when another document of the row is changed."""
    packed, model = make(kind, causal), sized(toks[kind], causal)
    row = next(r for r in range(packed.n_rows) if packed.rows([r])["document_ids"].max() >= 2)
    batch = packed.rows([row])
    with torch.no_grad():
        logits = model(**batch).logits[0]
        for n in range(int(batch["document_ids"].max()) + 1):
            piece = batch["document_ids"][0] == n
            alone = model(batch["input_ids"][:, piece]).logits[0]
            torch.testing.assert_close(logits[piece], alone, atol=1e-5, rtol=1e-5)
        other = batch["document_ids"] == 0
        changed = model(**batch | {"input_ids": torch.where(other, toks[kind].vocab_size - 1, batch["input_ids"])}).logits[0]
    assert torch.equal(changed[~other[0]], logits[~other[0]]) and not torch.equal(changed[other[0]], logits[other[0]])


def test_mistakes(make, toks, texts, tmp_path):
    cache = tokenize_corpus(toks["wordpiece"], texts, cache=tmp_path)
    byte = tokenize_corpus(toks["byte_bpe"], texts, cache=tmp_path)
    for call, said in [
        (lambda: PackedBatches(cache, toks["byte_bpe"], 16, 2), "was tokenised by another tokenizer: call tokenize_corpus with"),
        (lambda: PackedBatches(cache, toks["wordpiece"], 16, 2, causal=True), "no eos token; packing for causal=True .*: use a masked objective"),
        (lambda: PackedBatches(byte, toks["byte_bpe"], 16, 2), "no cls and no sep token; packing for causal=False .*: use the causal objective"),
        (lambda: PackedBatches(cache, toks["wordpiece"], 2, 2), "length=2, batch_size=2: a row needs 3 tokens or more, a batch at least one row"),
        (lambda: PackedBatches(cache, toks["wordpiece"], 9, 0), "length=9, batch_size=0"),
    ]:
        with pytest.raises(ValueError, match=said):
            call()
