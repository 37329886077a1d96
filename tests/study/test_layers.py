"""The report of layers holds what its parts give, beside the articles' bands as they are counted by hand."""
from __future__ import annotations

import numpy as np
import pytest

import minitransfer as mt
from minitransfer.study import Sentence, centre_of_gravity, head_accuracy, layer_report, probe, separation_ratio
from minitransfer.study.layers import ROLES, roles_of

TREES = [Sentence(tuple(words.split()), tuple(tags.split()), heads, tuple(relations.split()), ({},) * len(heads)) for words, tags, heads, relations in [
    ("A dog ran home", "DET NOUN VERB ADV", (2, 3, 0, 3), "det nsubj root obl"), ("She saw the river", "PRON VERB DET NOUN", (2, 0, 4, 2), "nsubj root det obj"),
    ("The man ran", "DET NOUN VERB", (2, 3, 0), "det nsubj root"), ("The quiet river froze", "DET ADJ NOUN VERB", (3, 3, 4, 0), "det amod nsubj root")]]
GIVEN = {"folds": 2, "seed": 1}


def test_a_layer_has_the_bands_that_it_has_a_part_of():
    twelve = [dict(zip(ROLES, roles_of(i, 12), strict=True)) for i in range(13)]
    assert [one["S2"] for one in twelve] == ["", *["surface"] * 3, *["syntax"] * 3, *["semantic roles"] * 3, *["the task"] * 3]      # as the article numbers them
    assert [one["S1"] for one in twelve] == ["", *["syntax, morphology"] * 4, *["semantics"] * 4, *[""] * 4]
    assert [one["S0"] for one in twelve] == [*[""] * 5, *["syntax"] * 4, *[""] * 4]
    assert [dict(zip(ROLES, roles_of(i, 6), strict=True))["S2"] for i in range(1, 7)] == [
        "surface", "surface / syntax", "syntax", "semantic roles", "semantic roles / the task", "the task"]
    assert roles_of(1, 1)[2] == "surface / syntax / semantic roles / the task" and roles_of(2, 4)[3] == "co-occurrence / syntax"


def test_it_holds_what_its_parts_give(ours, tmp_path):
    model, tok = ours("mini-bert")
    found = layer_report(model, tok, TREES, ("pos", "relation"), "match", cache=tmp_path, **GIVEN)
    texts = [line.split("\t") for line in mt.samples.path("senses.tsv").read_text(encoding="utf-8").splitlines()]
    senses = {sense: [text for text, word, its in texts if (word, its) == ("match", sense)] for sense in ("fire", "game")}
    apart, heads = separation_ratio(model, tok, senses, "match", seed=1), head_accuracy(model, tok, TREES, seed=1)
    head, *body, last = found.cells()
    assert head == ("layer", "pos (selectivity)", "relation (selectivity)", "senses apart", "anisotropy", "best head", "S0", "S1", "S2", "S3")
    columns = [*zip(*body, strict=True)]
    for column, centre, task in zip(columns[1:3], last[1:3], ("pos", "relation"), strict=True):
        alone = probe(model, tok, TREES, task, cache=tmp_path, **GIVEN)
        assert list(column) == [f"{row.score} ({row.selectivity.value:+.3f})" for row in alone.rows]
        assert centre == str(centre_of_gravity(model, tok, TREES, task, cache=tmp_path, **GIVEN).centre)
        top = max(alone.rows, key=lambda row: row.score.value)
        assert f"{task} {top.layer} ({', '.join(str(row.layer) for row in alone.rows if row.score.high >= top.score.low)})" in str(found).splitlines()[-1]
    assert columns[3] == tuple(map(str, apart.ratio)) and columns[4] == tuple(f"{one:.3f}" for one in apart.anisotropy)
    assert columns[5] == ("", *(f"{max(row):.3f}" for row in heads.accuracy.tolist()))
    assert [row[6:] for row in body] == [roles_of(i, 4) for i in range(5)]

    probes, others, said = found.draw().figure.axes
    np.testing.assert_allclose(probes.lines[1].get_ydata(), [row.score.value for row in alone.rows])
    np.testing.assert_allclose(others.lines[0].get_ydata(), [one.value for one in apart.ratio])
    assert others.lines[2].get_xdata().tolist() == [1, 2, 3, 4]
    bars = {text.get_text(): (bar.get_x(), bar.get_width()) for bar, text in zip(said.patches, said.texts, strict=True) if text.get_position()[1] == -2}
    assert bars == {"surface": (0.5, 1), "syntax": (1.5, 1), "semantic roles": (2.5, 1), "the task": (3.5, 1)}


def test_without_trees_there_are_no_heads(ours, tmp_path):
    bare = [Sentence(one.words, one.tags) for one in TREES]
    found = layer_report(*ours("mini-bert"), bare, ("pos",), cache=tmp_path, **GIVEN)
    assert found.heads is None and "best head" not in found.cells()[0] and len({len(row) for row in found.cells()}) == 1 and len(found.draw().figure.axes[1].lines) == 3


@pytest.mark.parametrize("wrong, message", [({"word": "table"}, "word='table', of which no sentences are bundled; there are some of bank, bark"),
                                            ({"tasks": ("Number",)}, "task='Number', for which these 4 sentences have 0 labels"), ({"folds": 5}, "folds=5 of 4 sentences")])
def test_what_cannot_be_reported(ours, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        layer_report(*ours("mini-bert"), TREES, cache=tmp_path, **({"tasks": ("pos",), "folds": 2} | wrong))
