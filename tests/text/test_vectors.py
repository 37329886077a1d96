"""Files of static vectors, written by hand in each format, and the same files spoiled."""
import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from minitransfer.text import read_vectors

WORDS = {"the": [0.5, -1.25, 3.0], "café": [1e-3, 2.0, -7.5], "co.": [0.0, 0.25, 11.0]}


def numbers(values) -> str:
    return " ".join(map(str, values))


def glove(words: dict) -> bytes:
    return "".join(f"{word} {numbers(values)}\n" for word, values in words.items()).encode()


def headed(words: dict, d: int = 3) -> bytes:
    return f"{len(words)} {d}\n".encode() + glove(words)


def binary(words: dict, end: bytes = b"") -> bytes:
    return f"{len(words)} 3\n".encode() + b"".join(word.encode() + b" " + struct.pack("<3f", *values) + end for word, values in words.items())


FORMATS = {"glove.txt": glove(WORDS), "w2v.txt": headed(WORDS), "fast.vec": headed(WORDS).replace(b"\n", b" \n"), "windows.vec": headed(WORDS).replace(b"\n", b"\r\n"),
           "gensim.bin": binary(WORDS), "google.bin": binary(WORDS, b"\n")}


def written(folder, name: str, content: bytes):
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", [*FORMATS, *(f"{name}.gz" for name in FORMATS)])
def test_every_format(tmp_path, name):
    path = written(tmp_path, name, FORMATS[name.removesuffix(".gz")])
    found = read_vectors(path)
    assert list(found) == list(WORDS) and all(np.array_equal(found[word], np.float32(values)) and found[word].dtype == np.float32 for word, values in WORDS.items())
    assert list(read_vectors(str(path), ["co.", "the", "unheard", "th"])) == ["the", "co."] and read_vectors(path, []) == {}


def test_words_with_spaces_and_strange_ones(tmp_path):
    """As in GloVe's largest file: spaces inside words, no-break spaces, other line separators, a number as a word; and bytes that are no UTF-8."""
    odd = {"of": [1, 2, 3], ". . .": [4, 5, 6], "at name@domain.com": [7, 8, 9], "a\xa0b": [1, 1, 1], "\u2028": [2, 2, 2], "\x85": [3, 3, 3], "12": [4, 4, 4]}
    path = written(tmp_path, "odd.txt", glove(odd) + b"caf\xe9 1 2 3\n" + glove({"of": [9, 9, 9]}))
    found = read_vectors(path)
    assert list(found) == list(odd) and all(found[word].tolist() == values for word, values in odd.items())
    assert read_vectors(path, {". . ."})[". . ."].tolist() == [4, 5, 6]


@pytest.mark.parametrize("name,content,message", [
    ("empty.txt", b"", "line 1: '' has no numbers"),
    ("short.txt", glove({"a": [1, 2, 3], "b": [1, 2]}), "line 2: 'b 1 2\\\\n' has 2 numbers; a line is a word and 3 numbers .*: fetch"),
    ("word.txt", glove({"a": [1, 2, 3], "b": [1, "x", 3]}), "line 2: 'b 1 x 3\\\\n' ends with no 3 numbers .*: fetch"),
    ("alone.txt", b"word\n", "line 1: 'word\\\\n' has no numbers"),
    ("nan.txt", glove({"a": [1, 2, 3], "b": [1, "nan", 3]}), "the vector of 'b' has a number that is not finite"),
    ("inf.vec", headed({"a": [1, 2, "inf"]}), "the vector of 'a' has a number that is not finite"),
    ("huge.vec", headed({"a": [1, 2, 1e39]}), "the vector of 'a' has a number that is not finite"),
    ("wide.vec", headed(WORDS, d=4), "line 2: .* has 3 numbers; a line is a word and 4 numbers"),
    ("cut.vec", headed(WORDS)[: -len(glove({"co.": WORDS["co."]}))], "2 vectors where its first line says 3"),
    ("cut.bin", binary(WORDS)[:-1], "ends, or has no word, in vector 3 of the 3 of 3 numbers"),
    ("cut2.bin", binary(WORDS)[:-14], "ends, or has no word, in vector 3 of the 3"),
    ("more.bin", binary(WORDS) + b"x", "goes on after the 3 vectors"),
    ("lying.bin", b"9 99999\n" + binary(WORDS)[4:], "ends, or has no word, in vector 1 of the 9"),
    ("vast.bin", b"9 999999999999\n" + binary(WORDS)[4:], "begins with '9 999999999999"),
    ("model.bin", struct.pack("<ii", 793712314, 12) + bytes(99), "a model of fastText"),
    ("nan.bin", binary({"a": [1, float("nan"), 2]}), "the vector of 'a' has a number that is not finite"),
    ("endless.bin", b"2 3\n" + b"x" * 50_000, "ends, or has no word, in vector 1 of the 2"),
])
def test_spoiled_files(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        read_vectors(path)


def test_no_file_and_half_a_gz(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*: check it"):
        read_vectors(tmp_path / "none.txt")
    path = written(tmp_path, "half.txt.gz", FORMATS["glove.txt"])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"is not a whole \.gz file"):
        read_vectors(path)


@pytest.mark.parametrize("name", ["many.txt", "many.bin"])
def test_memory_is_that_of_the_words_asked_for(tmp_path, name):
    """A file of half a megabyte and more, of which 3 vectors are wanted."""
    d, n = 127, 1_009
    values = np.random.default_rng(0).normal(size=(n, d)).astype("<f4")
    if name.endswith(".bin"):
        content = f"{n} {d}\n".encode() + b"".join(f"w{i} ".encode() + row.tobytes() for i, row in enumerate(values))
    else:
        content = "".join(f"w{i} {' '.join(f'{v:.3f}' for v in row)}\n" for i, row in enumerate(values)).encode()
    path, wanted = written(tmp_path, name, content), ["w0", "w77", "w1008"]
    tracemalloc.start()
    found = read_vectors(path, wanted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(found) == wanted and all(np.allclose(found[word], values[int(word[1:])], atol=6e-4) for word in wanted)
    assert len(content) > 500_000 and peak < 100_000
