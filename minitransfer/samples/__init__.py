"""Small sample data sets that are installed with the package.

They are large enough to show what a method does, and small enough to read.
``README.md`` in this folder says what each file holds.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["path"]


def path(name: str) -> Path:
    """Return the path of the sample file ``name``, such as ``"reviews.train.tsv"``."""
    folder = Path(__file__).parent
    names = sorted(
        file.name for file in folder.iterdir() if file.suffix in {".tsv", ".conll", ".txt", ".md"}
    )
    if name not in names:
        raise ValueError(f"no sample file named {name!r}; there are: {', '.join(names)}")
    return folder / name
