"""Documents as ids on disk: right, made once, never half."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from minitransfer.text import Tokenizer, cache, tokenize_corpus

TEXTS = [f"document {n} has {'very ' * (n % 5)}few words, and a number {n * n}." for n in range(47)]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(TEXTS, "byte_bpe", 301)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many texts were tokenised, call by call."""
    seen, encode = [], Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: seen.append(len(texts)) or encode(self, texts))
    return seen


def test_the_cache_holds_every_document(tok, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BATCH", 400)                                     # several batches
    found = tokenize_corpus(tok, [*TEXTS[:7], " ", *TEXTS[7:]], cache=tmp_path)
    want = [tok.encode(t, specials=False) for t in TEXTS]
    assert [found.document(i).tolist() for i in range(found.n_documents)] == want
    assert found.n_tokens == sum(map(len, want)) and found.offsets.tolist() == [0, *np.cumsum([len(w) for w in want])]
    assert isinstance(found.ids, np.memmap) and isinstance(found.offsets, np.memmap)


def test_the_second_start_does_not_tokenise(tok, tmp_path, calls):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(TEXTS))
    first = tokenize_corpus(tok, path, cache=tmp_path / "c")
    assert sum(calls) == len(TEXTS)
    os.utime(path, (1, 1))
    path = path.rename(tmp_path / "renamed.txt")
    again = tokenize_corpus(tok, str(path), cache=tmp_path / "c")
    assert sum(calls) == len(TEXTS) and again.folder == first.folder and np.array_equal(again.ids, first.ids) and again.content == first.content


def test_another_text_or_vocabulary_or_reading_is_another_cache(tok, tmp_path, calls):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(TEXTS))
    folders = {tokenize_corpus(tok, path, cache=tmp_path).folder}
    folders.add(tokenize_corpus(tok, path, cache=tmp_path, documents="file").folder)
    folders.add(tokenize_corpus(Tokenizer.train(TEXTS, "byte_bpe", 299), path, cache=tmp_path).folder)
    folders.add(tokenize_corpus(tok, TEXTS, cache=tmp_path).folder)
    folders.add(tokenize_corpus(tok, [*TEXTS[:-2], TEXTS[-2] + TEXTS[-1]], cache=tmp_path).folder)
    path.write_text("\n\n".join(TEXTS).replace("document 9 ", "document 8 "))      # the same length
    folders.add(tokenize_corpus(tok, path, cache=tmp_path).folder)
    assert len(folders) == 6 and len(calls) == 6


@pytest.mark.parametrize("size, dtype", [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_take_two_bytes_where_they_fit(tmp_path, size, dtype):
    tok = Tokenizer.train(["a b"], "byte_bpe", 257)
    tok.backend.add_tokens([f"<{n}>" for n in range(size - tok.vocab_size)])
    tok = Tokenizer(tok.backend, tok.format)
    found = tokenize_corpus(tok, [f"a<{size - 258}>"], cache=tmp_path)
    assert found.ids.dtype == dtype and found.ids[-1] == size - 1


@pytest.mark.parametrize("damage", [lambda f: (f / "tokens.bin").write_bytes(b"12"), lambda f: (f / "offsets.bin").unlink(),
                                    lambda f: (f / "meta.json").write_text("{"),
                                    lambda f: (f / "meta.json").write_text(json.dumps({"dtype": "<u2"}))])
def test_a_damaged_cache_is_made_again(tok, tmp_path, calls, damage):
    first = tokenize_corpus(tok, TEXTS, cache=tmp_path)
    want = first.ids.tolist()
    damage(first.folder)
    assert tokenize_corpus(tok, TEXTS, cache=tmp_path).ids.tolist() == want and len(calls) == 2
    assert [p.name for p in tmp_path.iterdir()] == [first.folder.name]


def test_a_start_that_fails_leaves_nothing(tok, tmp_path, monkeypatch):
    encode, n = Tokenizer.encode_batch, []

    def full(self, texts):
        n.append(1)
        if len(n) == 3:
            raise OSError(28, "No space left on device")
        return encode(self, texts)

    monkeypatch.setattr(cache, "BATCH", 400)
    monkeypatch.setattr(Tokenizer, "encode_batch", full)
    with pytest.raises(OSError, match="No space left"):
        tokenize_corpus(tok, TEXTS, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert tokenize_corpus(tok, TEXTS, cache=tmp_path).n_documents == len(TEXTS)


def test_of_two_processes_the_later_takes_the_earliers_cache(tok, tmp_path, monkeypatch):
    first = tokenize_corpus(tok, TEXTS, cache=tmp_path)
    before = (first.folder / "meta.json").stat().st_ino
    opened, looks = cache.open_cache, []
    # not there yet at its first look
    monkeypatch.setattr(cache, "open_cache", lambda folder: looks.append(1) or (None if len(looks) == 1 else opened(folder)))
    again = tokenize_corpus(tok, TEXTS, cache=tmp_path)
    assert again.folder == first.folder and (again.folder / "meta.json").stat().st_ino == before and len(list(tmp_path.iterdir())) == 1


def test_the_place_of_caches(tok, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tokenize_corpus(tok, TEXTS).folder.parent == tmp_path / "xdg/minitransfer/tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tokenize_corpus(tok, TEXTS).folder.parent == tmp_path / "home/.cache/minitransfer/tokens"


MEASURE = """
import resource, sys
from pathlib import Path
from minitransfer.text import Tokenizer, PackedBatches, tokenize_corpus
folder, name = Path(sys.argv[1]), sys.argv[2]
tok = Tokenizer.from_pretrained(folder / "tok")
tokenize_corpus(tok, folder / "small.txt", cache=folder / "warm", documents="file")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cache = tokenize_corpus(tok, folder / name, cache=folder / "caches", documents="file")
PackedBatches(cache, tok, 128, 8, causal=True)[0]
print(cache.n_tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """One document of 3 MB and one of 24 MB: the growth beyond a first corpus differs by less than half of what the larger file itself would take."""
    tok = Tokenizer.train(TEXTS, "byte_bpe", 600, min_count=1)
    tok.save_pretrained(tmp_path / "tok")
    line = " ".join(TEXTS) + "\n"
    for name, size in (("small.txt", 3 << 20), ("medium.txt", 3_300_000), ("large.txt", 24 << 20)):
        (tmp_path / name).write_text(line * (size // len(line) + 1))
    tokens, growth = {}, {}
    for name in ("medium.txt", "large.txt"):
        out = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path), name], capture_output=True, text=True, check=True,
                             env=os.environ | {"TOKENIZERS_PARALLELISM": "false"})
        tokens[name], growth[name] = map(int, out.stdout.split())
    assert tokens["large.txt"] > 7 * tokens["medium.txt"] > 1e6
    assert growth["large.txt"] - growth["medium.txt"] < 10_000, growth                # KB
