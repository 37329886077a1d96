"""Distances between texts against what is known of made-up ones, and a pilot that learns."""
import math

import numpy as np
import pytest

from minitransfer.study import domain_report
from minitransfer.study.domain import Contrast, Pilot, Text, between, fertility, jensen_shannon, overlap, proxy_a
from minitransfer.study.tables import Interval
from tests.adapt.small import bert, rows, tokenizer

GENERAL = [row["text"] for row in rows(120, 5)]
SPOKEN = [" ".join(np.random.default_rng(i).choice(["film", "the", "zebra", "quark", "bossa"], 11)) for i in range(60)]


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


def text(*ids: list[int]) -> Text:
    return Text(tuple(map(str, ids)), tuple(list(map(str, row)) for row in ids), ids)


def test_divergence_and_overlap_by_hand():
    assert jensen_shannon(text([1, 2], [2]), text([2, 1, 2])) == 0 and jensen_shannon(text([1, 2]), text([3, 4, 4])) == pytest.approx(1)
    p, q = np.array([0.5, 0.5, 0]), np.array([0.25, 0.25, 0.5])
    m = (p + q) / 2
    wanted = sum(0.5 * float((one[one > 0] * np.log2(one[one > 0] / m[one > 0])).sum()) for one in (p, q))
    assert jensen_shannon(text([0, 1]), text([0, 1, 2, 2])) == pytest.approx(wanted)
    assert overlap(text([1, 2, 3]), text([3, 4, 5])) == pytest.approx(1 / 3) and overlap(text([7, 7, 8]), text([7])) == 1
    assert fertility(Text(("a bc",), (["a", "bc"],), ([1, 2, 3],))) == 1.5


def test_the_interval_of_a_distance_covers_that_of_long_texts():
    """Two sources whose divergence is known: most intervals of short texts from them hold it; those of a bootstrap would not, which only adds noise to noise."""
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    m, held = (p + q) / 2, 0
    truth = sum(0.5 * float((one * np.log2(one / m)).sum()) for one in (p, q))
    for seed in range(40):
        draw = np.random.default_rng(seed)
        a, b = (text(*(draw.choice(4, 13, p=one).tolist() for _ in range(60))) for one in (p, q))
        found = between(jensen_shannon, a, b)
        held += found.low <= truth <= found.high
    assert held >= 33                                                       # 95 % of 40 is 38; below 33 once in 300


def test_texts_are_told_apart_or_not(tok):
    model = bert(tok, "masked")
    other = [" ".join(["film"] * 9)] * 60
    apart, alike = (proxy_a(model, tok, Text.of(GENERAL[:60], tok), Text.of(texts, tok), 29, 0) for texts in (other, GENERAL[60:]))
    assert apart.value == 2 == apart.high and apart.low > 1.5 and alike.value < 1 and alike.low <= 0.3


def test_a_measure_differs_if_it_does_beyond_what_halves_do():
    one, close, far = Interval(0.2, 0.1, 0.3), Interval(0.35, 0.25, 0.45), Interval(0.6, 0.5, 0.7)
    assert [Contrast("JSD", None, None, found, one).verdict for found in (close, far)] == ["", "differ"]
    assert Contrast("overlap", None, None, one, far).verdict == "differ" and Contrast("loss", one, one, Interval(0.1, -0.1, 0.3), None).verdict == ""


def test_the_estimate_is_a_line_over_doublings():
    pilot = Pilot(20, 3.0, Interval(1.0, 0.9, 1.1), Interval(0.2, 0.1, 0.3), Interval(0.0, -0.1, 0.1))
    assert pilot.estimate(8) == pytest.approx((3 - 0.6, 3 - 0.9, 3 - 0.3)) and pilot.estimate(1) == (3, 3, 3) and pilot.estimate(2**12) == pytest.approx((0.6, 0, 1.8))
    assert "it was still falling" in str(pilot) and "it is not shown" in str(Pilot(20, 3.0, pilot.fall, pilot.general_rise, pilot.general_rise))


def test_a_report_of_a_domain(tok):
    model = bert(tok, "masked")
    before = model.embed.tokens.weight.clone()
    found = domain_report(model, tok, SPOKEN, GENERAL, pilot=16, length=29, lr=1e-2, precision="fp32")
    by_name = {row.name: row for row in found.rows}
    assert by_name["JSD of tokens, bits"].verdict == by_name["overlap of common words"].verdict == "differ"
    assert found.pilot.fall.low > 0 and found.pilot.fall.value >= found.pilot.last_doubling.value
    loss = by_name["loss, nats a token"]
    assert loss.between.value == pytest.approx(loss.domain.value - loss.general.value) and loss.domain.value == pytest.approx(math.log(tok.vocab_size), abs=0.5)
    assert bool((model.embed.tokens.weight == before).all()) and "a pilot of 16 steps" in str(found)
    axes = found.draw()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["overlap of common words", "JSD of tokens, bits", "proxy-A distance / 2"]


def test_refused(tok):
    with pytest.raises(ValueError, match='load it with head="masked" or "causal"'):
        domain_report(bert(tok), tok, SPOKEN, GENERAL)
    with pytest.raises(ValueError, match="19 texts of the domain's text; intervals come from leaving parts of them out, and take 20"):
        domain_report(bert(tok, "masked"), tok, SPOKEN[:19], GENERAL)
    with pytest.raises(ValueError, match="pilot=7; its two halves are compared"):
        domain_report(bert(tok, "masked"), tok, SPOKEN, GENERAL, pilot=7)
