"""`minitransfer <verb>`: the engine from a shell. Each verb reads its words, calls one public function and prints what came back."""
from .main import main

__all__ = ["main"]
