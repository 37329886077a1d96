"""The architecture as data: every field is a fact of the maths, none is a family's name."""
from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields, replace

from .config_parts import ACTIVATION_NAMES, Convolution, Disentangled, Rotary, choose, is_number, whole_number


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
    widen_first: bool = False           # that Linear stands before the norm of the embeddings, without a bias; False: after it, with one
    shared_blocks: bool = False         # one block is applied n_layers times
    patch_size: int | None = None       # the input is images, cut into squares of so many pixels a side; None: it is ids
    image_size: int = 224               # of "patch_size": the side of an image, in pixels
    channels: int = 3                   # of "patch_size": numbers a pixel
    # positions
    positions: str = "learned"          # "learned" | "sinusoidal" | "none": what is added to the token vectors
    position_offset: int = 0            # rows of the position table that stand before position 0
    rotary: Rotary | None = None        # queries and keys are turned by their position
    relative_buckets: int = 0           # scores get a learned number for the distance, in so many buckets; 0: they do not
    relative_distance: int = 128        # distances from here on share a bucket
    disentangled: Disentangled | None = None    # queries and keys meet vectors of distances too
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
    attn_scale: float | None = None     # what q k^T is multiplied by; None: 1 / sqrt(width of a head), / sqrt(terms) if disentangled
    activation: str = "gelu"            # one of ACTIVATION_NAMES
    gated: bool = False                 # down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))
    causal: bool = False
    window: int | None = None           # keys at a distance >= window are out of sight; None: all are in sight
    global_layers: tuple[int, ...] = () # numbers of the blocks that see everything in spite of `window`
    convolution: Convolution | None = None      # of the embeddings, added to what the first block gives
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
    pooler: bool = True                 # one vector for the whole text, for the heads that read it
    pooler_kind: str = "dense"          # "dense": tanh layer on the first token | "norm": the first token's vector, normed | "end": the vector of the token that ends it
    end_id: int | None = None           # of "end": the id of that token; None: it has the largest id of the text
    d_project: int | None = None        # width of a "projection" head; None: d_model
    tied: bool = True                   # the output matrix of a vocabulary head is the token table
    output_bias: bool = False           # a causal or seq2seq head adds a number to each logit
    logit_scale: float = 1.0            # what a vocabulary head reads is multiplied by it
    unembed_bias: bool = True           # a number for each token beside a masked head's output matrix
    transform_bias: bool = True         # of the dense layer in front of a head's last matrix
    head_activation: str | None = None  # of the dense layer of a masked head; None: as `activation`
    classifier: str = "plain"           # in front of a classifier: "plain": nothing | "dense": dense + activation, for whole texts |
                                        # "transform": dense + activation + norm, for tokens and spans too
    classifier_activation: str = "tanh"
    classifier_pooling: str = "first"   # what an encoder's classifier reads of a text: its "first" token | the "mean" of all | "concat": see ConcatHead
    # training; every probability is in [0, 1)
    dropout: float = 0.1                # on the output of every sub-layer
    attn_dropout: float | None = None   # on the attention probabilities; None: as `dropout`
    mlp_dropout: float = 0.0            # inside the feed-forward part, before its last matrix
    embed_dropout: float | None = None  # on the embeddings; None: as `dropout`
    head_dropout: float | None = None   # before a classifier; None: as `dropout`
    transform_dropout: float | None = None  # before the dense layer of a "dense" classifier; None: as `head_dropout`
    token_dropout: float | None = None  # before a classifier of tokens; None: as `head_dropout`
    choice_dropout: float | None = None # before the answer of a choice head; None: as `head_dropout`
    span_dropout: float = 0.0           # before a span head
    next_dropout: float = 0.0           # before the second question of a "masked+next" head
    init_std: float = 0.02              # standard deviation of fresh matrices

    def __post_init__(self) -> None:
        whole_number("vocab_size", self.vocab_size, 1 if self.patch_size is None else 0)
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "max_len", "relative_distance"):
            whole_number(name, getattr(self, name), 1)
        for name in ("n_token_types", "position_offset", "relative_buckets", "n_decoder_layers", "pad_id"):
            whole_number(name, getattr(self, name), 0)
        whole_number("n_kv_heads", self.kv_heads, 1)
        for name in ("head_width", "d_embed", "d_project", "patch_size", "image_size", "channels", "n_decoder_heads", "d_decoder_ff"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1)
        if self.start_id is not None:
            whole_number("start_id", self.start_id, 0)
        if self.head_width is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: choose a width every head can share equally")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}: each key/value head serves the same number of query heads")
        if self.end_id is not None:
            whole_number("end_id", self.end_id, 0)
        if self.patch_size is not None and self.max_len != (n := 1 + (self.image_size // self.patch_size) ** 2):
            raise ValueError(f"max_len={self.max_len}; patches of {self.patch_size} pixels in images of {self.image_size}, and one vector for the whole, are {n}: give that")
        if self.window is not None:
            whole_number("window", self.window, 1)                           # the token itself is always in sight
        for name in (f.name for f in fields(self) if f.name.endswith("dropout")):
            if not isinstance(self.rate(name), int | float) or not 0 <= self.rate(name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is a probability in [0, 1): give 0.0 to switch it off")
        for name in ("norm_eps", "init_std", "embed_scale", "logit_scale", "attn_scale"):
            if (value := getattr(self, name)) is not None and not (is_number(value) and value >= 0):
                raise ValueError(f"{name}={value}; it is a number, 0 or more: give the one the architecture has")
        if self.rotary is not None and int(self.d_head * self.rotary.share) % 2:
            raise ValueError(f"rotary.share={self.rotary.share} of heads {self.d_head} wide turns {int(self.d_head * self.rotary.share)} numbers; they turn in pairs: "
                             "give a share that is an even number of them")
        if self.disentangled is not None and (self.relative_buckets or self.kv_heads != self.n_heads):
            raise ValueError(f"disentangled with relative_buckets={self.relative_buckets}, n_kv_heads={self.n_kv_heads}; it is a way of its own to tell distances, and each head "
                             "has keys of its own: leave the other two out")
        if self.convolution is not None and (self.shared_blocks or self.norm_position == "pre" or self.d_model % self.convolution.groups):
            raise ValueError(f"convolution of {self.convolution.groups} groups with d_model={self.d_model}, shared_blocks={self.shared_blocks}, norm_position="
                             f"{self.norm_position!r}; it follows the first of several blocks with norm_position='post', and its groups are of one size: change these")
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
    def project_width(self) -> int:
        return self.d_model if self.d_project is None else self.d_project

    @property
    def score_scale(self) -> float:
        if self.attn_scale is not None:
            return self.attn_scale
        return 1 / math.sqrt(self.d_head * (1 if self.disentangled is None else self.disentangled.terms))

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
        """The dropout probability `name`; one that was not given follows `head_dropout`, or `dropout`."""
        value = getattr(self, name)
        if value is None and name in ("transform_dropout", "token_dropout", "choice_dropout"):
            value = self.head_dropout
        return self.dropout if value is None else value

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise KeyError(f"unknown fields {sorted(unknown)}; a ModelConfig has {[f.name for f in fields(cls)]}: correct or remove them")
        values = dict(values)
        for name, kind in {"rotary": Rotary, "disentangled": Disentangled, "convolution": Convolution}.items():
            if isinstance(values.get(name), dict):
                values[name] = kind(**values[name])
        values["global_layers"] = tuple(values.get("global_layers", ()))         # JSON knows lists only
        if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]:
            raise KeyError(f"no {', '.join(missing)}; a ModelConfig needs the sizes {[f.name for f in fields(cls) if f.default is MISSING]}: add them")
        return cls(**values)


CHOICES: dict[str, tuple[str, ...]] = {
    "positions": ("learned", "sinusoidal", "none"), "norm_position": ("pre", "post"), "norm": ("layer", "rms"), "activation": ACTIVATION_NAMES,
    "pooler_kind": ("dense", "norm", "end"), "classifier": ("plain", "dense", "transform"), "classifier_activation": ACTIVATION_NAMES,
    "classifier_pooling": ("first", "mean", "concat")}


@dataclass(frozen=True)
class NoAttention(ModelConfig):
    """A body without attention: the fields that are attention's stand at values that say so, and a text may be of any length."""

    n_heads: int = 1
    d_ff: int = 1
    max_len: int = 1 << 30
    n_token_types: int = 0
    positions: str = "none"
    attn_scale: float | None = 1.0
    embed_norm: bool = False
    pooler: bool = False

    @property
    def d_head(self) -> int:
        return 0


@dataclass(frozen=True)
class RecurrentConfig(NoAttention):
    """A body of LSTM layers. The defaults are those of an AWD-LSTM: layers of d_hidden cells, of which the last has as many as the token vectors are wide.

    With `both_ways` there are two towers, one reads from the left and one from the right; d_model is the width of both side by side.

    Raises: ValueError naming the field, its value and what it may be.
    """

    d_hidden: int = 1150                # cells of a layer, of one direction
    causal: bool = True                 # False exactly with both_ways
    both_ways: bool = False
    projected: bool = False             # a Linear brings the cells of every layer to the width of the token vectors, and that is the layer's state
    residual: bool = False              # from the second layer on: x + layer(x)
    classifier_pooling: str = "concat"
    input_dropout: float = 0.0          # on the token vectors, one mask for all positions of a text
    hidden_dropout: float = 0.0         # between layers, likewise; `dropout` is on the last layer's output, likewise
    weight_dropout: float = 0.0         # on the recurrent matrices, one mask for a pass
    dropout: float = 0.0
    embed_dropout: float | None = 0.0   # on words: all occurrences of some are zero in a pass
    init_std: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("d_hidden", self.d_hidden, 1)
        if self.causal == self.both_ways:
            raise ValueError(f"causal={self.causal}, both_ways={self.both_ways}; a body that reads both ways is not causal and another is: set one of them")
        if self.d_model % self.directions:
            raise ValueError(f"d_model={self.d_model} for two directions; each has half of it: give an even number")
        if self.projected and self.d_hidden <= self.embed_width:
            raise ValueError(f"d_hidden={self.d_hidden}, projected to {self.embed_width}; a projection makes the state narrower: give more cells, or projected=False")
        for i in range(1, self.n_layers) if self.residual else ():
            if self.widths(i)[0] != self.widths(i)[1]:
                raise ValueError(f"residual=True and layer {i} takes {self.widths(i)[0]} numbers to {self.widths(i)[1]}; a sum needs equal widths: set projected=True")
        for name in ("input_dropout", "hidden_dropout", "weight_dropout"):
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is a probability in [0, 1): give 0.0 to switch it off")

    @property
    def directions(self) -> int:
        return 2 if self.both_ways else 1

    @property
    def embed_width(self) -> int:
        return self.d_model // self.directions

    def widths(self, i: int) -> tuple[int, int]:
        """Numbers a position that go into layer i and come out, of one direction."""
        out = [self.d_hidden if not self.projected and k < self.n_layers - 1 else self.embed_width for k in range(self.n_layers)]
        return (out[i - 1] if i else self.embed_width), out[i]
