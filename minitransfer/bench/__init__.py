"""Named comparisons with peers: each side in a process of its own, in turns, on the same machine in the same run."""
from . import families, transfer
from .compare import run
from .rows import ROWS, Row

__all__ = ["ROWS", "Row", "families", "run", "transfer"]
