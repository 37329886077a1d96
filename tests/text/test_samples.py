"""The bundled sample data keep the promises made in their README."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

from minitransfer import samples

SPLITS = {"train": 480, "validation": 100, "test": 160}  # the fewest reviews allowed
FILES = [f"reviews.{split}.tsv" for split in SPLITS] + ["senses.tsv", "tagged.conll", "general.txt"]
WORD = re.compile(r"[a-z0-9']+")


def read_tsv(name: str) -> list[dict[str, str]]:
    with samples.path(name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def read_lines(name: str) -> list[str]:
    return samples.path(name).read_text(encoding="utf-8").splitlines()


def read_sentences() -> list[list[tuple[str, str]]]:
    text = samples.path("tagged.conll").read_text(encoding="utf-8")
    sentences = []
    for block in text.strip("\n").split("\n\n"):
        rows = [line.split("\t") for line in block.split("\n")]
        assert all(len(row) == 2 for row in rows), block
        sentences.append([(word, tag) for word, tag in rows])
    return sentences


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def overlap(first: set[tuple[str, ...]], second: set[tuple[str, ...]]) -> float:
    """The share of the shorter text's word trigrams that the other text has too."""
    return len(first & second) / min(len(first), len(second))


def all_reviews() -> list[dict[str, str]]:
    return [row for split in SPLITS for row in read_tsv(f"reviews.{split}.tsv")]


# path() and the files as a whole


@pytest.mark.parametrize("name", [*FILES, "README.md"])
def test_path_finds_each_file(name: str) -> None:
    file = samples.path(name)
    assert isinstance(file, Path)
    assert file.name == name
    assert file.is_file()


@pytest.mark.parametrize("name", ["reviews.tsv", "", "../samples/general.txt", "__init__.py"])
def test_path_rejects_other_names_and_lists_the_files(name: str) -> None:
    with pytest.raises(ValueError, match=r"no sample file named .*general\.txt.*tagged\.conll"):
        samples.path(name)


@pytest.mark.parametrize("name", FILES)
def test_whitespace_is_plain(name: str) -> None:
    raw = samples.path(name).read_bytes()
    text = raw.decode("utf-8")
    assert text.endswith("\n") and not text.endswith("\n\n")
    odd = {char for char in text if char.isspace()} - {" ", "\n", "\t"}
    assert not odd
    assert not {char for char in text if not char.isprintable()} - {"\n", "\t"}
    for line in text.splitlines():
        for field in line.split("\t"):
            assert field == field.strip()
            assert "  " not in field, field


@pytest.mark.parametrize(
    ("name", "columns"), [(name, 3 if name == "senses.tsv" else 2) for name in FILES[:4]]
)
def test_tsv_lines_have_the_right_number_of_columns(name: str, columns: int) -> None:
    lines = read_lines(name)
    assert {len(line.split("\t")) for line in lines} == {columns}
    assert all(field for line in lines for field in line.split("\t"))
    assert len(read_tsv(name)) == len(lines) - 1


def test_readme_gives_the_right_counts() -> None:
    readme = samples.path("README.md").read_text(encoding="utf-8")
    for split in SPLITS:
        count = len(read_tsv(f"reviews.{split}.tsv"))
        assert re.search(rf"`reviews\.{split}\.tsv` \|.*\| {count} reviews", readme)
    sentences = read_sentences()
    tokens = sum(map(len, sentences))
    entities = sum(tag.startswith("B-") for sentence in sentences for _, tag in sentence)
    assert f"{len(sentences)} sentences, {tokens} tokens, {entities} entities" in readme
    assert f"{len(read_lines('general.txt'))} sentences" in readme
    assert f"{len(read_tsv('senses.tsv'))} sentences: 8 nouns" in readme


# reviews


@pytest.mark.parametrize("split", SPLITS)
def test_reviews_are_many_and_balanced(split: str) -> None:
    rows = read_tsv(f"reviews.{split}.tsv")
    assert list(rows[0]) == ["text", "label"]
    assert len(rows) >= SPLITS[split]
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == {"negative", "positive"}
    assert 0.45 <= counts["positive"] / len(rows) <= 0.55


@pytest.mark.parametrize("split", SPLITS)
def test_reviews_are_shuffled(split: str) -> None:
    labels = [row["label"] for row in read_tsv(f"reviews.{split}.tsv")]
    longest = max(len(list(run)) for _, run in itertools.groupby(labels))
    assert longest <= 12
    changes = sum(a != b for a, b in itertools.pairwise(labels))
    assert 0.35 <= changes / len(labels) <= 0.65  # neither sorted nor alternating


def test_review_lengths() -> None:
    lengths = [len(row["text"].split()) for row in all_reviews()]
    assert min(lengths) >= 5
    assert max(lengths) <= 45
    assert sum(length < 10 for length in lengths) >= 50
    assert sum(length > 25 for length in lengths) >= 25


def test_no_review_is_in_two_splits() -> None:
    texts = [" ".join(WORD.findall(row["text"].lower())) for row in all_reviews()]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_no_two_reviews_are_near_copies() -> None:
    texts = [row["text"] for row in all_reviews()]
    grams = [trigrams(text) for text in texts]
    copies = [
        (texts[i], texts[j])
        for i, j in itertools.combinations(range(len(texts)), 2)
        if overlap(grams[i], grams[j]) > 0.6
    ]
    assert copies == []


def test_overlap_recognises_a_near_copy() -> None:
    first = trigrams("The soup was cold and the waiter was rude to us all evening.")
    assert overlap(first, trigrams("The soup was cold and the waiter was rude to us!")) > 0.6
    assert overlap(first, trigrams("A warm and funny film about a lost tractor.")) == 0


def test_no_word_gives_the_label_away() -> None:
    """A frequent word that occurs with one label only would make the task too easy."""
    counts: dict[str, Counter[str]] = {"negative": Counter(), "positive": Counter()}
    for row in all_reviews():
        counts[row["label"]].update(set(WORD.findall(row["text"].lower())))
    frequent = [word for word, count in sum(counts.values(), Counter()).items() if count >= 40]
    assert frequent
    assert [word for word in frequent if not all(c[word] for c in counts.values())] == []


# tagged.conll


def test_tagged_sentences_are_many_and_varied() -> None:
    sentences = read_sentences()
    assert len(sentences) >= 60
    assert len({tuple(word for word, _ in sentence) for sentence in sentences}) == len(sentences)
    counts = Counter(tag for sentence in sentences for _, tag in sentence)
    assert set(counts) == {"O"} | {f"{bi}-{kind}" for bi in "BI" for kind in ("PER", "LOC", "ORG")}
    assert min(counts.values()) >= 10
    plain = [sentence for sentence in sentences if all(tag == "O" for _, tag in sentence)]
    assert 5 <= len(plain) < len(sentences) / 3


def test_tags_follow_the_bio_scheme() -> None:
    for sentence in read_sentences():
        previous = "O"
        for word, tag in sentence:
            if tag.startswith("I-"):
                assert previous in (f"B-{tag[2:]}", tag), (word, sentence)
            previous = tag


def test_tokens_are_separate() -> None:
    for sentence in read_sentences():
        words = [word for word, _ in sentence]
        assert words[-1] in {".", "?", '"', "!"}, words
        for word in words:
            assert not re.search(r"\w[,;:?!]$", word), word
            assert word == "'s" or not word.endswith("'s"), word


# general.txt


def test_general_sentences() -> None:
    lines = read_lines("general.txt")
    assert len(lines) >= 320
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert 8 <= len(line.split()) <= 35, line
        assert line[0].isupper() or line[0] == '"', line
        assert line[-1] in '.?!"', line
        assert line.count('"') % 2 == 0, line


# senses.tsv


def test_senses_cover_each_noun() -> None:
    rows = read_tsv("senses.tsv")
    assert list(rows[0]) == ["text", "word", "sense"]
    assert len(rows) >= 48
    assert len({row["text"] for row in rows}) == len(rows)
    counts = Counter((row["word"], row["sense"]) for row in rows)
    assert min(counts.values()) >= 3
    nouns = {"bank", "bark", "bat", "crane", "letter", "match", "pitcher", "spring"}
    assert Counter(word for word, _ in counts) == Counter(dict.fromkeys(nouns, 2))


def test_sense_word_occurs_once_in_lower_case() -> None:
    for row in read_tsv("senses.tsv"):
        tokens = re.findall(r"\w+", row["text"])
        assert tokens.count(row["word"]) == 1, row
        assert [token.lower() for token in tokens].count(row["word"]) == 1, row
