"""The architecture as data: every field is a fact of the maths, none is a family's name."""
from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields

ACTIVATION_NAMES = ("gelu", "gelu_tanh", "relu", "silu")


@dataclass(frozen=True)
class ModelConfig:
    """What a model computes. Two models with equal configs compute the same function of their weights. The defaults are BERT's.

    Raises: ValueError naming the field, its value and what it may be; KeyError from `from_dict` for a field that does not exist.
    """

    # sizes
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_len: int                        # positions a sequence may use, in tokens
    n_kv_heads: int | None = None       # None: as many as query heads
    n_token_types: int = 2              # segment embeddings; 0: none
    # the block
    norm_position: str = "post"         # "post": x = norm(x + f(x));  "pre": x = x + f(norm(x))
    norm_eps: float = 1e-12
    activation: str = "gelu"            # "gelu" | "gelu_tanh" | "relu" | "silu"
    causal: bool = False
    window: int | None = None           # keys at a distance >= window are out of sight; None: all are in sight
    # the ends
    embed_norm: bool = True             # LayerNorm after the embeddings
    final_norm: bool = False            # LayerNorm after the last block
    pooler: bool = True                 # tanh layer on the first token, for the heads that read it
    # training; every probability is in [0, 1)
    dropout: float = 0.1                # on the output of every sub-layer
    attn_dropout: float | None = None   # on the attention probabilities; None: as `dropout`
    embed_dropout: float | None = None  # on the embeddings; None: as `dropout`
    head_dropout: float | None = None   # before a classifier; None: as `dropout`
    init_std: float = 0.02              # standard deviation of fresh matrices

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_len"):
            whole_number(name, getattr(self, name), 1)
        whole_number("n_token_types", self.n_token_types, 0)
        whole_number("n_kv_heads", self.kv_heads, 1)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: choose a width every head can share equally")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}: each key/value head serves the same number of query heads")
        if self.window is not None:
            whole_number("window", self.window, 1)                           # the token itself is always in sight
        for name in ("dropout", "attn_dropout", "embed_dropout", "head_dropout"):
            if not isinstance(self.rate(name), int | float) or not 0 <= self.rate(name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is a probability in [0, 1): give 0.0 to switch it off")
        for name in ("norm_eps", "init_std"):
            if not isinstance(getattr(self, name), int | float) or not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; it is a number, 0 or more: give the one the architecture has")
        choose("norm_position", self.norm_position, ("pre", "post"))
        choose("activation", self.activation, ACTIVATION_NAMES)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    def rate(self, name: str) -> float:
        """The dropout probability `name`, which follows `dropout` unless it was given."""
        value = getattr(self, name)
        return self.dropout if value is None else value

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise KeyError(f"unknown fields {sorted(unknown)}; a ModelConfig has {[f.name for f in fields(cls)]}: correct or remove them")
        if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]:
            raise KeyError(f"no {', '.join(missing)}; a ModelConfig needs the sizes {[f.name for f in fields(cls) if f.default is MISSING]}: add them")
        return cls(**values)


def whole_number(field: str, value, least: int) -> None:
    """Refuse a value that is not an integer >= `least`, with a ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{field}={value!r}; it is an int, {least} or more: give the number the architecture has")


def choose(field: str, value, options: tuple) -> None:
    """Refuse a value that is not one of `options`, with a ValueError that lists them."""
    if value not in options:
        raise ValueError(f"{field}={value!r}; it is one of {', '.join(map(repr, options))}: choose one of these")
