"""What a document is, for every kind of source, and what happens to files that are none."""
import gzip
import json
from pathlib import Path

import datasets
import pytest

from minitransfer.text import Tokenizer, corpus, pydoc_corpus, read_pydoc, read_rows, read_texts, tokenize_corpus
from minitransfer.text.pydoc_corpus import pydoc_files

STORY = "One first line\nstill one\n\n \nTwo\n   \n\nThree, last\n"


def write(path: Path, text: str) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_documents_of_a_text_file(tmp_path, name):
    path = write(tmp_path / name, STORY)
    assert list(read_texts(path)) == ["One first line\nstill one", "Two", "Three, last"]
    assert list(read_texts(str(path), documents="line")) == ["One first line", "still one", "Two", "Three, last"]
    assert list(read_texts(path, documents="file")) == [STORY[:-1]]


def test_line_ends_and_the_byte_order_mark_are_no_text(tmp_path):
    path = write(tmp_path / "dos.txt", "\ufeffOne\r\nmore\r\n\r\nTwo\r\n")
    assert list(read_texts(path)) == ["One\nmore", "Two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path, name):
    path = write(tmp_path / name, '{"text": "one\\n\\nwhole", "body": "b1"}\n\n{"text": " ", "body": "b2"}\n{"text": "three", "body": "b3"}\n')
    assert list(read_texts(path)) == ["one\n\nwhole", "three"]
    assert list(read_texts(path, field="body")) == ["b1", "b2", "b3"]


def test_folders_lists_and_datasets(tmp_path):
    for name, text in (("b.txt", "b1\n\nb2"), ("sub/a.jsonl", '{"text": "json"}'), ("a.txt.gz", "a1"), ("notes.md", "no"), (".hidden.txt", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, text)
    assert list(read_texts(tmp_path)) == ["a1", "b1", "b2", "json"]
    assert list(read_texts([tmp_path / "b.txt", tmp_path / "sub"])) == ["b1", "b2", "json"]
    assert list(read_texts(["x\n\ny\n", "", "z"])) == ["x\n\ny\n", "z"]                  # texts in a list are documents as they are
    table = datasets.Dataset.from_dict({"text": ["one", "", "two"], "label": [0, 1, 0]})
    assert list(read_texts(table)) == ["one", "two"]
    table.save_to_disk(tmp_path / "saved")
    assert list(read_texts(tmp_path / "saved")) == ["one", "two"]


def test_wikitext_keeps_every_word(data):
    """An independent count: words of the file, and documents as blank lines separate them."""
    text = gzip.open(data / "wikitext2/validation.txt.gz", "rt", encoding="utf-8").read()
    documents = list(read_texts(data / "wikitext2/validation.txt.gz"))
    assert " ".join(documents).split() == text.split()
    blocks, inside = 0, False
    for line in text.split("\n"):
        blocks, inside = blocks + (bool(line.strip()) and not inside), bool(line.strip())
    assert len(documents) == blocks > 1000


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "bpe", "unigram", "character"])
def test_a_document_in_parts_has_the_tokens_of_the_whole(tmp_path, monkeypatch, kind):
    text = "\n".join(f"Line {n}  of the  play,\n\n\t isn't it? {'word ' * (n % 13)} 中文 {n * n}\r\n " for n in range(120))
    tok = Tokenizer.train([text], kind, 90 if kind == "unigram" else 400)
    for block in (37, 256, 4099):
        monkeypatch.setattr(corpus, "BLOCK", block)
        assert len(list(corpus.read_parts([text]))) > len(text) / block / 6
        assert "".join(part for part, _ in corpus.read_parts([text])) == text
        cache = tokenize_corpus(tok, [text, "the end"], cache=tmp_path / str(block))
        assert cache.document(0).tolist() == tok.encode(text, specials=False) and cache.n_documents == 2, block
    path = write(tmp_path / "play.txt", text)
    assert tokenize_corpus(tok, path, cache=tmp_path, documents="file").ids.tolist() == tok.encode(text.replace("\r\n", "\n"), specials=False)


def test_where_parts_end(monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 5)
    assert list(corpus.read_parts(["aaaa bbbb    ", "  "])) == [("aaaa bbbb", False), ("    ", True)]
    one, two = (corpus.content_hash(texts, "text", "file") for texts in (["aaaaaa bbbb"], ["aaaaaa", " bbbb"]))
    assert one != two                                                            # the same parts, but one document or two
    assert list(corpus.read_parts(["x" * 60, "\n" * 60 + "a"])) == [("x" * 60, True), ("\n" * 60 + "a", True)]


def test_pydoc_is_the_standard_librarys_prose():
    import inspect
    import json.decoder
    rows = read_pydoc(["json", "argparse", "textwrap"])
    labels = [row["label"] for row in rows]
    assert labels == sorted(labels) and set(labels) == {"argparse", "json", "textwrap"}
    found = {row["name"]: row["text"] for row in rows}
    assert found["json"] == inspect.getdoc(json).strip() and found["json.decoder.JSONDecoder"] == inspect.getdoc(json.decoder.JSONDecoder)
    assert found["json.decoder.JSONDecoder.raw_decode"] == inspect.getdoc(json.decoder.JSONDecoder.raw_decode)
    assert all(len(row["text"]) >= 40 for row in rows)
    assert read_pydoc(["json"], shortest=400) == [row for row in rows if row["label"] == "json" and len(row["text"]) >= 400]
    names = [path.as_posix() for path in pydoc_files()]
    assert names == sorted(names) and len(names) > 300 and not any("/test/" in n or "site-packages" in n for n in names)
    with pytest.raises(ValueError, match="no docstrings of 'jsn' in this Python's library; modules written in Python are needed: name some"):
        read_pydoc(["json", "jsn"])


def test_pydoc_is_a_corpus_of_modules_and_starts_at_once_the_second_time(tmp_path, monkeypatch):
    files = [path for path in pydoc_files() if path.name == "argparse.py" or path.parent.name == "json"]
    for room in (corpus, pydoc_corpus):
        monkeypatch.setattr(room, "pydoc_files", lambda: files)
    tok = Tokenizer.train(["the documentation of a module"], "byte_bpe", 257)
    cache = tokenize_corpus(tok, "pydoc", cache=tmp_path)
    texts = {label: "\n\n".join(row["text"] for row in read_pydoc([label])) for label in ("argparse", "json")}
    assert [tok.decode(cache.document(i)) for i in range(cache.n_documents)] == list(texts.values()) == list(read_texts("pydoc"))
    monkeypatch.setattr(corpus, "pydoc_documents", lambda: pytest.fail("parsed again"))
    assert tokenize_corpus(tok, "pydoc", cache=tmp_path).n_tokens == cache.n_tokens
    files.pop()
    with pytest.raises(pytest.fail.Exception, match="parsed again"):
        tokenize_corpus(tok, "pydoc", cache=tmp_path)


@pytest.mark.slow
def test_pydoc_is_large_enough_to_adapt_to():
    rows = read_rows("pydoc")
    assert 1_200_000 < sum(len(row["text"]) for row in rows) < 4_000_000 and len({row["label"] for row in rows}) > 100
    words = " ".join(row["text"] for row in rows).split()
    assert sum(word == "the" for word in words) > 0.04 * len(words)              # English prose


@pytest.mark.parametrize("name, content, said", [
    ("empty.txt", b"", "empty.txt holds no text: check that the file is the one you mean"),
    ("blank.txt", b"\n \n\t\n", "blank.txt holds no text"),
    ("blank.jsonl", b'{"text": ""}\n', "blank.jsonl holds no text"),
    ("image.txt", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", r"image.txt, line 1: not UTF-8 \(invalid start byte at byte 0 of the line\)"),
    ("wide.txt", "a\nb".encode("utf-16"), "wide.txt, line 1: binary data|wide.txt, line 1: not UTF-8"),
    ("zeros.txt", b"words\nmore\0words\n", "zeros.txt, line 2: binary data; a text file in UTF-8 is needed: give another file"),
    ("latin.txt", "gut\nschön\n".encode("latin1"),
     r"latin.txt, line 2: not UTF-8 .* at byte 3 of the line\); .*: convert it, for example with `iconv"),
    ("cut.txt.gz", gzip.compress(b"some words " * 999, mtime=0)[:60], "cut.txt.gz is not a whole .gz file .*; fetch it again"),
    ("plain.txt.gz", b"not compressed", "plain.txt.gz is not a whole .gz file .*rename it if it is not compressed"),
    ("bad.jsonl", b'{"text": "a"}\n{"text": "b"\n',
     "bad.jsonl, line 2: not JSON .*; a .jsonl file has one whole object on each line: mend the line"),
    ("array.jsonl", b'["a", "b"]\n', "array.jsonl, line 1: a list; each line is an object such as"),
    ("number.jsonl", b'{"text": 7}\n', "number.jsonl, line 1: 'text' is 7 .int., not a text: drop the row or name another field"),
    ("table.csv", b"a,b\n", r"table.csv is of no known kind \(.csv\); a corpus is .txt or .jsonl .*: rename or convert it"),
])
def test_files_that_are_no_corpus(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(read_texts(tmp_path / name))
    tok = Tokenizer.train(["a few words"], "byte_bpe", 257)
    with pytest.raises(ValueError, match=said):
        tokenize_corpus(tok, tmp_path / name, cache=tmp_path / "cache")
    assert not [p for p in tmp_path.glob("cache/*")]                                 # nothing half-made is left


def test_a_field_that_is_not_there(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"Text": "a", "title": "b"}))
    with pytest.raises(KeyError, match=r"a.jsonl, line 1 has no column 'text'; it has 'Text', 'title': did you mean 'Text'\?"):
        list(read_texts(path))
    with pytest.raises(KeyError, match="the data set has no column 'text'; it has 'body': name one of them"):
        list(read_texts(datasets.Dataset.from_dict({"body": ["a"]})))


def test_sources_that_are_none(tmp_path):
    for source, said in [
        (tmp_path / "no.txt", r"no file .*no.txt; a path of an existing file is needed: check it \(the current folder is"),
        ("no.jsonl.gz", "no file no.jsonl.gz"),
        ("some/deep/folder", "no file some/deep/folder"),
        (tmp_path, "has no file of a known kind; a corpus folder holds .txt or .jsonl files .*: convert yours"),
        (iter(["a"]), "a corpus cannot be read from a list_iterator; .*an iterator can be read only once: make a list of it"),
        ([], "the list holds no text"),
        (["a", 3], r"item 1 of the corpus is 3 \(int\); a list holds texts \(str\) or files \(pathlib.Path\), not both: convert it"),
        ("corpsu", "'corpsu' is no file or folder here, and the hub data set 'corpsu' could not be loaded .*: check the spelling, the split after"),
    ]:
        with pytest.raises(ValueError, match=said):
            list(read_texts(source))
    with pytest.raises(ValueError, match="documents='page'; it is one of 'blank_line', 'line', 'file'"):
        list(read_texts(["a"], documents="page"))
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"splits holds several splits \(train\): name the folder of one of them"):
        list(read_texts(tmp_path / "splits"))
