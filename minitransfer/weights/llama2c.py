"""llama2.c's files: a LLaMA as seven numbers and its tensors in a row, and a tokenizer as pieces with scores; both become the standard layout.

    weights      dim hidden layers heads kv_heads vocab length (int32; vocab < 0: the output matrix is not the token table), then float32, each for all layers:
                 tokens, norm before attention, wq wk wv wo, norm before feed-forward, w1 w2 w3, last norm, two tables of angles, which follow from
                 the length, and the output matrix if it is one of its own
    tokenizer    the longest piece (int32), then score (float32), length (int32) and bytes of each

Source: Karpathy 2023, github.com/karpathy/llama2.c, `export.py` (version 0) and `tokenizer.py`. All numbers are little-endian.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor

from ..config import ModelConfig, Rotary
from ..nn.model import Model
from .files import write_json
from .save import save_pretrained
from .tensors import check_finite

HEADER = struct.Struct("<7i")
MOST = (1 << 16, 1 << 20, 1 << 10, 1 << 10, 1 << 10, 1 << 24, 1 << 24)              # larger numbers are no header
NEWER = struct.pack("<I", 0x616B3432)                                           # "ak42" begins the files of llama2.c's later versions
SPECIALS, N_BYTES = ("<unk>", "<s>", "</s>"), 256                               # the first pieces, then one for each byte


@dataclass(frozen=True)
class Header:
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    length: int
    tied: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every array of the file, in order, under our names; {i} stands for each layer, the first axis."""
        D, F, L, kv = self.dim, self.hidden, self.layers, self.kv_heads * (self.dim // self.heads)
        angles = {name: (self.length, self.dim // self.heads // 2) for name in ("cos", "sin")}
        return {"embed.tokens": (self.vocab, D), "blocks.{i}.norm_attn": (L, D), "blocks.{i}.attn.q_proj": (L, D, D), "blocks.{i}.attn.k_proj": (L, kv, D),
                "blocks.{i}.attn.v_proj": (L, kv, D), "blocks.{i}.attn.o_proj": (L, D, D), "blocks.{i}.norm_mlp": (L, D), "blocks.{i}.mlp.gate_proj": (L, F, D),
                "blocks.{i}.mlp.down_proj": (L, D, F), "blocks.{i}.mlp.up_proj": (L, F, D), "norm": (D,), **angles,
                **({} if self.tied else {"head.unembed": (self.vocab, D)})}

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=self.vocab, d_model=self.dim, n_layers=self.layers, n_heads=self.heads, n_kv_heads=self.kv_heads, d_ff=self.hidden, max_len=self.length,
            n_token_types=0, positions="none", rotary=Rotary(theta=10_000.0), norm_position="pre", norm="rms", norm_eps=1e-5, qkv_bias=False, o_bias=False,
            mlp_bias=False, activation="silu", gated=True, causal=True, embed_norm=False, final_norm=True, pooler=False, tied=self.tied, dropout=0.0)


def header_of(path: Path) -> Header | None:
    """What the first numbers of the file say; None if they cannot be those of a model.

    Raises: ValueError for a file of llama2.c's later versions.
    """
    with path.open("rb") as file:
        start = file.read(HEADER.size)
    if start.startswith(NEWER):
        raise ValueError(f"{path} is a later version of llama2.c's format; version 0 is read: export the model again with `export.py --version 0`")
    if len(start) < HEADER.size:
        return None
    dim, hidden, layers, heads, kv_heads, vocab, length = HEADER.unpack(start)
    sizes = dim, hidden, layers, heads, kv_heads, abs(vocab), length
    if not all(0 < one <= most for one, most in zip(sizes, MOST, strict=True)) or dim % heads or dim // heads % 2 or heads % kv_heads:
        return None
    return Header(*sizes, tied=vocab > 0)


def model_file(source: Path) -> Path | None:
    """The file of weights that `source` is, or the only one in its folder; None if there is none.

    Raises: ValueError for a folder with several.
    """
    found = [path for path in (sorted(source.glob("*.bin")) if source.is_dir() else [source]) if path.is_file() and header_of(path) is not None]
    if len(found) > 1:
        raise ValueError(f"{source} has {', '.join(path.name for path in found)}; one model is converted at a time: give one of these files")
    return found[0] if found else None


def read_arrays(path: Path, header: Header) -> dict[str, Tensor]:
    """Raises: ValueError for a file that is not as long as its header says."""
    counts = [int(np.prod(shape)) for shape in header.shapes.values()]
    needed, there = HEADER.size + 4 * sum(counts), path.stat().st_size
    if there != needed:
        raise ValueError(f"{path} has {there:,} bytes; the model of its header ({header.layers} layers, {header.dim} wide, {header.vocab} tokens, {header.length} "
                         f"positions) needs {needed:,}: it is cut off or another kind of file, fetch it again")
    parts = np.split(np.fromfile(path, "<f4", offset=HEADER.size), np.cumsum(counts)[:-1])
    return {name: torch.from_numpy(part.reshape(shape)) for (name, shape), part in zip(header.shapes.items(), parts, strict=True)}


def halves(matrix: Float[Tensor, "rows D"], d_head: int) -> Float[Tensor, "rows D"]:
    """llama2.c turns neighbours (x_2j, x_2j+1) of each head, we turn (x_j, x_j+R/2): the even rows of a head first, then the odd ones."""
    return matrix.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)


def read_model(path: Path) -> Model:
    """The model in a file of weights. Raises: ValueError for a file that is cut off or lies about its size, or for numbers that are not finite."""
    header = header_of(path)
    if header is None:
        raise ValueError(f"{path} does not begin with the seven sizes of a model; needed is a file of weights of llama2.c: check the path")
    arrays, values = read_arrays(path, header), {}
    for name, array in arrays.items():
        check_finite(f"{name} in {path}", array)
        turns = name.endswith(("q_proj", "k_proj"))
        for i, one in enumerate(array) if "{i}" in name else [(0, array)]:
            values[name.replace("{i}", str(i)) + ".weight"] = halves(one, header.dim // header.heads) if turns else one
    model = Model(header.config, "causal", seed=None)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(values[name])
    model.source_config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
    return model


def tokenizer_file(path: Path, vocab: int) -> Path | None:
    """The tokenizer beside a file of weights, under one of the names that llama2.c gives it."""
    return next((one for name in (f"tok{vocab}.bin", "tokenizer.bin") if (one := path.parent / name).is_file()), None)


def read_pieces(path: Path, vocab: int) -> list[tuple[bytes, float]]:
    """Every piece with its score. Raises: ValueError for a file that holds another number of pieces, or is cut off."""
    data, at, found = path.read_bytes(), 4, []
    while at + 8 <= len(data):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + length
        if length < 0 or at > len(data):
            break
        found.append((data[at - length : at], score))
    if at != len(data) or len(found) != vocab:
        raise ValueError(f"{path} holds {len(found)} whole pieces in its {len(data):,} bytes; the model beside it has {vocab} tokens: it is cut off or belongs to "
                         "another model, fetch it again")
    return found


def ranked_merges(ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Each way to put a piece together from two others, best score first."""
    ways = [(-scores[i], ids[piece[:n]], ids[piece[n:]], (piece[:n], piece[n:])) for piece, i in ids.items() for n in range(1, len(piece))
            if piece[:n] in ids and piece[n:] in ids]
    return [way for *_, way in sorted(ways)]


def make_tokenizer(pieces: list[tuple[bytes, float]]) -> Tokenizer:
    """SentencePiece's BPE: a space before the text, the pair whose piece scores best is joined first, what no piece has is written as bytes.

    Differs from llama2.c: `<s>` and the like within a text are the special tokens, as in LLaMA's own tokenizer.json.
    Raises: ValueError for pieces that are not UTF-8, or do not begin with the special tokens and the bytes.
    """
    try:
        names = [*SPECIALS, *(piece.decode().replace(" ", "▁") for piece, _ in pieces[len(SPECIALS) :])]
    except UnicodeDecodeError as e:
        raise ValueError(f"a piece of the tokenizer is not UTF-8 ({e}); its file is damaged: fetch it again") from None
    ids = {name: i for i, name in enumerate(names)}
    if len(ids) != len(pieces) or names[len(SPECIALS) : len(SPECIALS) + N_BYTES] != [f"<0x{byte:02X}>" for byte in range(N_BYTES)]:
        raise ValueError(f"the tokenizer's {len(pieces)} pieces are not {', '.join(SPECIALS)}, {N_BYTES} bytes and others, each once; llama2.c's are: fetch its file again")
    plain = {name: i for name, i in ids.items() if i >= len(SPECIALS) + N_BYTES}
    backend = Tokenizer(models.BPE(ids, ranked_merges(plain, [score for _, score in pieces]), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIALS])
    return backend


def convert_llama2c(path: Path, folder: Path) -> Model:
    """Write config.json and model.safetensors of the model in `path`, and tokenizer.json and its config if its tokenizer is beside it, into `folder`."""
    model = read_model(path)
    save_pretrained(model, folder)
    if (pieces := tokenizer_file(path, model.config.vocab_size)) is not None:
        make_tokenizer(read_pieces(pieces, model.config.vocab_size)).save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
                                                      "model_max_length": model.config.max_len, "clean_up_tokenization_spaces": False,
                                                      "model_input_names": ["input_ids", "attention_mask"]})
    return model
