"""Named comparisons with peers: each side in a process of its own, in turns, on the same machine in the same run."""
from .rows import ROWS, Row
from .compare import run

__all__ = ["ROWS", "Row", "run"]
