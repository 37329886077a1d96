"""Two bodies: one reads, the other writes while it looks at what was read.

    input_ids ──────────────► encoder ──► memory
                                            │  cross-attention, in every block
    start, y0, y1, ... ─────► decoder ◄─────┘──► head ──► y0, y1, y2, ...
"""
from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import Memory
from .cache import Cache
from .embeddings import resized
from .fresh import Unfilled, initialise
from .heads import IGNORE, BodyOutput, last_token, make_head
from .masks import Mask
from .model import Model, ModelOutput
from .trace import Trace

READS_TWICE = ("sequence", "span")      # heads that ask the decoder while it reads the encoder's text once more


def shifted(ids: Int[Tensor, "B U"], start: int | None, filler: int, keep: Bool[Tensor, "B U"] | None = None) -> Int[Tensor, "B U"]:
    """What a decoder reads while it is asked for `ids`: each a position later, after `start`, or after its own last one if that is None;
    `filler` in the place of what is no target.

    keep: which of them are tokens: the first one read stands where each row's first token is, whichever side the padding is on.
    """
    there = (ids != IGNORE) & (ids != filler) if keep is None else keep
    moved, first = ids.roll(1, dims=1), torch.zeros_like(ids, dtype=torch.bool)
    if keep is None:
        first[:, 0] = True
    else:
        first = keep & (keep.cumsum(1) == 1)
    begin = last_token(ids[..., None], there) if start is None else ids.new_tensor([[start]])        # (B or 1, 1)
    return torch.where(first, begin, moved.masked_fill(moved == IGNORE, filler))


class EncoderDecoder(Model):
    """An encoder and a decoder, each a Model without a head, which share the token table; the head reads the decoder.

    Its public surface is a Model's. Addresses: `encoder.blocks.3`, `decoder.blocks.3.cross_attn`, `head`; the shared table is `encoder.embed.tokens`.

    Args:   as for Model; head: "none", "seq2seq", "sequence" or "span"; the last two ask the decoder while it reads the text once more.
    Source: Vaswani et al. 2017, section 3.1; Raffel et al. 2020, section 2.1; Lewis et al. 2020, section 3 (heads that classify).
    """

    def __init__(self, config: ModelConfig, head: str = "none", labels: list[str] | None = None, pooling: str = "mean", normalise: bool = True,
                 seed: int | None = 0):
        nn.Module.__init__(self)                                                 # the parts of one stack are not made
        self.config, self.pooler = config, None
        self.encoder, self.decoder = Model(config.encoder_side(), seed=None), Model(config.decoder_side(), seed=None)
        self.decoder.embed.tokens.weight = self.encoder.embed.tokens.weight
        with Unfilled():
            self.head = make_head(head, self.head_config, self.embed.tokens, labels, pooling, normalise)
        self.head_name, self.labels = head, list(labels) if labels else None
        self.progress, self.load_report, self.source_config = 0.0, None, {}
        if seed is not None:
            initialise(self, config, torch.Generator().manual_seed(seed))

    @property
    def embed(self) -> Any:                     # type: ignore[override]
        return self.encoder.embed

    @property
    def blocks(self) -> Any:                    # type: ignore[override]
        """Raises: ValueError: what asks for the blocks of one stack has to say which."""
        raise ValueError("the blocks of an encoder-decoder; it has two stacks of them, encoder.blocks and decoder.blocks, and this way of training knows one: "
                         "choose another strategy (full, lora, bitfit, adapter), or freeze by address")

    @property
    def head_config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def attention(self) -> str:
        return self.encoder.attention

    @attention.setter
    def attention(self, backend: str) -> None:
        self.encoder.attention = self.decoder.attention = backend

    @property
    def checkpointing(self) -> bool | str:      # type: ignore[override]
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, wanted: bool | str) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = wanted

    @property
    def ahead(self) -> tuple[int, int]:
        return self.encoder.ahead

    def resize_vocabulary(self, n: int) -> Model:
        super().resize_vocabulary(n)
        self.decoder.embed.tokens = resized(self.decoder.embed.tokens, n)
        self.decoder.embed.tokens.weight = self.encoder.embed.tokens.weight
        self.encoder.config, self.decoder.config = self.config.encoder_side(), self.config.decoder_side()
        return self

    def read(self, input_ids: Int[Tensor, "B M"], attention_mask: Tensor | None = None, trace: Trace | None = None) -> Memory:
        """What the decoder looks at."""
        body = self.encoder.body(input_ids, attention_mask, trace=trace)
        return Memory(body.x, Mask(None if attention_mask is None else body.keep))

    def starts(self, labels: Int[Tensor, "B U"]) -> Int[Tensor, "B U"]:
        """The decoder's input for these targets."""
        return shifted(labels, self.config.start_id, self.config.pad_id)

    def body(self, input_ids: Int[Tensor, "B M"], attention_mask: Tensor | None = None, decoder_input_ids: Int[Tensor, "B U"] | None = None,      # type: ignore[override]
             decoder_attention_mask: Tensor | None = None, cache: Cache | None = None, trace: tuple[Trace, Trace] | None = None,
             memory: Memory | None = None, token_type_ids: Tensor | None = None) -> BodyOutput:
        """Everything below the head. See `forward` for the arguments; trace: of the encoder and of the decoder; memory: what was read, if it has been.

        Raises: ValueError without ids for the decoder, if the head needs some.
        """
        if decoder_input_ids is None:
            if self.head_name not in READS_TWICE:
                raise ValueError(f'no decoder_input_ids for a model with head="{self.head_name}"; the decoder goes on from what was written so far: pass it, beginning with '
                                 f"{'the token of a language' if self.config.start_id is None else f'the id {self.config.start_id}'}, or labels to a seq2seq head")
            keep = None if attention_mask is None else attention_mask.bool()
            decoder_input_ids, decoder_attention_mask = shifted(input_ids, self.config.start_id, self.config.pad_id, keep), attention_mask
        reading, writing = (None, None) if trace is None else trace
        memory = self.read(input_ids, attention_mask, reading) if memory is None else memory
        return self.decoder.body(decoder_input_ids, decoder_attention_mask, cache=cache, trace=writing, memory=memory)

    def forward(self, input_ids: Int[Tensor, "B M"], attention_mask: Tensor | None = None, decoder_input_ids: Int[Tensor, "B U"] | None = None,   # type: ignore[override]
                decoder_attention_mask: Tensor | None = None, labels: Tensor | None = None, cache: Cache | None = None, output_hidden_states: bool = False,
                output_attentions: bool = False, token_type_ids: Tensor | None = None) -> ModelOutput:
        """Read the input, write, and ask the head about what was written.

        Args:   attention_mask, decoder_attention_mask: nonzero = a token, absent = all are; decoder_input_ids: what was written so far, from the start id on;
                absent: the labels of a seq2seq head, a position later, or for heads that classify the input once more;
                labels: what the head's loss takes; cache: of the decoder, grows by these U tokens; output_attentions: runs the reference path;
                token_type_ids: what some tokenizers give; not read, as in every body without a table of segments.
        Raises: ValueError for a text longer than max_len, ids or labels outside the tables, or no ids for the decoder.
        """
        if decoder_input_ids is None and labels is not None and self.head_name == "seq2seq":
            decoder_input_ids = self.starts(labels)
        show = output_hidden_states or output_attentions
        reading, writing = (Trace(output_attentions) if show else None for _ in range(2))
        memory = self.read(input_ids, attention_mask, reading)
        body = self.body(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, cache, None if writing is None or reading is None else (reading, writing), memory)
        out = ModelOutput(body.x, cache=cache, encoder_last_hidden_state=memory.x)
        if reading is not None and writing is not None:
            if output_hidden_states:
                out.encoder_hidden_states, out.hidden_states = tuple(reading.states), tuple(writing.states)
            if output_attentions:
                out.encoder_attentions, out.attentions = tuple(reading.probs), tuple(writing.probs)
                out.cross_attentions, out.scores = tuple(writing.crossed), tuple(writing.scores)
        return self.answer(body, out, labels, None)


def make_model(config: ModelConfig, head: str = "none", labels: list[str] | None = None, seed: int | None = 0, **pooling: Any) -> Model:
    """A Model, or an EncoderDecoder if the config has a second stack."""
    return (EncoderDecoder if config.n_decoder_layers else Model)(config, head, labels, seed=seed, **pooling)
