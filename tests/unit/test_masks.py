"""Masks and positions, against loops that follow the definition word by word."""
from itertools import pairwise

import pytest
import torch

from minitransfer.nn.masks import Mask, positions_from, positions_in_documents

CPU = torch.device("cpu")
B, S = 3, 11
KEEP = torch.tensor([[1] * 11, [0, 0, 0] + [1] * 8, [1] * 7 + [0] * 4], dtype=torch.bool)
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 7, [5] * 2 + [3] * 1 + [7] * 6 + [-1] * 2, [2] * 11])
CASES = [{"keep": keep, "causal": causal, "window": window, "documents": documents}
         for keep in (None, KEEP) for causal in (False, True) for window in (None, 1, 3) for documents in (None, DOCUMENTS)]


def named(case) -> str:
    return "-".join(f"window{v}" if k == "window" else k for k, v in case.items() if v is not None and v is not False) or "all"


def may_attend(case, b, i, j) -> bool:
    """Query i, key j of row b, both counted from the first key."""
    return ((case["keep"] is None or bool(case["keep"][b, j])) and (not case["causal"] or j <= i)
            and (case["window"] is None or abs(i - j) < case["window"])
            and (case["documents"] is None or int(case["documents"][b, i]) == int(case["documents"][b, j])))


@pytest.mark.parametrize("T", [11, 4, 1], ids="T{}".format)
@pytest.mark.parametrize("case", CASES, ids=named)
def test_dense_is_the_definition(case, T):
    truth = torch.tensor([[[may_attend(case, b, S - T + t, j) for j in range(S)] for t in range(T)] for b in range(B)])
    assert torch.equal(Mask(**case).dense(T, S, CPU).expand(B, 1, T, S)[:, 0], truth)


@pytest.mark.parametrize("queries, keys", [(range(0, 11), range(0, 11)), (range(3, 8), range(5, 7)), (range(9, 11), range(0, 5)), (range(2, 3), range(10, 11))])
@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_part_is_the_slice_of_the_whole(case, queries, keys):
    mask = Mask(**case)
    whole = mask.dense(S, S, CPU).expand(B, 1, S, S)
    part = mask.part(queries, keys, CPU)
    assert part.dtype == torch.bool and part.shape[1] == 1
    assert torch.equal(part.expand(B, 1, len(queries), len(keys)), whole[:, :, queries.start : queries.stop, keys.start : keys.stop])


@pytest.mark.parametrize("facts, restricts", [({}, False), ({"causal": True}, False), ({"window": 2}, True), ({"keep": KEEP}, True), ({"documents": DOCUMENTS}, True)])
def test_restricts(facts, restricts):
    assert Mask(**facts).restricts() is restricts


def test_positions_count_attended_tokens():
    keep = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    truth = []
    for row in keep.tolist():
        seen = 0
        for i, here in enumerate(row):
            row[i] = max(seen - (not here), 0)
            seen += here
        truth.append(row)
    assert positions_from(keep).tolist() == truth
    assert positions_from(keep)[1, 2:].tolist() == positions_from(keep)[2, :3].tolist() == [0, 1, 2]


def test_positions_restart_in_each_document():
    truth = []
    for row in DOCUMENTS.tolist():
        positions = [0]
        for before, here in pairwise(row):
            positions.append(positions[-1] + 1 if here == before else 0)
        truth.append(positions)
    assert positions_in_documents(DOCUMENTS).tolist() == truth
    assert truth[0] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]
