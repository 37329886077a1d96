"""Transfer gain: curves, worth and verdicts by hand, and a small grid that goes on where it stopped."""
import json
import math

import numpy as np
import pytest
import torch

from minitransfer.study import TransferGain, transfer_gain, ways
from minitransfer.study.gain import Worth, labels_needed
from minitransfer.study.ways import Ground, Resampled, token_vectors
from minitransfer.tasks import SequenceTask, baseline
from minitransfer.training.state import SaveError
from tests.adapt.small import HELD_OUT, TRAIN, bert, tokenizer

QUICK = {"steps": 2, "precision": "fp32"}


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


def line(method: str, n: int, seed: int, right: str, **more) -> dict:
    return {"method": method, "n": n, "seed": seed, "right": right, "seconds": 1.0, "trained": len(method), **more}


def table(**shares: tuple[int, ...]) -> TransferGain:
    """Curves of 200 held-out rows: so many of them right, the first ones, at 10, 100 and 1,000 rows, with two seeds that agree."""
    return TransferGain.of([line(method, n, seed, "1" * k + "0" * (200 - k)) for method, many in shares.items()
                            for n, k in zip((10, 100, 1000), many, strict=True) for seed in (3, 5)])


def test_labels_needed_lie_on_the_line_over_their_logarithm():
    curve = np.array([[0.5, 0.6, 0.8]] * 5 + [[0.7, 0.4, 0.8]])
    found = labels_needed(curve, (10, 100, 1000), np.array([0.7, 0.6, 0.5, 0.3, 0.9, 0.75]))
    assert found == pytest.approx([10**2.5, 100, 0, 0, math.inf, 10**2.5])           # the last: a curve that falls has reached what it had before
    assert math.isinf(found[4])
    assert list(labels_needed(curve[:3, 1:2], (100,), np.array([0.5, 0.6, 0.7]))) == [0, 0, math.inf]              # one size: no line, but its bounds


def test_worth_and_its_words():
    found = table(random=(100, 120, 160), full=(140, 150, 190))
    assert [one.value for one in found.worth()] == pytest.approx([10**2.5 / 10, 10**2.75 / 100, math.inf])
    assert str(Worth(11.2, 0.0, math.inf, 1.0, 100.0)) == "11.2x [< 1x, > 100x]"
    assert found.worth("random", "full")[0] == Worth(0.0, 0.0, 0.0, 1.0, 100.0)


def test_negative_transfer_is_called_that():
    found = table(random=(100, 150, 160), full=(180, 150, 100))
    assert found.verdicts() == ["positive", "not shown", "negative transfer"]
    assert found.gain()[1] == (0.0, 0.0, 0.0), "the same rows are right: paired, nothing is left to chance"
    assert "-0.300" in str(found) and "negative transfer" in str(found)
    with pytest.raises(KeyError, match="no method 'lora' here; there are random, full"):
        found.gain("lora")


def test_the_interval_is_that_of_the_rows_and_of_the_seeds():
    right = np.random.default_rng(11).random((1, 4000)) < 0.7
    draws = Resampled.of(right).draws
    assert draws.std() == pytest.approx(math.sqrt(right.mean() * (1 - right.mean()) / 4000), rel=0.1)
    seeds = np.repeat([[True], [False]], 50, 1)                                          # (S, V): all the spread is between the seeds
    assert set(np.round(Resampled.of(seeds).draws, 12)) == {0.0, 0.5, 1.0}
    assert Resampled.of(seeds).draws.mean() == pytest.approx(0.5, abs=0.05)


def test_lines_come_in_any_order():
    lines = [line("full", n, seed, right) for n, seed, right in ((10, 0, "110"), (10, 1, "100"), (20, 0, "111"), (20, 1, "011"))]
    shuffled = TransferGain.of([lines[0], lines[3], lines[1], lines[2]])
    assert (shuffled.right[0].mean(-1) == [[2 / 3, 1 / 3], [1, 2 / 3]]).all() and shuffled.sizes == (10, 20) and shuffled.trained == (4,)


def test_the_figure_shows_the_curves_and_the_json_all_numbers():
    found = table(logistic=(100, 120, 160), full=(140, 150, 190))
    axes = found.draw()
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"TF-IDF", "full"}
    assert axes.lines[1].get_ydata() == pytest.approx([0.7, 0.75, 0.95]) and axes.get_xscale() == "log"
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["gain"]["full - logistic"]["bounds"][2][0] is None and told["accuracy"]["full"]["intervals"][0][0] == pytest.approx(0.7)


# ---- runs ------------------------------------------------------------------------------------------------------------------------------------------------

def test_a_grid_goes_on_where_it_stopped(tok, tmp_path, monkeypatch):
    given = dict(train=TRAIN, validation=HELD_OUT, sizes=(4, 12), seeds=2, methods=("logistic", "random"), out=tmp_path / "gain", **QUICK)
    model, learned, real = bert(tok, "none"), [], Ground.learn

    def learn(self, way, rows, seed, **settings):
        learned.append((way, len(rows), seed))
        return real(self, way, rows, seed, **settings)
    monkeypatch.setattr(Ground, "learn", learn)
    first = []

    def note(line):
        first.append(line)
        if len(first) == 3:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        transfer_gain(model, tok, on_run=note, **given)
    found = transfer_gain(model, tok, **given)
    assert learned == [("logistic", 4, 0), ("random", 4, 0), ("logistic", 12, 0), ("random", 12, 0), ("logistic", 4, 1), ("random", 4, 1), ("logistic", 12, 1), ("random", 12, 1)]
    assert found.right[0, 0, 0].mean() == first[0]["accuracy"]
    rows = Ground.of(model, tok, "sequence", TRAIN, HELD_OUT).draw(12, 1)
    assert found.right[0, 1, 1].mean() == pytest.approx(baseline("logistic", rows, HELD_OUT).metrics["accuracy"])
    assert transfer_gain(model, tok, **given).to_dict() == found.to_dict() and len(learned) == 8
    with pytest.raises(ValueError, match="runs of other rows, another body or other settings"):
        transfer_gain(model, tok, **{**given, "steps": 3})


def test_larger_draws_hold_the_smaller_ones_and_keep_the_shares(tok):
    ground = Ground.of(bert(tok, "none"), tok, "sequence", TRAIN, HELD_OUT)
    small, large = ground.draw(6, 7), ground.draw(20, 7)
    assert all(row in large for row in small) and sum(row["label"] == "pos" for row in large) == 10
    assert ground.draw(6, 8) != small


def test_the_twin_knows_nothing_of_the_weights_and_the_others_start_from_them(tok, monkeypatch):
    one, other = bert(tok, "none"), bert(tok, "none")
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    before, started, real = [p.clone() for p in other.parameters()], [], ways.finetune

    def finetune(model, *given, **named):
        started.append(model.blocks[1].mlp.up_proj.weight.clone())
        assert (named["steps"], named["epochs"]) == (2, None), "the steps that were asked for are the only limit"
        return real(model, *given, **named)
    monkeypatch.setattr(ways, "finetune", finetune)
    found = {way: [Ground(model, tok, SequenceTask(), TRAIN, HELD_OUT).learn(way, TRAIN[:20], 0, **QUICK) for model in (one, other)] for way in ("random", "full", "features")}
    (twin, again, mine, moved), own = started, [model.blocks[1].mlp.up_proj.weight for model in (one, other)]
    assert torch.equal(twin, again) and not torch.equal(twin, own[0]) and torch.equal(mine, own[0]) and torch.equal(moved, own[1])
    assert found["features"][0].answers != found["features"][1].answers
    assert found["full"][0].trained > found["features"][0].trained == 37
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True)), "each run tunes a copy"


def test_features_are_the_mean_states_under_a_logistic_regression(tok):
    from sklearn.linear_model import LogisticRegression
    model = bert(tok, "none").eval()

    def states(rows):
        batch = tok([row["text"] for row in rows], max_length=29)
        with torch.no_grad():
            x, keep = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        return ((x * keep).sum(1) / keep.sum(1)).numpy()
    fitted = LogisticRegression(max_iter=1000).fit(states(TRAIN), [row["label"] for row in TRAIN])
    found = Ground(model, tok, SequenceTask(), TRAIN, HELD_OUT).learn("features", TRAIN, 0)
    assert found.answers == fitted.predict(states(HELD_OUT)).tolist() and len(set(found.answers)) == 2


def test_a_command_stops_when_its_minutes_are_over(capsys):
    from minitransfer.bench.transfer.gain import Clock, Over
    clock = Clock(60)
    clock(line("full", 16, 0, "01", accuracy=0.5))
    with pytest.raises(Over):
        Clock(0)(line("full", 16, 1, "11", accuracy=1.0))
    assert clock.seen == 1 and [json.loads(one)["seed"] for one in capsys.readouterr().out.splitlines()] == [0, 1]


def test_static_vectors_are_rows_of_the_token_table(tok):
    model = bert(tok, "none")
    found = token_vectors(model, tok, {"film", "filmbook"})
    ids = tok.encode("filmbook", specials=False)
    assert len(ids) > 1 and found["filmbook"] == pytest.approx(model.embed.tokens.weight[ids].mean(0).detach().numpy(), abs=1e-6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"sizes": (4, 61)}, "a size of 61 and 60 training rows; every size is drawn from these"),
    ({"sizes": (1, 8)}, "1 rows drawn with seed 0 hold none of the label"),
    ({"sizes": (8, 4)}, "give each at least once, sizes in order"),
    ({"methods": ()}, "for some method and seed"),
    ({"task": "token"}, "task 'token'; ways to learn are compared row by row"),
])
def test_refused_before_anything_is_trained(tok, changes, message, monkeypatch):
    monkeypatch.setattr(Ground, "learn", lambda *given, **named: pytest.fail("something was trained"))
    with pytest.raises(ValueError, match=message):
        transfer_gain(bert(tok, "none"), tok, **{"train": TRAIN, "validation": HELD_OUT, **changes})


def test_a_folder_that_cannot_be_made(tok, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="cannot be made"):
        transfer_gain(bert(tok, "none"), tok, train=TRAIN, validation=HELD_OUT, sizes=(4,), out=tmp_path / "file" / "inside")
    (tmp_path / "taken" / "lines.jsonl").mkdir(parents=True)
    with pytest.raises(SaveError, match="cannot be written"):
        transfer_gain(bert(tok, "none"), tok, train=TRAIN, validation=HELD_OUT, sizes=(4,), out=tmp_path / "taken")
