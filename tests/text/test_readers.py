"""Rows of the usual files, compared with the csv module, pandas-free hand counts, and files written by hand."""
import csv
import gzip
import json
import re
from collections import Counter

import datasets
import pytest

from minitransfer.text import read_rows, sample_rows
from minitransfer.text.readers import column


def test_tables(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"half a quote\t1\nit\'s "fine"\t0\n', encoding="utf-8")
    (tmp_path / "a.csv").write_text('text,label\r\n"two\nlines, and ""quotes""",1\r\nplain,0\r\n', encoding="utf-8")
    assert read_rows(tmp_path / "a.tsv") == [{"text": '"half a quote', "label": "1"}, {"text": 'it\'s "fine"', "label": "0"}]
    assert read_rows(str(tmp_path / "a.csv")) == [{"text": 'two\nlines, and "quotes"', "label": "1"}, {"text": "plain", "label": "0"}]
    (tmp_path / "long.csv").write_text("text,label\n" + "x" * 200_000 + ",1\n")
    before = csv.field_size_limit(1234)
    assert len(read_rows(tmp_path / "long.csv")[0]["text"]) == 200_000 and csv.field_size_limit(before) == 1234
    (tmp_path / "bare.tsv").write_text("0\tone\n1\t\n \ttwo\n")
    assert read_rows(tmp_path / "bare.tsv", columns=["label", "text"]) == [{"label": "0", "text": "one"}, {"label": "1", "text": ""},
                                                                                {"label": " ", "text": "two"}]


def test_real_tables_have_the_rows_of_the_csv_module(data):
    tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    for name, how in (("sst2/validation.tsv", tabs), ("rte/validation.tsv", tabs), ("ag_news/validation.csv", {}), ("stsb/en/validation.csv", {})):
        with (data / name).open(encoding="utf-8", newline="") as file:
            assert read_rows(data / name) == list(csv.DictReader(file, **how)), name
    rows = read_rows(data / "imdb/validation.jsonl.gz")
    assert rows == [json.loads(line) for line in gzip.open(data / "imdb/validation.jsonl.gz", "rt", encoding="utf-8")]


def test_conll(tmp_path, data):
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O O\n\nMaria NNP B-PER\nflew VBD O\n\n\nOslo NNP B-LOC\n")
    assert read_rows(tmp_path / "a.conll") == [{"words": ["Maria", "flew"], "tags": ["B-PER", "O"]}, {"words": ["Oslo"], "tags": ["B-LOC"]}]
    (tmp_path / "a.conllu").write_text("# text = vámonos ya\n"
                                       "1-2\tvámonos\t_\t_\n1\tvamos\tir\tVERB\n2\tnos\tnosotros\tPRON\n2.1\tx\tx\tX\n3\tno way\tx\tADV\n\n")
    assert read_rows(tmp_path / "a.conllu") == [{"words": ["vamos", "nos", "no way"], "tags": ["VERB", "PRON", "ADV"]}]
    rows, text = read_rows(data / "wnut17/validation.conll"), (data / "wnut17/validation.conll").read_text(encoding="utf-8")
    assert sum(len(row["words"]) for row in rows) == sum(bool(line.strip()) for line in text.split("\n")) 
    assert len(rows) == sum(bool(block.strip()) for block in re.split(r"\n[ \t]*\n", text)) > 1000
    assert Counter(tag for row in rows for tag in row["tags"]) == Counter(line.split("\t")[-1] for line in text.split("\n") if line.strip())


def test_datasets_and_lists():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"]), "n": datasets.Value("int32")})
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1], "n": [0, 1, 1]}, features=features)
    assert read_rows(table) == [{"text": "a", "label": "pos", "n": 0}, {"text": "b", "label": "neg", "n": 1}, {"text": "c", "label": -1, "n": 1}]
    rows = [{"text": "a"}]
    assert read_rows(rows) == rows and read_rows(rows) is not rows


def test_streams_and_lists_of_classes(tmp_path):
    """A stream that went through map knows neither its columns nor their kinds."""
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"]))})
    rows = datasets.Dataset.from_dict({"tokens": [["a", "b"], []], "ner_tags": [[0, 1], []]}, features=features)
    expected = [{"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}, {"tokens": [], "ner_tags": []}]
    assert read_rows(rows) == read_rows(rows.to_iterable_dataset()) == expected
    assert read_rows(rows.to_iterable_dataset().map(lambda row: {"n": len(row["tokens"])}, remove_columns=["tokens", "ner_tags"])) == [{"n": 2}, {"n": 0}]


def test_tabs_separate_words_that_hold_spaces(tmp_path):
    (tmp_path / "a.conll").write_text("10 000\tB-X\n\u00a0\tO\n\nNew B-X\n", encoding="utf-8")
    assert read_rows(tmp_path / "a.conll") == [{"words": ["10 000", "\u00a0"], "tags": ["B-X", "O"]}, {"words": ["New"], "tags": ["B-X"]}]


def test_a_list_in_a_json_file(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a", "label": 1}]')
    assert read_rows(tmp_path / "a.json") == [{"text": "a", "label": 1}]


def test_real_conllu_has_words_only(data):
    """Multi-word tokens (1-2) and empty nodes (1.1) are no words: what is left is numbered 1, 2, ... in every sentence."""
    import gzip
    for name in ("fr_sequoia", "en_ewt"):
        text = gzip.open(data / f"ud/{name}/validation.conllu.gz", "rt", encoding="utf-8").read()
        lines = [[line.split("\t") for line in block.split("\n") if not line.startswith("#")] for block in text.strip().split("\n\n")]
        words = [[line for line in block if "-" not in line[0] and "." not in line[0]] for block in lines]
        assert all([int(line[0]) for line in block] == list(range(1, len(block) + 1)) for block in words) and sum(map(len, lines)) - sum(map(len, words)) > 200
        assert read_rows(data / f"ud/{name}/validation.conllu.gz") == [{"words": [line[1] for line in block], "tags": [line[3] for line in block]} for block in words]


def test_a_sample_keeps_the_shares_of_a_sorted_file():
    rows = [{"text": str(n), "label": "ab"[n >= 600], "n": n} for n in range(1000)]
    taken = sample_rows(rows, 50, seed=3, by="label")
    assert Counter(row["label"] for row in taken) == {"a": 30, "b": 20}
    assert [row["n"] for row in taken] == sorted({row["n"] for row in taken}) and len(taken) == 50
    assert taken == sample_rows(rows, 50, seed=3, by="label") != sample_rows(rows, 50, seed=4, by="label")
    for n in (1, 7, 333, 999, 1000):
        counts = Counter(row["label"] for row in sample_rows(rows, n, by="label"))
        assert abs(counts["a"] - 0.6 * n) <= 1 and sum(counts.values()) == n
    plain = sample_rows(rows, 400)
    assert 200 < sum(row["label"] == "a" for row in plain) < 280 and len({row["n"] for row in plain}) == 400
    for n in (0, 1001):
        with pytest.raises(ValueError, match=f"n={n} of 1000 rows; it is between 1 and the number of rows: choose a smaller n"):
            sample_rows(rows, n)


@pytest.mark.parametrize("name, content, said", [
    ("a.tsv", "text\tlabel\none\t1\ntwo\n", r"a.tsv, line 3: 1 fields where 2 are needed \(text, label\): mend the line"),
    ("a.csv", 'text,label\n"one\nmore",1\na,b,c\n', r"a.csv, line 4: 3 fields where 2 are needed"),
    ("b.csv", 'text,label\n"one"x,1\n', "b.csv, line 2: not CSV .*: mend it, or name the file .tsv"),
    ("c.csv", 'text,label\n"one,1\n', "c.csv, line 2: not CSV"),
    ("d.tsv", "text\ttext\na\tb\n", r"d.tsv, line 1: two columns have one name \(text, text\); all names differ: mend the first line"),
    ("e.tsv", "text\tlabel\n", "e.tsv holds no rows; at least one is needed: check that it is the file you mean"),
    ("f.tsv", "", "f.tsv holds no rows"),
    ("g.conll", "Maria B-PER\nflew\n", "g.conll, line 2: 'flew' has 1 columns; a word and its tag are needed: mend the line"),
    ("h.conllu", "1\tMaria\n", "h.conllu, line 1: .* has 2 columns"),
    ("i.jsonl", "{}{}\n", "i.jsonl, line 1: not JSON"),
    ("j.xlsx", "PK", r"j.xlsx is of no known kind \(.xlsx\); rows come from .csv, .tsv, .jsonl, .json, .conll, .conllu .*: rename or convert it"),
    ("k.tsv", "text\tlabel\na\0b\t1\n", "k.tsv, line 2: binary data"),
])
def test_broken_files(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_rows(tmp_path / name)


def test_sources_that_are_none(tmp_path):
    for source, said in [(tmp_path / "no.tsv", "no file .*no.tsv; a path of an existing file is needed"), ([], "no rows: the source is empty"),
                         (["text"], "rows cannot be read from a list whose item 0 is 'text'; they come from a file .*: convert it"),
                         ([{"text": "a"}, 3], "a list whose item 1 is 3"), ({"text": ["a"], "label": ["b"]}, r"a dict of columns \(text, label\); rows are a list"),
                         (datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})}),
                          r"several splits \(train\); rows come from one of them: pass its \['train'\]")]:
        with pytest.raises(ValueError, match=said):
            read_rows(source)
    with pytest.raises(KeyError, match=r"row 1 has no column 'label'; it has 'text', 'Label': did you mean 'Label'\?"):
        column([{"label": 1}, {"text": "a", "Label": 2}], "label")
    with pytest.raises(KeyError, match=r"it has 'so good', '1': name one of them \(in a \.csv or \.tsv the first line names the columns\)"):
        column([{"so good": "bad", "1": "0"}], "label")


@pytest.mark.parametrize("name, content, said", [
    ("a.csv", "text;label\nx;1\n", "a.csv, line 1: one column, named 'text;label'; .* looks like ';': save it with those"),
    ("a.csv", "text\tlabel\nx\t1\n", r"looks like '\\t'.* or rename it"), ("a.tsv", "text,label\nx,1\n", "looks like ','")])
def test_columns_that_are_separated_by_something_else(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_rows(tmp_path / name)


def test_blank_lines_of_a_csv_are_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text('\n  \ntext,label\n\n"",1\n \t\nb,2\n   ')
    assert read_rows(tmp_path / "a.csv") == [{"text": "", "label": "1"}, {"text": "b", "label": "2"}]
