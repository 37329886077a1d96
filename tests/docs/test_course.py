"""The exercises: every solution is right, and wrong answers of the kind that learners write are not, by a sentence that says what was seen."""
from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import minitransfer as mt
from minitransfer.cli import main
from minitransfer.course import EXERCISES, exercises
from minitransfer.course.exercise import in_engine, same_in_engine
from minitransfer.nn import attention

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parents[1] / "notebooks"
SOURCES = sorted(path for path in NOTEBOOKS.glob("*.py") if re.match(r"\d\d_", path.name))


def module(file: Path):
    spec = importlib.util.spec_from_file_location(f"answers_{file.stem}", file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_solution_is_right(source):
    """And every exercise that a notebook asks is graded: its stub is in the notebook, its answer in the solutions."""
    number = source.stem[:2]
    verdicts = mt.check(number, file=NOTEBOOKS / "solutions" / source.name)
    assert verdicts.right, str(verdicts)
    asked = re.findall(r'^mt\.check\("(\d\d)", (\w+)\)$', source.read_text(encoding="utf-8"), re.M)
    assert asked == [(number, name) for name in exercises(number)] == [(number, one.name) for one in verdicts] and len(asked) >= 3


# ---- wrong answers --------------------------------------------------------------------------------------------------------------------------------

WRONG = {(file.stem, name): answers for file in sorted((HERE / "wrong_answers").glob("*.py")) for name, answers in module(file).WRONG.items()}


@pytest.mark.parametrize("number, name, answer, seen", [(*asked, answer, seen) for asked, answers in WRONG.items() for answer, seen in answers])
def test_a_wrong_answer_is_seen(number, name, answer, seen):
    answer.__name__ = name
    (verdict,) = mt.check(number, answer)
    assert verdict.word == "wrong" and re.search(seen, verdict.seen), str(verdict)


def test_every_exercise_has_a_planted_fault():
    exercises("01")
    assert sorted(WRONG) == sorted((number, name) for number, many in EXERCISES.items() for name in many)


# ---- the machinery --------------------------------------------------------------------------------------------------------------------------------

def test_the_answer_is_what_the_engine_calls():
    """A fault that only the engine's own run can see: the answer is right but for rows of 13 keys."""
    own = attention.attend

    def attention_but(q, k, v, mask):
        mixed, weights, _ = own(q, k, v, mask)
        return mixed * (1.001 if k.shape[-2] == 13 else 1), weights
    attention_but.__name__ = "attention"
    (verdict,) = mt.check("03", attention_but)
    assert verdict.word == "wrong" and verdict.seen.startswith("in the engine, ")


def test_the_engine_is_itself_again_afterwards():
    own = attention.attend
    with pytest.raises(KeyError, match="stop"), in_engine("nn.attention:attend", len):
        assert attention.attend is len
        raise KeyError("stop")
    assert attention.attend is own


def test_gradients_are_compared_where_a_notebook_has_switched_them_off():
    with torch.no_grad():
        (verdict,) = mt.check("03", module(NOTEBOOKS / "solutions/03_attention_by_hand.py").attention)
    assert verdict.word == "right", str(verdict)


def test_a_place_that_is_not_called_compares_nothing():
    with pytest.raises(RuntimeError, match="is not called"):
        same_in_engine("nn.attention:attend", attention.attend, lambda: {"x": torch.zeros(1)})


def test_an_open_exercise_and_an_answer_that_stops():
    def attention(q, k, v, mask):
        raise NotImplementedError

    def combine(*parts):
        return parts[7]
    verdicts = mt.check("03", attention, combine)
    assert [one.word for one in verdicts] == ["not solved yet", "wrong"] and "IndexError" in verdicts[1].seen and not verdicts.right


def test_an_answer_that_leaves_is_wrong_and_the_others_are_graded(tmp_path, capsys):
    (tmp_path / "leaves.py").write_text("import sys\ndef attention(*a): sys.exit(0)\ndef combine(*parts): return parts[7]\n")
    assert main(["check", "03", str(tmp_path / "leaves.py")]) == 1
    out = capsys.readouterr().out
    assert "attention: wrong (it stopped with SystemExit" in out and "combine: wrong" in out


@pytest.mark.parametrize("words, code, said", [
    (["check", "03"], 0, "attention(q, k, v, mask) -> "), (["check", "99"], 1, "no exercises for notebook '99'; there are some for 01, 0"),
    (["check", "03", "nowhere.py"], 1, "nowhere.py: No such file"), (["check", "3", "{tmp}/broken.py"], 1, "broken.py stopped with ZeroDivisionError"),
    (["check", "03", "{tmp}/empty.py"], 1, "nothing to grade for notebook 03; its exercises are attention, "), (["check", "03", "{tmp}/wrong.py"], 1, "combine: wrong")])
def test_on_the_command_line(words, code, said, tmp_path, capsys):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "wrong.py").write_text("def combine(m1, z1, o1, m2, z2, o2):\n    return o1 + o2\n")
    assert main([word.format(tmp=tmp_path) for word in words]) == code
    assert said in "".join(capsys.readouterr())


def test_a_function_that_nobody_asked_for():
    def atention(q, k, v, mask):
        return None
    with pytest.raises(KeyError, match="'atention' answers no exercise of 03 \\(did you mean 'attention'\\?\\)"):
        mt.check("03", atention)
