"""What a frozen body says of each text: computed once, kept on disk, and read from there by a head or by any other classifier.

One set of rows read by one body is one folder `<cache>/<key>/`, where the key is a hash of the body's weights, of the rows and of what is read:

    features.bin    float32 (N, W), row after row
    offsets.bin     int64, row i is features[offsets[i]:offsets[i + 1]]
    keys.bin        16 bytes a row, a hash of its ids
    meta.json       sizes; written last

It is written in a folder aside that is renamed when complete. Memory does not grow with the number of rows.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..config import choose
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.evaluating import evaluating
from ..nn.heads import BodyOutput, first_token
from ..nn.model import Model
from ..nn.pooling import pool
from ..nn.trace import Trace
from ..text import Tokenizer, read_rows
from ..text.readers import column
from ..text.tokenizer import check_tokens
from ..weights.files import flush, write_json
from .named import check_not_by_row

FORMAT = 1          # of the files; part of the key
POOLINGS = ("first", "last", "mean", "each")
KEY = 16            # bytes
BATCH = 32          # rows that the body reads at a time


@dataclass(frozen=True)
class Reading:
    """What is taken of a text: which states, side by side, and which positions.

    Args:   layers: numbers of hidden states: 0 = the embeddings, i = after block i, -1 = what a head reads.
            pooling: the "first" or the "last" token, the "mean" over all tokens, or "each" of them.
    """

    layers: tuple[int, ...] = (-1,)
    pooling: str = "first"

    def __post_init__(self) -> None:
        choose("pooling", self.pooling, POOLINGS)
        if not self.layers:
            raise ValueError("layers=(); a vector is made of one layer at least: give some, such as -1")

    def take(self, states: Sequence[Float[Tensor, "B T _"]], keep: Bool[Tensor, "B T"]) -> list[Float[Tensor, "n W"]]:
        """One matrix for each text. Raises: ValueError for a layer that the model does not have."""
        if wrong := [i for i in self.layers if not -len(states) <= i < len(states)]:
            raise ValueError(f"layer {wrong[0]} of a model with {len(states) - 1} blocks; 0 are the embeddings and i is the state after block i: "
                             f"give {-len(states)} to {len(states) - 1}")
        x = torch.cat([states[i] for i in self.layers], -1)                      # (B, T, W)
        if self.pooling == "each":
            return [one[kept] for one, kept in zip(x, keep, strict=True)]
        if self.pooling == "mean":
            return list(((x * keep[..., None]).sum(1) / keep.sum(1)[:, None])[:, None])
        last = (torch.arange(x.shape[1], device=x.device) * keep).argmax(-1)     # (B,)
        return list((first_token(x, keep) if self.pooling == "first" else x[torch.arange(len(x), device=x.device), last])[:, None])


def reading_of(model: Model) -> Reading:
    """What the model's head reads."""
    return Reading(pooling=model.head.pooling if model.head_name == "sequence" and model.head.pooling in ("first", "last") else "each")


@dataclass(frozen=True)
class Features:
    """Rows by the hash of their ids: `features[key]` is (n, W). Memory-mapped: indexing reads only what it needs."""

    folder: Path
    values: np.ndarray
    offsets: np.ndarray
    number: dict[bytes, int]

    def __contains__(self, key: bytes) -> bool:
        return key in self.number

    def __getitem__(self, key: bytes) -> np.ndarray:
        i = self.number[key]
        return self.values[int(self.offsets[i]):int(self.offsets[i + 1])]


def rows_of(batch: dict[str, Tensor]) -> Iterator[tuple[bytes, Tensor, Tensor | None]]:
    """Each row of a batch as (hash, ids, type ids), without its padding."""
    ids, types, keep = (None if (t := batch.get(name)) is None else t.cpu() for name in ("input_ids", "token_type_ids", "attention_mask"))
    assert ids is not None
    for i, row in enumerate(ids):
        kept = slice(None) if keep is None else keep[i].bool()
        one, type_row = row[kept], None if types is None else types[i][kept]
        types_read = b"" if type_row is None or not type_row.any() else type_row.long().numpy().tobytes()      # type 0 is what a text without types has
        yield hashlib.blake2b(len(one).to_bytes(8, "little") + one.long().numpy().tobytes() + types_read, digest_size=KEY).digest(), one, type_row


def body_hash(model: Model) -> str:
    """Of everything below the head: the config, the modules with their settings (an adapter's scale, whether it is on), the weights and their names."""
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True, default=str).encode())
    above = ("head", "pooler")
    for name, module in model.named_modules():
        if name and not name.startswith(above):
            settings = {key: value for key, value in vars(module).items() if (isinstance(value, bool | int | float | str) or is_dataclass(value)) and key != "training"}
            digest.update(f"{name} {type(module).__name__} {settings} {module.extra_repr()}".encode())
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if not name.startswith(above):
            digest.update(name.encode() + p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def read_body(model: Model, rows: Sequence[tuple[bytes, Tensor, Tensor | None]], reading: Reading) -> list[Float[Tensor, "n W"]]:
    """The body's forward pass over some rows, without dropout and in the model's own precision.

    Raises: ValueError for an encoder-decoder.
    """
    if isinstance(model, EncoderDecoder):
        raise ValueError('the features of an encoder-decoder; what a text looks like is what its encoder says: load its encoder alone, with head="embedding" or "token", '
                         "or choose lora or full")
    T = max(len(ids) for _, ids, _ in rows)
    ids, types = torch.zeros(len(rows), T, dtype=torch.long), torch.zeros(len(rows), T, dtype=torch.long)
    keep = torch.zeros(len(rows), T, dtype=torch.bool)
    for i, (_, one, type_row) in enumerate(rows):
        ids[i, : len(one)], keep[i, : len(one)] = one, True
        if type_row is not None:
            types[i, : len(one)] = type_row
    trace, device = Trace(False), model.device
    with evaluating(model), torch.autocast(device.type, enabled=False):
        model.body(ids.to(device), keep.to(device), types.to(device) if model.config.n_token_types else None, trace=trace)
    return reading.take(trace.states, keep.to(device))


def features_of(model: Model, batches: Iterable[dict[str, Tensor]], reading: Reading, cache: str | Path | None = None) -> Features:
    """The features of every row in `batches`: computed at the first call, opened at the next ones.

    Args:   cache: the folder of all of them; default $XDG_CACHE_HOME/minitransfer/features, or ~/.cache/minitransfer/features.
    """
    check_not_by_row(model, "extract_features")
    rows = {row[0]: row for batch in batches for row in rows_of(batch)}
    key = hashlib.sha256(f"{FORMAT} {body_hash(model)} {reading}".encode() + b"".join(sorted(rows))).hexdigest()[:32]
    root = Path(cache) if cache is not None else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitransfer" / "features"
    if (found := open_features(root / key)) is not None:
        return found
    root.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
    try:
        write_features(aside, model, sorted(rows.values(), key=lambda row: (len(row[1]), row[0])), reading)
        flush(aside)
        if (damaged := root / key).exists() and open_features(damaged) is None:
            shutil.rmtree(damaged)
        try:
            aside.rename(root / key)
        except OSError:                     # another process was faster: its features are as good as ours
            if open_features(root / key) is None:
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    made = open_features(root / key)
    assert made is not None
    return made


def write_features(folder: Path, model: Model, rows: Sequence[tuple[bytes, Tensor, Tensor | None]], reading: Reading) -> None:
    ends, width = [0], 0
    with (folder / "features.bin").open("wb") as file:
        for start in range(0, len(rows), BATCH):
            for one in read_body(model, rows[start : start + BATCH], reading):
                file.write(one.float().cpu().contiguous().numpy().tobytes())
                ends.append(ends[-1] + len(one))
                width = one.shape[1]
    (folder / "offsets.bin").write_bytes(np.array(ends, np.int64).tobytes())
    (folder / "keys.bin").write_bytes(b"".join(key for key, _, _ in rows))
    write_json(folder / "meta.json", {"rows": len(rows), "positions": ends[-1], "width": width})


def open_features(folder: Path) -> Features | None:
    """The features in `folder`, or None if there are none or its files are not as long as they should be."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        n, positions, width = meta["rows"], meta["positions"], meta["width"]
        sizes = {"features.bin": 4 * positions * width, "offsets.bin": 8 * (n + 1), "keys.bin": KEY * n}
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
        keys = (folder / "keys.bin").read_bytes()
        return Features(folder, np.memmap(folder / "features.bin", np.float32, "r", shape=(positions, width)), np.fromfile(folder / "offsets.bin", np.int64),
                        {keys[KEY * i:KEY * (i + 1)]: i for i in range(n)})
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def remembered(model: Model, features: Features, reading: Reading) -> Iterator[None]:
    """Within this block the body answers from `features` for the rows it has read; the blocks run for other rows only. A pooler still runs: it may train."""
    body = model.body

    def recall(input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, *more: Any, **others: Any) -> BodyOutput:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        keys = [key for key, _, _ in rows_of({name: t for name, t in batch.items() if t is not None})]
        if any(one is not None for one in (*more, *others.values())) or not all(key in features for key in keys):
            return body(input_ids, attention_mask, token_type_ids, *more, **others)
        found = torch.from_numpy(np.concatenate([features[key] for key in keys])).to(input_ids.device, model.embed.tokens.weight.dtype)
        if reading.pooling == "each":
            keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
            x = found.new_zeros(*keep.shape, found.shape[1])                     # (B, T, D)
            x[keep] = found
        else:
            keep, x = torch.ones(len(keys), 1, dtype=torch.bool, device=input_ids.device), found[:, None]    # (B, 1, D)
        return BodyOutput(x, keep, pool(model.pooler, model.config, x, keep, input_ids))
    vars(model)["body"] = recall            # shadows the method of this one model
    try:
        yield
    finally:
        del vars(model)["body"]


def extract_features(model: Model, tok: Tokenizer, rows: Any, text: str = "text", pair: str | None = None, label: str | None = "label",
                     layers: int | Sequence[int] = -1, pooling: str = "auto", max_length: int | None = None,
                     cache: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What the body says of each row as an array, for any estimator of scikit-learn.

        X, y = extract_features(model, tok, rows, layers=(-4, -3, -2, -1))
        LogisticRegression(max_iter=1000).fit(X, y)

    Args:    rows: anything `read_rows` reads; text, pair, label: its columns; label=None: rows without labels.
             layers: of the hidden states (0 = the embeddings, -1 = the last); several are put side by side.
             pooling: "first", "last", "mean", or "auto": the last token of a causal model, the first of another.
             max_length: longer texts are cut; default: what tokenizer and model can read. cache: see `features_of`.
    Returns: features (N, W), float32, W = d_model times the number of layers; labels (N,), as they are in the rows, empty without a label column.
    Raises:  KeyError for a column that is not there; ValueError for a layer or a pooling that is not, and for a text without a token.
    Source:  Devlin et al. 2019, section 5.3 (the last four layers side by side).
    """
    if pooling == "each":
        raise ValueError("pooling='each' gives texts of different shape; an array needs one vector a text: choose 'first', 'last' or 'mean'")
    auto = "last" if model.config.causal else "first"
    reading = Reading((layers,) if isinstance(layers, int) else tuple(layers), auto if pooling == "auto" else pooling)
    found = read_rows(rows)
    labels = np.array([] if label is None else column(found, label))
    limit = min(model.longest, tok.max_len or model.longest) if max_length is None else max_length
    ids, type_ids = tok.encode_rows(column(found, text), None if pair is None else column(found, pair), limit)
    check_tokens(ids, "row")
    singles = [tok.collate([one], [types]) for one, types in zip(ids, type_ids, strict=True)]
    features = features_of(model, singles, reading, cache)
    X = np.concatenate([features[key] for single in singles for key, _, _ in rows_of(single)])
    return X, labels
