"""Tokenizer files: what is read, and what is written so that `transformers` reads it back.

    tokenizer.json            the whole pipeline; preferred
    vocab.txt                 BERT: one piece a line, the line's number is the id
    vocab.json + merges.txt   GPT-2
    tokenizer_config.json     roles of the special tokens, added tokens, the longest input and which end it loses, lower-casing and accents, whether a space
                              stands before each text: it has the last word where tokenizer.json says otherwise; also special_tokens_map.json of old folders
    sentence_bert_config.json the longest input and lower-casing that sentence-transformers adds
"""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers

from ..weights.files import replace_files, write_json
from . import pipelines
from .pipelines import BERT, GPT2, PIECES, ROLES, Format

# transformers writes 1e30 for "not known"
NO_LIMIT = 10**9
MODEL_OPTIONS = ("continuing_subword_prefix", "max_input_chars_per_word", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges",
                 "dropout")
# what tokenizer_config.json calls the settings of a normaliser and a pre-tokenizer
NORMALIZER = {"do_lower_case": "lowercase", "strip_accents": "strip_accents", "tokenize_chinese_chars": "handle_chinese_chars"}
PRE_TOKENIZER = {"add_prefix_space": "add_prefix_space"}
# of transformers, whose classes of these names take a pipeline as it is
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
# formats whose pair template numbers the two texts although the model has no segment embedding
NO_TOKEN_TYPES = ("DistilBert", "Roberta", "GPT2", "MPNet")


def read(folder: Path) -> tuple[Tokenizer, Format]:
    """The pipeline and the format that `folder` describes.

    Raises:  ValueError if none of the known files is there, or one of them is broken.
    """
    config = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        backend = _tokenizer_json(folder / "tokenizer.json", config)
        _add(backend, folder, config)
    elif (folder / "vocab.txt").is_file():
        backend = _vocab_txt(folder / "vocab.txt", config)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _vocab_and_merges(folder, config)
    else:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
        raise ValueError(f"{folder} holds no tokenizer ({there}); it needs tokenizer.json, or vocab.txt, or vocab.json with merges.txt: "
                         "copy one of them there, or save a tokenizer with save_pretrained")
    sentences = _json(folder / "sentence_bert_config.json")
    if sentences.get("do_lower_case") and not _state(backend.normalizer).get("lowercase"):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([] if backend.normalizer is None else [backend.normalizer])])
    return backend, _format(backend, config | ({"model_max_length": sentences["max_seq_length"]} if sentences.get("max_seq_length") else {}))


def write(backend: Tokenizer, format: Format, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`, beside whatever is there."""
    config: dict = {f"{role}_token": token for role, token in format.tokens.items()}
    config |= {"tokenizer_class": format.hf_class, "model_max_length": format.max_len or int(1e30), "clean_up_tokenization_spaces": False}
    config["model_input_names"] = ["input_ids", *(["token_type_ids"] if format.token_types else []), "attention_mask"]
    norm = _state(backend.normalizer)
    if format.truncation_side != "right":
        config["truncation_side"] = format.truncation_side
    if norm.get("type") == "BertNormalizer":
        config |= {"do_lower_case": norm["lowercase"], "tokenize_chinese_chars": norm["handle_chinese_chars"], "strip_accents": norm["strip_accents"]}
    with replace_files(folder) as new:
        (new / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
        write_json(new / "tokenizer_config.json", config)


def hf_class(backend: Tokenizer) -> str:
    """The class of transformers that gives exactly this pipeline: BERT's and GPT-2's rebuild theirs from the vocabulary and would drop any change."""
    norm, around = _state(backend.normalizer), _state(backend.post_processor)
    if isinstance(backend.model, models.WordPiece) and norm.get("type") == "BertNormalizer" and around and _types_differ(backend):
        model = models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")
        if _same(backend, pipelines.bert(model, norm["lowercase"], norm["handle_chinese_chars"], norm["strip_accents"])):
            return "BertTokenizerFast"
    plain = around.get("type", "ByteLevel") == "ByteLevel"
    if plain and isinstance(backend.model, models.BPE) and _same(backend, pipelines.byte_level(models.BPE())):
        return "GPT2TokenizerFast"
    return "PreTrainedTokenizerFast"


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two pipelines differ in their vocabulary only."""
    parts = all(_state(getattr(one, part)) == _state(getattr(other, part)) for part in ("normalizer", "pre_tokenizer", "decoder"))
    # an option that is not set is None in one file and empty or off in another
    return parts and all((getattr(one.model, name, None) or None) == (getattr(other.model, name, None) or None) for name in MODEL_OPTIONS)


def _state(part: Any) -> dict:
    """A part of a pipeline as its file says it."""
    return {} if part is None else json.loads(part.__getstate__())


def _tokenizer_json(path: Path, config: dict) -> Tokenizer:
    try:
        backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as why:       # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer that this version of `tokenizers` can read ({why}); a whole tokenizer.json is needed: "
                         "fetch it again, or install a newer version") from why
    # Files carry the truncation and padding of whoever saved them last; ours come with each call.
    backend.no_truncation()
    backend.no_padding()
    if config.get("tokenizer_class") not in GENERIC:
        for part, names in ((backend.normalizer, NORMALIZER), (backend.pre_tokenizer, PRE_TOKENIZER)):
            for name, attribute in names.items():
                if name in config and hasattr(part, attribute):
                    setattr(part, attribute, config[name])
    return backend


def _vocab_txt(path: Path, config: dict) -> Tokenizer:
    with path.open(encoding="utf-8") as lines:
        vocab = {line.rstrip("\n"): i for i, line in enumerate(lines)}
    unk = _content(config.get("unk_token")) or "[UNK]"
    if unk not in vocab:
        raise ValueError(f"{path} has no {unk!r}; a WordPiece vocabulary needs the token for unknown words: add the line, or name the token as "
                         "unk_token in tokenizer_config.json")
    lower = config.get("do_lower_case")
    if lower is None:
        specials = {_content(v) for k, v in config.items() if k.endswith("_token")} | set(BERT.tokens.values())
        # names such as [CLS] say nothing about the case of words
        lower = bool(config) or not any(piece != piece.lower() for piece in vocab if piece not in specials)
    backend = pipelines.bert(models.WordPiece(vocab, unk_token=unk), lower, config.get("tokenize_chinese_chars", True), config.get("strip_accents"))
    _add(backend, path.parent, config)
    format = _format(backend, config)
    pipelines.mark_specials(backend, format)
    pipelines.wrap(backend, replace(format, token_types=True))
    return backend


def _vocab_and_merges(folder: Path, config: dict) -> Tokenizer:
    vocab = _json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [_merge(line, f"{folder / 'merges.txt'}, line {n}") for n, line in enumerate(lines, 1) if line and not line.startswith("#version")]
    try:
        model = models.BPE(vocab, merges)
    except Exception as why:       # the library raises a bare Exception
        raise ValueError(f"{folder}: vocab.json and merges.txt do not belong together ({why}): take both from the same model") from why
    backend = pipelines.byte_level(model, prefix_space=config.get("add_prefix_space", False))
    _add(backend, folder, config)
    pipelines.mark_specials(backend, _format(backend, config))
    return backend


def _merge(line: str, where: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    if not (left and right) or " " in right:
        raise ValueError(f"{where}: {line!r}; a merge is two pieces with a space between: fetch the file again")
    return left, right


def _add(backend: Tokenizer, folder: Path, config: dict) -> None:
    """Tokens beyond the vocabulary: those with an id in a file of their own, then special ones that have none yet, which get the next ids."""
    added = {i: AddedToken(token) for token, i in _json(folder / "added_tokens.json").items()}
    added |= {int(i): _token(token) for i, token in config.get("added_tokens_decoder", {}).items()}
    for i, token in sorted(added.items(), key=lambda pair: pair[0]):
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != i:
            raise ValueError(f"{folder}: the added token {token.content!r} has the id {i}; with the vocabulary beside it, it would be "
                             f"{backend.token_to_id(token.content)}: take all files from one model")
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = {f"{role}_token": None for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")} | {k: v for k, v in config.items() if k.endswith("_token")}
    specials = [*named.values(), *(more.values() if isinstance(more, dict) else more)]
    backend.add_special_tokens([_token(token) for token in specials if token and isinstance(token, str | dict)])


def _token(token: str | dict) -> AddedToken:
    """A token as a file writes it, which is by its name or with its settings."""
    return AddedToken(token, special=True) if isinstance(token, str) else AddedToken(**{k: v for k, v in token.items() if k != "__type"})


def _format(backend: Tokenizer, config: dict) -> Format:
    """Roles: as the files say, else the usual names that the vocabulary holds; BERT's names are usual even where only some are said."""
    vocab = backend.get_vocab()
    named = {role: token for role in ROLES if (token := _content(config.get(f"{role}_token")))}
    usual = next((f for f in (BERT, GPT2, PIECES) if any(token in vocab for token in f.tokens.values())), Format())
    if usual is BERT or not named:
        named = usual.tokens | named
    roles = {role: token for role, token in named.items() if token in vocab}
    limit, side = config.get("model_max_length"), config.get("truncation_side", "right")
    if side not in ("right", "left"):
        raise ValueError(f"truncation_side={side!r} in tokenizer_config.json; it is 'right' or 'left': correct the file")
    if config.get("split_special_tokens"):
        raise ValueError("split_special_tokens is on in tokenizer_config.json: the names of special tokens would be cut like words; here a special token "
                         "is one wherever it stands: set it to false, and take such names out of texts before")
    names, cls = config.get("model_input_names"), str(config.get("tokenizer_class", ""))
    types = "token_type_ids" in names if names else _types_differ(backend) and not cls.startswith(NO_TOKEN_TYPES)
    return Format(**roles, max_len=int(limit) if limit and limit < NO_LIMIT else None, token_types=types, truncation_side=side,
                  hf_class=hf_class(backend))


def _types_differ(backend: Tokenizer) -> bool:
    """Whether the post-processor numbers the second text of a pair differently."""
    # without special tokens around the texts the library numbers them by itself, for no model
    return backend.num_special_tokens_to_add(True) > 0 and len(set(backend.encode("a", "a").type_ids)) > 1


def _content(token) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as why:
        raise ValueError(f"{path} is not JSON ({why}): fetch or write the file again") from why
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; it should hold one JSON object: fetch or write the file again")
    return value
