"""The architecture as data: every field is a fact of the maths, none is a family's name."""
from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

ACTIVATION_NAMES = ("gelu", "gelu_tanh", "relu", "silu", "tanh", "quick_gelu")
SCALINGS = ("none", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """Positions told by turning queries and keys (RoPE). The formulas are in nn/positions.py.

    Raises: ValueError naming the field, its value and what it may be.
    """

    theta: float = 10_000.0             # base of the wave lengths
    local_theta: float | None = None    # the base in blocks that see a window only; None: as theta
    share: float = 1.0                  # how much of each head turns, from its start; the rest stays
    scaling: str = "none"               # for texts longer than those trained on: "none" | "linear" | "llama3"
    factor: float = 1.0                 # how much longer
    low: float = 1.0                    # of "llama3": waves longer than original_len / low are stretched by factor
    high: float = 4.0                   # of "llama3": waves shorter than original_len / high are left as they are
    original_len: int = 8192            # of "llama3": the length trained on, in tokens

    def __post_init__(self) -> None:
        for name in ("theta", "local_theta", "factor", "low", "high"):
            if (value := getattr(self, name)) is not None and not (is_number(value) and value > 0):
                raise ValueError(f"rotary.{name}={value!r}; it is a number above 0: give the one the architecture has")
        if not is_number(self.share) or not 0 < self.share <= 1:
            raise ValueError(f"rotary.share={self.share!r}; it is in (0, 1]: give the share of each head that turns")
        if self.high <= self.low:
            raise ValueError(f"rotary.high={self.high}, rotary.low={self.low}; waves between the two are blended: high is the larger one")
        whole_number("rotary.original_len", self.original_len, 1)
        choose("rotary.scaling", self.scaling, SCALINGS)


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
    head_width: int | None = None       # numbers in a head's query; None: d_model / n_heads
    d_embed: int | None = None          # width of the token table, which a Linear then takes to d_model; None: d_model, without one
    shared_blocks: bool = False         # one block is applied n_layers times
    # positions
    positions: str = "learned"          # "learned" | "sinusoidal" | "none": what is added to the token vectors
    position_offset: int = 0            # rows of the position table that stand before position 0
    rotary: Rotary | None = None        # queries and keys are turned by their position
    relative_buckets: int = 0           # scores get a learned number for the distance, in so many buckets; 0: they do not
    relative_distance: int = 128        # distances from here on share a bucket
    # the block
    norm_position: str = "post"         # "post": x = norm(x + f(x));  "pre": x = x + f(norm(x))
    norm: str = "layer"                 # "layer" | "rms"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    first_norm: bool = True             # with "pre": the norm before the first attention; False: what comes from the embeddings goes in as it is
    parallel: bool = False              # with "pre": x = x + attention(norm(x)) + mlp(norm'(x)), both from the same x
    qkv_bias: bool = True
    o_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False               # RMSNorm on each head's queries and keys
    attn_scale: float | None = None     # what q k^T is multiplied by; None: 1 / sqrt(width of a head)
    activation: str = "gelu"            # one of ACTIVATION_NAMES
    gated: bool = False                 # down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))
    causal: bool = False
    window: int | None = None           # keys at a distance >= window are out of sight; None: all are in sight
    global_layers: tuple[int, ...] = () # numbers of the blocks that see everything in spite of `window`
    wide_stream: bool = False           # in float16 the stream x, and what the feed-forward part adds to it, are float32: its numbers outgrow float16
    # a second stack of blocks, which writes while it looks at what the first one has read
    n_decoder_layers: int = 0           # 0: there is none
    n_decoder_heads: int | None = None  # None: as n_heads
    d_decoder_ff: int | None = None     # None: as d_ff
    cross_attention: bool = False       # blocks look at the states of another stack too: `decoder_side` sets it
    start_id: int | None = 0            # the token a text that is written begins with; None: its own last one, which names its language
    pad_id: int = 0                     # the token read in the place of a label that is no target
    # the ends
    embed_scale: float = 1.0            # token vectors are multiplied by it
    embed_norm: bool = True             # norm after the embeddings
    final_norm: bool = False            # norm after the last block
    pooler: bool = True                 # tanh layer on the first token, for the heads that read it
    tied: bool = True                   # the output matrix of a vocabulary head is the token table
    output_bias: bool = False           # a causal or seq2seq head adds a number to each logit
    logit_scale: float = 1.0            # what a vocabulary head reads is multiplied by it
    transform_bias: bool = True         # of the dense layer in front of a head's last matrix
    head_activation: str | None = None  # of the dense layer of a masked head; None: as `activation`
    classifier: str = "plain"           # in front of a classifier: "plain": nothing | "dense": dense + activation, for whole texts |
                                        # "transform": dense + activation + norm, for tokens and spans too
    classifier_activation: str = "tanh"
    classifier_pooling: str = "first"   # what an encoder's classifier reads of a text: its "first" token | the "mean" of all
    # training; every probability is in [0, 1)
    dropout: float = 0.1                # on the output of every sub-layer
    attn_dropout: float | None = None   # on the attention probabilities; None: as `dropout`
    mlp_dropout: float = 0.0            # inside the feed-forward part, before its last matrix
    embed_dropout: float | None = None  # on the embeddings; None: as `dropout`
    head_dropout: float | None = None   # before a classifier; None: as `dropout`
    init_std: float = 0.02              # standard deviation of fresh matrices

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_len", "relative_distance"):
            whole_number(name, getattr(self, name), 1)
        for name in ("n_token_types", "position_offset", "relative_buckets", "n_decoder_layers", "pad_id"):
            whole_number(name, getattr(self, name), 0)
        whole_number("n_kv_heads", self.kv_heads, 1)
        for name in ("head_width", "d_embed", "n_decoder_heads", "d_decoder_ff"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1)
        if self.start_id is not None:
            whole_number("start_id", self.start_id, 0)
        if self.head_width is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: choose a width every head can share equally")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}: each key/value head serves the same number of query heads")
        if self.window is not None:
            whole_number("window", self.window, 1)                           # the token itself is always in sight
        for name in ("dropout", "attn_dropout", "mlp_dropout", "embed_dropout", "head_dropout"):
            if not isinstance(self.rate(name), int | float) or not 0 <= self.rate(name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is a probability in [0, 1): give 0.0 to switch it off")
        for name in ("norm_eps", "init_std", "embed_scale", "logit_scale", "attn_scale"):
            if (value := getattr(self, name)) is not None and not (is_number(value) and value >= 0):
                raise ValueError(f"{name}={value}; it is a number, 0 or more: give the one the architecture has")
        if self.rotary is not None and int(self.d_head * self.rotary.share) % 2:
            raise ValueError(f"rotary.share={self.rotary.share} of heads {self.d_head} wide turns {int(self.d_head * self.rotary.share)} numbers; they turn in pairs: "
                             "give a share that is an even number of them")
        for i in self.global_layers:
            whole_number("global_layers", i, 0)
        for name, options in CHOICES.items():
            choose(name, getattr(self, name), options)
        if self.head_activation is not None:
            choose("head_activation", self.head_activation, ACTIVATION_NAMES)

    def encoder_side(self) -> ModelConfig:
        """The stack that reads, alone."""
        return replace(self, n_decoder_layers=0, n_decoder_heads=None, d_decoder_ff=None)

    def decoder_side(self) -> ModelConfig:
        """The stack that writes: causal, with cross-attention to what was read."""
        return replace(self, n_layers=self.n_decoder_layers, n_heads=self.decoder_heads, d_ff=self.decoder_ff, causal=True,
                       cross_attention=True, n_decoder_layers=0, n_decoder_heads=None, d_decoder_ff=None)

    @property
    def decoder_heads(self) -> int:
        return self.n_heads if self.n_decoder_heads is None else self.n_decoder_heads

    @property
    def decoder_ff(self) -> int:
        return self.d_ff if self.d_decoder_ff is None else self.d_decoder_ff

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads if self.head_width is None else self.head_width

    @property
    def embed_width(self) -> int:
        return self.d_model if self.d_embed is None else self.d_embed

    @property
    def score_scale(self) -> float:
        return 1 / math.sqrt(self.d_head) if self.attn_scale is None else self.attn_scale

    @property
    def endless(self) -> bool:
        """Whether positions are told by distances alone: max_len is then what a text is cut to unless asked otherwise, and no limit of the maths."""
        return self.positions == "none" and self.rotary is None

    def window_of(self, i: int) -> int | None:
        """How far block i sees."""
        return None if i in self.global_layers else self.window

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
        values = dict(values)
        if isinstance(values.get("rotary"), dict):
            values["rotary"] = Rotary(**values["rotary"])
        values["global_layers"] = tuple(values.get("global_layers", ()))         # JSON knows lists only
        if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]:
            raise KeyError(f"no {', '.join(missing)}; a ModelConfig needs the sizes {[f.name for f in fields(cls) if f.default is MISSING]}: add them")
        return cls(**values)


CHOICES: dict[str, tuple[str, ...]] = {
    "positions": ("learned", "sinusoidal", "none"), "norm_position": ("pre", "post"), "norm": ("layer", "rms"), "activation": ACTIVATION_NAMES,
    "classifier": ("plain", "dense", "transform"), "classifier_activation": ACTIVATION_NAMES, "classifier_pooling": ("first", "mean")}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole_number(field: str, value, least: int) -> None:
    """Refuse a value that is not an integer >= `least`, with a ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{field}={value!r}; it is an int, {least} or more: give the number the architecture has")


def choose(field: str, value, options: tuple) -> None:
    """Refuse a value that is not one of `options`, with a ValueError that lists them."""
    if value not in options:
        raise ValueError(f"{field}={value!r}; it is one of {', '.join(map(repr, options))}: choose one of these")
