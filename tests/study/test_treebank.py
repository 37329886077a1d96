"""Labels of words are what the columns of a treebank say, counted by hand; what is no treebank is refused."""
from __future__ import annotations

import gzip

import numpy as np
import pytest

from minitransfer import samples
from minitransfer.study import Sentence, read_treebank
from minitransfer.study.treebank import control_labels, depths, distances, labels_of

ZUM = ("# text = Sie ging zum Haus.\n"
       "1\tSie\tsie\tPRON\t_\tCase=Nom|Number=Sing\t2\tnsubj\t_\t_\n"
       "2\tging\tgehen\tVERB\t_\tNumber=Sing\t0\troot\t_\t_\n"
       "3-4\tzum\t_\t_\t_\t_\t_\t_\t_\t_\n"
       "3\tzu\tzu\tADP\t_\t_\t5\tcase\t_\t_\n"
       "4\tdem\tder\tDET\t_\tCase=Dat\t5\tdet\t_\t_\n"
       "5\tHaus\tHaus\tNOUN\t_\tNumber=Sing\t2\tobl:arg\t_\t_\n"
       "6\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_\n"
       "6.1\tleer\t_\tX\t_\t_\t_\t_\t_\t_\n\n")


def test_words_of_a_multi_word_token_are_read_in_its_place(tmp_path):
    with gzip.open(tmp_path / "de.conllu.gz", "wt", encoding="utf-8") as file:
        file.write(ZUM)
    with pytest.warns(UserWarning, match="de.conllu.gz has 1 multi-word tokens .* not written as their words, such as 'zum': .* so the model reads 'zu dem' in its place"):
        found, = read_treebank(tmp_path / "de.conllu.gz")
    assert found == Sentence(("Sie", "ging", "zu", "dem", "Haus", "."), ("PRON", "VERB", "ADP", "DET", "NOUN", "PUNCT"), (2, 0, 5, 5, 2, 2),
                             ("nsubj", "root", "case", "det", "obl", "punct"),
                             ({"Case": "Nom", "Number": "Sing"}, {"Number": "Sing"}, {}, {"Case": "Dat"}, {"Number": "Sing"}, {}))
    assert distances(found) == ["+1", "root", "+2", "+1", "-3", "-4"] and depths(found) == ["1", "0", "2", "2", "1", "1"]
    assert labels_of([found], "Case") == [["Nom", None, None, "Dat", None, None]] and labels_of([found], "relation") == [found.relations]


def test_one_written_as_its_words_is_no_matter(tmp_path):
    """don't = do + n't."""
    (tmp_path / "en.conllu").write_text("1-2\tdon't" + "\t_" * 8 + "\n1\tdo\tdo\tAUX\t_\t_\t0\troot\t_\t_\n2\tn't\tnot\tPART\t_\t_\t1\tadvmod\t_\t_\n")
    assert read_treebank(tmp_path / "en.conllu")[0].words == ("do", "n't")


def test_far_and_deep_are_one_class():
    chain = Sentence(tuple("abcdefghij"), ("X",) * 10, (0, 1, 2, 3, 4, 5, 6, 7, 8, 1))
    assert depths(chain) == ["0", "1", "2", "3", "4", "5", "6", "7", "7", "1"]
    assert distances(chain) == ["root", *["-1"] * 8, "-5"]


def test_drawn_sentences(tmp_path):
    every = read_treebank(samples.path("tagged.conll"))
    some = read_treebank(samples.path("tagged.conll"), 11, seed=5)
    assert len(every) == 75 and len(some) == 11 == len(set(some)) and some == [one for one in every if one in some] and some != every[:11]
    assert read_treebank(every, 11, seed=5) == some and read_treebank(every, 100) == every and read_treebank(every, 11, seed=6) != some


def test_real_treebanks(data):
    """Every head is found; sums over a whole file, read another way."""
    path = data / "ud/hi_pud/validation.conllu.gz"
    rows = [line.split("\t") for line in gzip.open(path, "rt", encoding="utf-8") if line[:1].isdigit() and line.split("\t")[0].isdigit()]
    found = read_treebank(path)
    assert [head for one in found for head in one.heads] == [int(row[6]) for row in rows] and [word for one in found for word in one.words] == [row[1] for row in rows]
    assert sum("Number" in one for s in found for one in s.features) == sum("|Number=" in "|" + row[5] for row in rows)


def test_a_control_task_is_one_label_for_each_kind_of_word():
    draw = np.random.default_rng(0)
    words, y = [f"w{i}" for i in draw.integers(0, 5000, 20000)], draw.choice(4, 20000, p=[0.1, 0.2, 0.3, 0.4])
    control = control_labels(words, y, seed=1)
    kinds = {word: set() for word in words}
    for word, label in zip(words, control, strict=True):
        kinds[word].add(label)
    assert {len(one) for one in kinds.values()} == {1}
    np.testing.assert_allclose(np.bincount(control) / 20000, [0.1, 0.2, 0.3, 0.4], atol=0.03)
    assert abs(np.corrcoef(y, control)[0, 1]) < 0.03 and np.array_equal(control, control_labels(words, y, seed=1)) and not np.array_equal(control, control_labels(words, y))


def line(i: int, head: str) -> str:
    return f"{i}\tword{i}\t_\tX\t_\t_\t{head}\tdep\t_\t_\n"


@pytest.mark.parametrize("name, text, message", [
    ("a.conllu", line(1, "2") + line(2, "1"), "a.conllu: the heads of 'word1 word2' are 2, 1, which is no tree"),
    ("a.conllu", line(1, "0") + line(2, "7"), "are 0, 7, which is no tree"),
    ("a.conllu", line(1, "0") + line(2, "_"), "are 0, _, which is no tree"),
    ("a.conllu", "1\tword\t_\tX\n", r"a.conllu, line 1: .* has 4 columns; 8 \(of CoNLL-U: id, word, "),
    ("a.tsv", "word\ttag\n", "a.tsv in the place of a treebank; words with labels come from .conllu or .conll"),
])
def test_broken_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_treebank(tmp_path / name)


def test_tasks_without_labels():
    some = read_treebank(samples.path("tagged.conll"), 3)
    with pytest.raises(ValueError, match=r"task='Number', for which these 3 sentences have 0 labels; .* \(relation, distance and depth from .conllu files only\)"):
        labels_of(some, "Number")
    rich = Sentence(("a", "b"), ("X", "X"), (0, 1), ("root", "dep"), ({"Case": "Nom"}, {"Tense": "Past"}))
    with pytest.raises(ValueError, match=r"task='pos', for which these 1 sentences have 1 labels; .* and the features Case, Tense"):
        labels_of([rich], "pos")
    with pytest.raises(ValueError, match="3 labels for the 2 words of sentence 0"):
        labels_of([rich], lambda s: ["a", "b", "a"])
