"""Text: tokenizers, corpora, and the batches made of them.

Reading order: tokenizer.py (ids), corpus.py (documents), cache.py (documents as ids on disk), packing.py (rows of ids for pretraining),
readers.py and batches.py (rows with labels).
"""
from .batches import LabelledBatches
from .cache import TokenCache, tokenize_corpus
from .corpus import read_texts
from .packing import PackedBatches
from .pydoc_corpus import read_pydoc
from .readers import read_rows, sample_rows
from .tokenizer import Tokenizer, TruncationWarning

__all__ = ["LabelledBatches", "PackedBatches", "TokenCache", "Tokenizer", "TruncationWarning", "read_pydoc", "read_rows", "read_texts", "sample_rows",
           "tokenize_corpus"]
