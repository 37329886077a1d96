"""Marks around spans."""
import pytest

from minitransfer.text import mark_spans

TEXT = "Ada worked for Babbage."


def test_each_span_keeps_its_mark_wherever_it_stands():
    assert mark_spans(TEXT, (0, 3), (15, 22)) == "@ Ada @ worked for # Babbage #."
    assert mark_spans(TEXT, (15, 22), (0, 3)) == "# Ada # worked for @ Babbage @."
    assert mark_spans("ab", (0, 1), (1, 2), marks=("[E1]", "[E2]")) == "[E1] a [E1][E2] b [E2]"


@pytest.mark.parametrize(("first", "second"), [((0, 3), (2, 6)), ((3, 3), (15, 22)), ((0, 3), (15, 24)), ((-4, 3), (15, 22)), ((0, 3), (0, 3))])
def test_refused(first, second):
    with pytest.raises(ValueError, match=r"in a text of 23 characters; both are \(start, end\) inside it, not empty, and apart"):
        mark_spans(TEXT, first, second)
