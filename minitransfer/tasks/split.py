"""Whether held-out rows are fit to judge a model: they are other rows than those it learned from, and more than one answer is right among them."""
from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

HALF, NOTED = 0.5, 0.05     # shares of held-out rows seen in training: refused from, warned about from


def key(row: dict, columns: Sequence[str]) -> str:
    return json.dumps([row.get(name) for name in columns], default=str)


def check_held_out(train: Sequence[dict], validation: Sequence[dict], columns: Sequence[str]) -> None:
    """Held-out rows that are also training rows measure memory and not learning.

    Args:   columns: those that hold the question; the answer does not matter.
    Raises: ValueError if half of the validation rows or more are among the training rows, or repeat other validation rows.
    Warns:  from a twentieth of training rows.
    """
    if not validation:
        return
    known = {key(row, columns) for row in train}
    seen = [i for i, row in enumerate(validation) if key(row, columns) in known]
    what = (f"{len(seen)} of {len(validation)} validation rows are also training rows (the same {' and '.join(columns)}, first validation row "
            f"{seen[0] if seen else 0})")
    if len(seen) >= HALF * len(validation):
        raise ValueError(f"{what}; what was learned by heart says nothing of new texts: split the rows so that no text is in both parts")
    if len(seen) >= NOTED * len(validation):
        warnings.warn(f"{what}: the metrics are better than they would be on new texts; drop these rows from one part", UserWarning, stacklevel=3)
    if len(different := {key(row, columns) for row in validation}) <= HALF * len(validation) and len(validation) >= 10:
        raise ValueError(f"the {len(validation)} validation rows are {len(different)} different ones (by their {' and '.join(columns)}), repeated; so few say less than "
                         "their number promises: drop the repetitions")


def check_several(labels: Sequence[str], split: str, what: str = "rows") -> None:
    """Raises: ValueError for ten rows or more with one label: what always answers with it would be perfect."""
    if len(labels) >= 10 and len(set(labels)) == 1:
        raise ValueError(f"all {len(labels)} {split} {what} have the label {labels[0]!r}; nothing can be measured with one label: the rows may be the top of a "
                         "file sorted by label, draw them with sample_rows(rows, n, by=label)")
