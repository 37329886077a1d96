"""The pipelines of the standard tokenizers: normaliser, pre-tokenizer, model, post-processor, decoder.

A pipeline turns a text into ids in five steps; the classes below the names are those of the `tokenizers` library.

    wordpiece   "Hello, it's"  ->  hello , it ' s        BERT: words and punctuation apart, `##` marks the inside of a word
    byte_bpe    "Hello, it's"  ->  Hello , Ġit 's        GPT-2: bytes, so nothing is ever unknown; Ġ marks a space before the token
    bpe         "Hello, it's"  ->  ▁Hello, ▁it's         characters; ▁ marks a space before the token
    unigram     the same pieces, chosen by likelihood instead of by merges
    character   "Hello"        ->  H e l l o

Sources: WordPiece: Wu et al. 2016, section 4.1 (the library's training merges by frequency, not by likelihood); BPE: Sennrich et al. 2016,
section 3.2; byte-level BPE: Radford et al. 2019, section 2.2; unigram: Kudo 2018, section 3.2.
"""
from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

KINDS = ("wordpiece", "bpe", "byte_bpe", "unigram", "character")
ROLES = ("pad", "mask", "cls", "sep", "bos", "eos", "unk")


@dataclass(frozen=True)
class Format:
    """What a tokenizer says about itself beside its pipeline: which token plays which role, and what a model gets to see."""

    pad: str | None = None
    mask: str | None = None
    cls: str | None = None          # before the first text
    sep: str | None = None          # after each text
    bos: str | None = None          # before a document, if a model was trained so
    eos: str | None = None          # after a document
    unk: str | None = None
    max_len: int | None = None      # tokens, specials included; None: not known
    token_types: bool = False       # whether batches carry token_type_ids
    truncation_side: str = "right"  # the end that a long text loses: "right" or "left"
    hf_class: str = "PreTrainedTokenizerFast"

    @property
    def tokens(self) -> dict[str, str]:
        """The roles that are filled, by name."""
        return {role: token for role in ROLES if (token := getattr(self, role)) is not None}


BERT = Format(pad="[PAD]", mask="[MASK]", cls="[CLS]", sep="[SEP]", unk="[UNK]", token_types=True, hf_class="BertTokenizerFast")
GPT2 = Format(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>", hf_class="GPT2TokenizerFast")
# `<s> a </s>` and `<s> a </s> </s> b </s>`: both an encoder (cls, sep, mask) and a decoder (bos, eos) find what they need.
PIECES = Format(pad="<pad>", mask="<mask>", cls="<s>", sep="</s>", bos="<s>", eos="</s>", unk="<unk>")
CHARACTERS = Format(bos="<|endoftext|>", eos="<|endoftext|>", unk="<unk>")
FORMATS = {"wordpiece": BERT, "byte_bpe": GPT2, "bpe": PIECES, "unigram": PIECES, "character": CHARACTERS}


def mark_specials(backend: Tokenizer, format: Format) -> None:
    """Keep the special tokens in one piece wherever they occur in a text."""
    known = backend.get_vocab()
    present = [token for token in dict.fromkeys(format.tokens.values()) if token in known]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in present])


def bert(model: models.Model, lowercase: bool, chinese: bool = True, strip_accents: bool | None = None) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def byte_level(model: models.Model, lowercase: bool = False, prefix_space: bool = False) -> Tokenizer:
    backend = Tokenizer(model)
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def pieces(model: models.Model, lowercase: bool = False) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]) if lowercase else normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def characters(model: models.Model, lowercase: bool = False) -> Tokenizer:
    backend = Tokenizer(model)
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return backend


def wrap(backend: Tokenizer, format: Format) -> None:
    """Put the special tokens around one text and around a pair; called once the vocabulary, and so their ids, is known."""
    if format.cls is None or format.sep is None:
        return
    ids = [(token, backend.token_to_id(token)) for token in (format.cls, format.sep)]
    cls, sep = format.cls, format.sep
    pair = f"{cls} $A {sep} $B:1 {sep}:1" if format.token_types else f"{cls} $A {sep} {sep} $B {sep}"
    backend.post_processor = processors.TemplateProcessing(single=f"{cls} $A {sep}", pair=pair, special_tokens=ids)
