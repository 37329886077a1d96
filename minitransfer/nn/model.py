"""A model is a body and a head: embed -> blocks -> head. Transfer learning keeps the first two and replaces the third."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from ..config import ModelConfig
from .attention import Memory
from .block import Block, sums_are_left
from .cache import Cache
from .disentangled import Distances, DistanceVectors
from .embeddings import Embeddings, resized
from .fresh import Unfilled, initialise
from .heads import BodyOutput, EmbeddingHead, ProjectionHead, VocabularyHead, make_head, reads_pooler
from .masks import Mask, positions_from, positions_in_documents, scattered
from .norms import make_norm
from .packing import Packing
from .patches import Patches
from .picture import picture
from .pooling import make_pooler, pool
from .positions import RelativeBias, Rotation, rotation
from .recompute import again_in_backward, recomputed
from .trace import Trace

if TYPE_CHECKING:
    from ..weights.report import LoadReport


@dataclass
class ModelOutput:
    """What a forward pass gives; fields that were not asked for, or that the head does not have, are None."""

    last_hidden_state: Float[Tensor, "B T D"]
    pooled: Float[Tensor, "B D"] | None = None
    logits: Tensor | None = None
    next_logits: Float[Tensor, "B 2"] | None = None
    embeddings: Float[Tensor, "B D"] | None = None
    loss: Float[Tensor, ""] | None = None
    hidden_states: tuple[Tensor, ...] | None = None   # embeddings, then one per block: L + 1
    attentions: tuple[Tensor, ...] | None = None      # (B, H, T, S) each: probabilities
    scores: tuple[Tensor, ...] | None = None          # (B, H, T, S) each: before the softmax, -inf where the mask forbids
    cache: Cache | None = None
    # of an encoder-decoder, whose other fields are the decoder's
    encoder_last_hidden_state: Float[Tensor, "B M D"] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class View:
    """What a block is told beside x: who may look where, how queries and keys turn, what distances add to the scores."""

    mask: Mask
    turn: Rotation | None
    relative: Float[Tensor, "#B H T S"] | Distances | None


class Model(nn.Module):
    """A transformer whose architecture is its config and whose task is its head.

    Args:   head: one of nn.heads.HEAD_NAMES; labels: names of the classes of a "sequence" or "token" head;
            pooling, normalise: for an "embedding" head; seed: of the fresh weights (None leaves them unset, for a loader to fill).
    Source: Vaswani et al. 2017; Devlin et al. 2019; Radford et al. 2019.
    """

    embed: Any      # Embeddings, or Patches
    head: Any       # a module of nn.heads, or None
    quantized_from: dict[str, str] | None = None        # of a base held as codes: the fingerprint from before

    def __init__(self, config: ModelConfig, head: str = "none", labels: list[str] | None = None, pooling: str = "mean", normalise: bool = True,
                 seed: int | None = 0):
        super().__init__()
        c = self.config = config
        if c.n_decoder_layers:
            raise ValueError(f"n_decoder_layers={c.n_decoder_layers} for a Model, which is one stack; an encoder-decoder is two: make an EncoderDecoder of this config")
        with Unfilled():
            self.make_body(c)
            self.pooler = make_pooler(c) if reads_pooler(head, c) else None
            self.head = make_head(head, c, self.embed.tokens, labels, pooling, normalise)
        self.head_name, self.labels = head, list(labels) if labels else None
        self.checkpointing: bool | str = False       # what the backward pass computes again: see recompute.py
        self.packs: bool | None = None      # drop padding between embedding and head; None: on a GPU, where a kernel knows where texts begin
        self.progress = 0.0                 # the share of the run that is done, set by the loop before each step
        self.load_report: LoadReport | None = None
        self.source_config: dict = {}       # the config.json this model came from: keys we do not use are saved again as they were
        if seed is not None:
            initialise(self, c, torch.Generator().manual_seed(seed))

    def make_body(self, c: ModelConfig) -> None:
        self.embed = Embeddings(c) if c.patch_size is None else Patches(c)
        self.relative = RelativeBias(c) if c.relative_buckets else None if c.disentangled is None else DistanceVectors(c, c.disentangled)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(1 if c.shared_blocks else c.n_layers))
        self.norm = make_norm(c) if c.final_norm else None

    @property
    def attention(self) -> str:
        """The attention backend of every block: "auto", "reference", "tiled" or "sdpa"."""
        first: Any = self.blocks[0]
        return first.attn.backend

    @attention.setter
    def attention(self, backend: str) -> None:
        block: Any
        for block in self.blocks:
            block.attn.use(backend)
            if block.cross_attn is not None:
                block.cross_attn.use(backend)

    @property
    def ahead(self) -> tuple[int, int]:
        """How many learned positions stand before every text: those of a prefix, which are keys and values only, and those of a soft prompt."""
        first: Any = self.blocks[0]
        learned: tuple[Any, Any] = first.attn.prefix, self.embed.prompt
        prefix, prompt = (one.length if one is not None and one.active else 0 for one in learned)
        return prefix, prompt

    @property
    def head_config(self) -> ModelConfig:
        """The architecture of the stack that the head reads."""
        return self.config

    @property
    def longest(self) -> int:
        """The most tokens a text may have."""
        return self.config.max_len - sum(self.ahead)

    @property
    def device(self) -> torch.device:
        return self.embed.tokens.weight.device

    def set_head(self, head: str, labels: list[str] | None = None, pooling: str = "mean", normalise: bool = True, seed: int = 0) -> Model:
        """Put a fresh head on the same body; the pooler stays if the new head uses it. What is fresh no longer counts as loaded."""
        c, generator, fresh = self.head_config, torch.Generator().manual_seed(seed), []
        with Unfilled():
            self.head = make_head(head, c, self.embed.tokens, labels, pooling, normalise)
            fresh += [self.head] if self.head is not None else []
            if not reads_pooler(head, c):
                self.pooler = None
            elif self.pooler is None:
                self.pooler = make_pooler(c)
                fresh += [self.pooler]
        self.head_name, self.labels = head, list(labels) if labels else None
        for module in fresh:
            initialise(module, c, generator)
            module.to(self.device, self.embed.tokens.weight.dtype).train(self.training)
        if self.load_report is not None:
            made = {id(p) for module in fresh for p in module.parameters()}
            self.load_report.renewed({name for name, p in self.named_parameters() if id(p) in made})
        return self

    def resize_vocabulary(self, n: int) -> Model:
        """Give the token table (and the output bias tied to it) n rows; new rows start as the mean of the old, new biases at zero."""
        if n < 1:
            raise ValueError(f"resize_vocabulary({n}); a vocabulary has at least one token: give the size of the tokenizer")
        self.embed.tokens = resized(self.embed.tokens, n)
        for head in (m for m in self.modules() if isinstance(m, VocabularyHead)):
            head.tokens = [self.embed.tokens]
            if head.unembed is not None:
                head.unembed = resized(head.unembed, n)
            if head.bias is not None:
                old, trains = head.bias.detach()[:n], head.bias.requires_grad
                head.bias = nn.Parameter(torch.cat([old, old.new_zeros(n - len(old))]), trains)
        self.config = replace(self.config, vocab_size=n)
        return self

    def body(self, input_ids: Int[Tensor, "B T"] | None = None, attention_mask: Tensor | None = None, token_type_ids: Int[Tensor, "B T"] | None = None,
             position_ids: Int[Tensor, "#B T"] | None = None, document_ids: Int[Tensor, "B T"] | None = None, cache: Cache | None = None,
             trace: Trace | None = None, pixel_values: Float[Tensor, "B C Y X"] | None = None, memory: Memory | None = None,
             packed: Int[Tensor, "N"] | None = None) -> BodyOutput:
        """Everything below the head. See `forward` for the arguments; memory: what blocks with cross-attention look at; packed: what `Packing.of` takes as place.

        Raises: ValueError for a stack with cross-attention that is given nothing to look at.
        """
        if self.config.cross_attention and memory is None:
            raise ValueError("a decoder with cross-attention on its own; it looks at what an encoder has read: run the encoder-decoder, or pass memory")
        c, places = self.config, self.places(input_ids, pixel_values)
        B, T = places.shape
        mask, keep, positions, soft = self.sight(places, attention_mask, document_ids, cache)
        if position_ids is not None:
            prompt = torch.arange(soft, device=position_ids.device).expand(len(position_ids), -1) + self.ahead[0]
            positions = torch.cat([prompt, position_ids + sum(self.ahead)], dim=1)
        x = self.embed(input_ids if pixel_values is None else pixel_values, positions, token_type_ids)     # (B, soft + T, D)
        x = x.float() if c.wide_stream and x.dtype == torch.float16 else x
        if trace is not None:
            trace.states.append(x)
        padded = trace is not None or cache is not None or memory is not None or not self.drops_padding
        packing = None if mask.keep is None or padded else Packing.of(mask.keep, packed)
        if packing is not None:
            x, positions, mask = packing.pack(x), packing.pack(positions), Mask(None, c.causal, c.window, packing.texts, packing)
        show, views = trace is not None and trace.attention, self.views(mask, positions, 0 if cache is None else cache.length)
        leaves, left = trace is None and sums_are_left(self.blocks, self.norm, x), None
        for i, view in enumerate(views):
            block, layer = self.blocks[0 if c.shared_blocks else i], None if cache is None else cache.layers[i]
            again = recomputed(self.checkpointing, i) if layer is None else ""
            x, seen = again_in_backward(again == "blocks", block, x, view.mask, layer, show, view.turn, view.relative, memory, again, left, leaves)
            if leaves:
                x, left = x
            if trace is not None:
                trace.states.append(x)
                for kept, new in zip((trace.probs, trace.scores, trace.crossed), seen if trace.attention else (), strict=False):
                    kept.append(new)
        if self.norm is not None:
            x = self.norm(x) if left is None else self.norm(left[0], x, left[1], wide=True)[0]
            if trace is not None:
                trace.states[-1] = x                                             # the last state is what the head reads
        x = x if packing is None else packing.unpack(x)
        if soft:                                                                 # from here on a soft prompt is out of sight
            x, keep = x[:, soft:], None if keep is None else keep[:, soft:]
            if trace is not None:
                trace.states = [state[:, soft:] for state in trace.states]
        keep = torch.ones(B, T, dtype=torch.bool, device=x.device) if keep is None else keep
        return BodyOutput(x, keep, pool(self.pooler, c, x, keep, input_ids), document_ids)

    def places(self, input_ids: Tensor | None, pixel_values: Tensor | None) -> Int[Tensor, "B T"]:
        """The ids, or for images the numbers of their positions. Raises: ValueError for what this body does not read."""
        reads, given = "input_ids" if self.config.patch_size is None else "pixel_values", {"input_ids": input_ids, "pixel_values": pixel_values}
        if (names := [name for name, one in given.items() if one is not None]) != [reads]:
            raise ValueError(f"{' and '.join(names) or 'nothing'} for a body that reads {reads}: pass {reads}, and the other to a body of its own")
        return input_ids if pixel_values is None else self.embed.places(pixel_values)     # type: ignore[return-value]

    def views(self, mask: Mask, positions: Int[Tensor, "#B T"], past: int) -> list[View]:
        """What each block is told of positions; blocks with the same window share one view."""
        c, T = self.config, positions.shape[1]
        relative = None if self.relative is None else self.relative(T, past + T, mask.positions)
        made = {}
        for window in {c.window_of(i) for i in range(c.n_layers)}:
            turn = None if c.rotary is None else rotation(c, positions, local=window is not None)
            made[window] = View(mask.within(window), turn, relative)
        return [made[c.window_of(i)] for i in range(c.n_layers)]

    def sight(self, input_ids: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None,
              cache: Cache | None) -> tuple[Mask, Tensor | None, Tensor, int]:
        """Who may look where, which positions are tokens (None: all), each one's position, and how many of these begin with a soft prompt."""
        (B, T), c, (prefix, soft) = input_ids.shape, self.config, self.ahead
        for name, given in (("attention_mask", attention_mask), ("document_ids", document_ids)):
            if given is not None and given.shape != input_ids.shape:
                raise ValueError(f"{name} of shape {tuple(given.shape)} for ids of shape {(B, T)}; it says something of each id given now: "
                                 "pass one of the same shape (a cache remembers what came before)")
        if cache is not None and not c.causal:
            raise ValueError("a cache for a body with causal=False; there every token sees later ones, so nothing computed stays right: run without a cache")
        if document_ids is not None:
            if cache is not None:
                raise ValueError("document_ids together with a cache: packed rows are for training; generate from one text a row")
            if attention_mask is not None:
                document_ids = document_ids.masked_fill(~attention_mask.bool(), -1)
            if soft:
                raise ValueError("document_ids for a model with a soft prompt; it stands before a row and not before each of its texts: one text a row")
            positions = positions_in_documents(document_ids)
            self.check_length(positions + prefix, T + prefix)
            return Mask(None, c.causal, c.window, document_ids, ahead=prefix, positions=self.apart(document_ids, positions)), document_ids >= 0, positions + prefix, 0
        keep = None if attention_mask is None else attention_mask.bool()
        if keep is not None and keep.device.type == "cpu" and (cache is None or cache.keep is None) and bool(keep.all()):
            keep = None                                                          # no padding: the faster paths need no mask (a GPU is not asked, it would wait)
        past = 0 if cache is None else cache.length
        soft = 0 if past else soft                                               # a cache holds the soft prompt already
        T, keep = T + soft, keep if keep is None else pad(keep, (soft, 0), value=True)
        if keep is None and (cache is None or cache.keep is None):
            positions = torch.arange(past, past + T, device=input_ids.device)[None] + prefix
            self.check_length(positions, past + T + prefix)
            return Mask(None, c.causal, c.window, ahead=prefix), None, positions, soft
        keep = torch.ones(B, T, dtype=torch.bool, device=input_ids.device) if keep is None else keep
        every = keep
        if cache is not None:
            if cache.keep is None and past:
                cache.see(torch.ones(B, past, dtype=torch.bool, device=keep.device))
            every = cache.see(keep)                                              # (B, S)
        counted = positions_from(every)                                          # (B, S)
        self.check_length(positions := counted[:, -T:] + prefix, past + T + prefix)
        return Mask(every, c.causal, c.window, ahead=prefix, positions=self.apart(every.int() - 1, counted)), keep, positions, soft

    def apart(self, documents: Int[Tensor, "B S"], positions: Int[Tensor, "B S"]) -> Int[Tensor, "B S"] | None:
        """The positions, if this body counts distances between tokens and columns do not tell them (a GPU is not asked, it would wait)."""
        counts = self.relative is not None or (self.config.window is not None and self.config.window < documents.shape[1])
        return positions if counts and (documents.device.type != "cpu" or scattered(documents, positions)) else None

    @property
    def drops_padding(self) -> bool:
        """Whether blocks are to do without padding, and can: those that need columns for distances or neighbours cannot."""
        wanted = self.device.type == "cuda" if self.packs is None else self.packs
        return wanted and self.relative is None and self.config.convolution is None and not any(self.ahead)

    def check_length(self, positions: Tensor, length: int) -> None:
        if length > self.config.max_len and not self.config.endless and (last := int(positions.max())) >= self.config.max_len:
            raise ValueError(f"a text of {last + 1 - sum(self.ahead)} tokens; this model reads at most {self.longest}: truncate it (max_length), or split it into windows")

    def forward(self, input_ids: Int[Tensor, "B T"] | None = None, attention_mask: Tensor | None = None, token_type_ids: Int[Tensor, "B T"] | None = None,
                position_ids: Int[Tensor, "#B T"] | None = None, document_ids: Int[Tensor, "B T"] | None = None, labels: Tensor | None = None,
                next_labels: Int[Tensor, "B"] | None = None, cache: Cache | None = None, output_hidden_states: bool = False,
                output_attentions: bool = False, pixel_values: Float[Tensor, "B C Y X"] | None = None) -> ModelOutput:
        """Run the body and the head.

        Args:   attention_mask: (B, T), nonzero = a token, absent = all are; position_ids: absent = each text's tokens are counted from 0;
                document_ids: (B, T), for rows packed with several texts, -1 = padding: no text sees another and positions restart;
                labels: what the head's loss takes; next_labels: 0 = b follows a, 1 = it does not;
                cache: grows by these T tokens; output_attentions: runs the reference path;
                pixel_values: images, for a body that reads these in the place of ids.
        Raises: ValueError for a text longer than max_len, and ids or labels outside the tables.
        """
        trace = Trace(output_attentions) if output_hidden_states or output_attentions else None
        images: dict[str, Any] = {} if pixel_values is None else {"pixel_values": pixel_values}
        body = self.body(input_ids, attention_mask, token_type_ids, position_ids, document_ids, cache, trace, **images)
        out = ModelOutput(body.x, body.pooled, cache=cache)
        if trace is not None and output_hidden_states:
            out.hidden_states = tuple(trace.states)
        if trace is not None and output_attentions:
            out.attentions, out.scores = tuple(trace.probs), tuple(trace.scores)
        return self.answer(body, out, labels, next_labels)

    def answer(self, body: BodyOutput, out: ModelOutput, labels: Tensor | None, next_labels: Tensor | None) -> ModelOutput:
        if self.head is None:
            if labels is not None:
                raise ValueError('labels for a model with head="none"; a loss comes from a head: put one on the body with set_head')
            return out
        if isinstance(self.head, EmbeddingHead | ProjectionHead):
            out.embeddings = self.head(body)
        else:
            out.logits = self.head(body)
        if isinstance(self.head, VocabularyHead):
            out.next_logits = self.head.next_logits(body)
        if labels is not None:
            total, count = self.head.loss(body, labels)
            out.loss = total / max(count, 1)
        if next_labels is not None:
            if out.next_logits is None:
                raise ValueError(f'next_labels for head="{self.head_name}"; only head="masked+next" asks whether b follows a: leave them out')
            follows = nn.functional.cross_entropy(out.next_logits.float(), next_labels)
            out.loss = follows if out.loss is None else out.loss + follows
        return out

    def _repr_html_(self) -> str:
        return picture(self)._repr_html_()

    @classmethod
    def from_pretrained(cls, source: str | Path, head: str = "auto", labels: list[str] | None = None, dtype: torch.dtype = torch.float32,
                        revision: str | None = None, seed: int = 0) -> Model:
        """Load a standard checkpoint. See `weights.load.from_pretrained`."""
        from ..weights import load
        return load.from_pretrained(source, head, labels, dtype, revision, seed)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None, max_shard_bytes: int = 5_000_000_000) -> None:
        """Write the standard layout. See `weights.save.save_pretrained`."""
        from ..weights import save
        save.save_pretrained(self, folder, dtype, max_shard_bytes)
