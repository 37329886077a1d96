"""Text: tokenizers, corpora, and the batches made of them.

Reading order: tokenizer.py (ids), corpus.py (documents), cache.py (documents as ids on disk), packing.py (rows of ids for pretraining),
readers.py and batches.py (rows with labels).
"""
from .cache import TokenCache, tokenize_corpus
from .corpus import read_texts
from .packing import PackedBatches
from .tokenizer import Tokenizer, TruncationWarning

__all__ = ["PackedBatches", "TokenCache", "Tokenizer", "TruncationWarning", "read_texts", "tokenize_corpus"]
