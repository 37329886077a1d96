"""Text: tokenizers, corpora, and the batches made of them.

Reading order: tokenizer.py (ids), corpus.py (documents), cache.py (documents as ids on disk), packing.py (rows of ids for pretraining),
readers.py and batches.py (rows with labels), vectors.py (words as vectors).
"""
from .batches import EncodedBatches, LabelledBatches, TextBatches, label_name
from .cache import TokenCache, tokenize_corpus
from .corpus import read_texts
from .images import ImageReader
from .instructions import InstructionBatches, PreferenceBatches, read_instructions
from .markers import mark_spans
from .packing import PackedBatches
from .pairs import PairBatches
from .pydoc_corpus import read_pydoc
from .readers import read_rows, sample_rows
from .stream import Batches, StreamBatches
from .tokenizer import Tokenizer, TruncationWarning
from .vectors import read_vectors, write_vectors
from .views import attention_view, show

__all__ = ["Batches", "EncodedBatches", "ImageReader", "InstructionBatches", "LabelledBatches", "PackedBatches", "PairBatches", "PreferenceBatches", "StreamBatches", "TextBatches",
           "TokenCache",
           "Tokenizer", "TruncationWarning", "attention_view", "label_name", "mark_spans", "read_instructions", "read_pydoc", "read_rows", "read_texts", "read_vectors",
           "sample_rows", "show", "tokenize_corpus", "write_vectors"]
