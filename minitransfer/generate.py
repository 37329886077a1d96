"""What a trained model says: text going on, masks filled in, vectors for texts."""
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .beam import beam_search
from .config import choose
from .nn.attention import Attention, CrossAttention
from .nn.encoder_decoder import EncoderDecoder
from .nn.evaluating import evaluating
from .nn.given import need_model
from .nn.heads import EmbeddingHead, VocabularyHead
from .nn.model import Model
from .nn.writing import Writing
from .ops.linear import Linear
from .ops.packed_linear import PackedLinear, available
from .replay import WORTH, Replayed, positions_for, suits
from .text import Tokenizer
from .text.batches import by_length
from .text.tokenizer import check_tokens
from .training.memory import keep_freed_memory
from .training.precision import Precision
from .training.settings import PRECISIONS
from .transfer.named import by_row, check_not_by_row

# ---- one token from its logits -------------------------------------------------------------------------------------------------------------------

def penalised(logits: Float[Tensor, "B V"], ids: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"], penalty: float) -> Float[Tensor, "B V"]:
    """Make the tokens already in the text less likely: positive logits are divided by the penalty, negative ones multiplied.

    Source: Keskar et al. 2019 (CTRL), section 4.1, with the usual treatment of negative logits. Padding is no part of the text.
    """
    seen = torch.zeros_like(logits).scatter_reduce(1, ids, keep.to(logits.dtype), "amax") > 0    # (B, V)
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def filtered_probs(logits: Float[Tensor, "B V"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Float[Tensor, "B V"]:
    """The distribution that is sampled from: softmax(logits / temperature) over the k best tokens, then over the smallest set of mass >= p.

    Args:   temperature > 0; top_k in tokens; top_p in (0, 1]. The best token always stays.
    Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (nucleus).
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(descending=True)                              # (B, V)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p                                # the mass before a token is p already
        outside[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(outside).scatter_(1, index, outside), -math.inf)
    return logits.softmax(-1)


# ---- a copy of the model that is quick at one row ----------------------------------------------------------------------------------------------

QKV = ("q_proj", "k_proj", "v_proj")
PACKED: WeakKeyDictionary[Model, tuple[tuple, Model]] = WeakKeyDictionary()     # one packed copy per model, dropped with it


def cast(weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None, dtype: torch.dtype) -> Linear:
    """A Linear that holds its numbers in `dtype` already: autocast would cast them for every token."""
    made = Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight, made.bias = (None if t is None else nn.Parameter(t.detach().to(dtype), requires_grad=False) for t in (weight, bias))    # type: ignore[assignment]
    return made


def joined(linears: Sequence[nn.Linear]) -> tuple[Float[Tensor, "F D"], Float[Tensor, "F"] | None]:
    """The weight and bias of Linears that read the same input, side by side in one product."""
    weights: list[Tensor] = [one.weight for one in linears]
    biases: list[Tensor] = [one.weight.new_zeros(one.out_features) if one.bias is None else one.bias for one in linears]
    return torch.cat(weights), torch.cat(biases) if any(one.bias is not None for one in linears) else None


def sampled(model: Model) -> bytes:
    """Some values of every parameter: what is written through `.data` leaves no other trace."""
    return torch.cat([p.detach().reshape(-1)[:: max(1, p.numel() // 16)].float() for p in model.parameters()]).cpu().numpy().tobytes()


def packed_copy(model: Model, dtype: torch.dtype) -> Model:
    """A model that shares the parameters of `model` but multiplies by packed weights, or on a GPU by weights in `dtype`; made again when a parameter has changed.

    It costs the memory of the weights once more, in `dtype`, for as long as `model` lives.
    """
    switches = [(module.active, getattr(module, "chosen", None), *(getattr(one, "scale", None) for one in getattr(module, "adapters", {}).values()))
                for module in model.modules() if hasattr(module, "active")]     # of adapters
    state = (dtype, *switches, *((id(p), p.data_ptr(), p._version) for p in model.parameters()), sampled(model))
    known = PACKED.get(model)
    if known is not None and known[0] == state:
        return known[1]
    fast = copy.deepcopy(model, {id(p): p for p in model.parameters()})           # parameters are shared, not copied
    keep_freed_memory()
    make: Callable[[Tensor, Tensor | None, torch.dtype], nn.Module] = cast if suits(model) else PackedLinear
    for module in list(fast.modules()):
        linears = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
        if isinstance(module, Attention) and not isinstance(module, CrossAttention) and linears.keys() >= set(QKV):
            module.joined = make(*joined([linears.pop(name) for name in QKV]), dtype)
        for name, child in linears.items():
            setattr(module, name, make(child.weight, child.bias, dtype))
    if isinstance(fast.head, VocabularyHead):
        fast.head.output = make(fast.head.matrix, fast.head.bias, dtype)
    PACKED[model] = (state, fast)
    return fast


@contextmanager
def quick(model: Model, precision: str) -> Iterator[Any]:
    """The model to compute with: packed on a CPU, where the packed products choose their own dtype; elsewhere under autocast, a copy without casts if it writes, or itself.

    Raises: ValueError for a precision that does not exist, or that this machine does not have; "int8" for a model with hooks.
    """
    choose("precision", precision, (*PRECISIONS, "int8"))
    dtype = torch.int8 if precision == "int8" else Precision(precision, model).dtype
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())      # on a copy they would not be heard
    replays = suits(model) and dtype != torch.int8
    packs = not hooked and (replays or (model.device.type == "cpu" and available(dtype)))
    if dtype == torch.int8 and hooked:
        raise ValueError('precision="int8" for a model whose modules have hooks, such as those of a trace; products in 8 bits are those of a copy without them: '
                         'use "auto", or leave the trace first')
    if dtype == torch.int8 and not packs:
        raise ValueError(f'precision="int8" on {model.device.type} with the quantised engine {torch.backends.quantized.engine!r}; products in 8 bits are those of an x86 CPU '
                         '(engine x86, fbgemm or onednn): use "auto", or move the model to the CPU')
    alone = packs and not replays
    with nullcontext() if alone else torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=not replays):    # a graph outlives what is cached
        yield packed_copy(model, dtype) if packs else model


NO_TOKENS = "there must be one to go on from: leave empty texts out, or start with the tokenizer's bos or eos id"

# ---- the three questions ------------------------------------------------------------------------------------------------------------------------

def left_padded(ids: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Move padding to the left, so that every text ends in the last column."""
    order = keep.int().argsort(dim=1, stable=True)                                  # padding (0) first, tokens in their order
    return ids.gather(1, order), keep.gather(1, order)


def beginning(model: Model, ids: Int[Tensor, "B T"], given: Tensor | None) -> Int[Tensor, "#B U"] | None:
    """What each text of an encoder-decoder begins with; a decoder goes on from `ids`.

    Raises: ValueError if it is not known, or does not fit.
    """
    if not isinstance(model, EncoderDecoder):
        if given is not None:
            raise ValueError("decoder_input_ids for a model that has one stack of blocks; it goes on from the ids it is given: leave decoder_input_ids out")
        return None
    if given is None:
        if model.config.start_id is None:
            raise ValueError("no decoder_input_ids for a model whose start_id is None; its texts begin with the token of their language: "
                             "give decoder_input_ids=torch.tensor([[id of that token]])")
        return ids.new_tensor([[model.config.start_id]])
    if given.dim() != 2 or len(given) not in (1, len(ids)) or not given.shape[1]:
        raise ValueError(f"decoder_input_ids of shape {tuple(given.shape)} for {len(ids)} texts; there is one row for all or one for each, of one token or more: "
                         "pass (1, U) or (B, U)")
    return given


@torch.no_grad()
def generate(model: Model, ids: Int[Tensor, "B T"], attention_mask: Tensor | None = None, max_new_tokens: int = 50, temperature: float = 0.0,
             top_k: int | None = None, top_p: float | None = None, repetition_penalty: float = 1.0, stop: Sequence[int] = (),
             generator: torch.Generator | None = None, use_cache: bool = True, precision: str = "auto", num_beams: int = 1, length_penalty: float = 1.0,
             early_stopping: bool | str = False, decoder_input_ids: Tensor | None = None) -> Int[Tensor, "B N"]:
    """Continue each text, token by token; an encoder-decoder writes a new one about it.

    Args:    attention_mask: (B, T), nonzero = token; either padding side is right; temperature 0: always the most likely token, else sampling;
             stop: ids that end a text; generator: of the samples; precision: "auto" uses bf16 where the CPU or GPU is faster with it, "fp32" is exact,
             "int8" holds the matrices in 8 bits (x86 CPUs): the model given stays as it is, a copy with its weights in a quarter of their bytes is kept beside it;
             num_beams: above 1 the text that is most likely as a whole is searched for; length_penalty, early_stopping: see beam.py;
             decoder_input_ids: (B or 1, U), what an encoder-decoder's text begins with; absent: its start id. Models of many languages are told the one to write in
             by it: [[language]] (mBART of 25 languages), [[eos, language]] (of 50, M2M-100, NLLB).
    Returns: (B, T + new): padding (if any) moved to the left, the texts, the new tokens; after a stop token the row is filled with that token.
             Of an encoder-decoder (B, U + new): what it began with and the new tokens.
    Raises:  ValueError for a model without a head that writes, one that is told by nothing what to begin with, settings out of range, or more tokens than the model can read.
    """
    need_model(model, "generate")
    if not isinstance(ids, Tensor):
        raise ValueError(f"generate with {type(ids).__name__} in the place of token ids; it continues ids (B, T): give tok([\"a text\"])[\"input_ids\"]")
    if num_beams > 1 and by_row(model):
        raise ValueError(f"num_beams={num_beams} with an adapter for each row; every text becomes {num_beams} rows, so that the rows are not yours: "
                         "call generate once for each adapter, or with num_beams=1")
    check_settings(model, ids, max_new_tokens, temperature, top_k, top_p, repetition_penalty, num_beams, early_stopping)
    keep = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    ids, keep = left_padded(ids, keep)
    if empty := (~keep.any(1)).nonzero()[:, 0].tolist():
        raise ValueError(f"text {empty[0]} of {len(ids)} (counted from 0) has no tokens; {NO_TOKENS}")
    begin = beginning(model, ids, decoder_input_ids)
    longest = int(keep.sum(1).max()) if begin is None else begin.shape[1] - 1       # the last new token is not read, which makes room for the start id
    if not model.config.endless and longest + max_new_tokens > model.longest:
        raise ValueError(f"{longest} tokens and {max_new_tokens} new ones; this model reads at most {model.longest}: "
                         f"ask for at most {max(model.longest - longest, 0)}, or shorten the text")
    stops, done = torch.tensor(list(stop), dtype=torch.long, device=ids.device), torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    with evaluating(model), quick(model, precision) as fast:
        S = positions_for(model, ids.shape[1] + max_new_tokens) if use_cache and max_new_tokens >= WORTH and fast is not model and suits(model) else None
        writing = Writing(fast, ids, keep, use_cache, begin) if S is None else Replayed(model, fast, ids, keep, S)

        def unrepeated(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
            return logits if repetition_penalty == 1.0 else penalised(logits, writing.ids, writing.keep, repetition_penalty)
        if num_beams > 1:
            return beam_search(writing, num_beams, max_new_tokens, lambda w: unrepeated(w.logits().log_softmax(-1)), stop, length_penalty, early_stopping)
        for _ in range(max_new_tokens):
            logits = unrepeated(writing.logits())                                   # (B, V): only the last position is asked
            if temperature == 0:
                chosen = logits.argmax(-1, keepdim=True)
            else:
                chosen = torch.multinomial(filtered_probs(logits, temperature, top_k, top_p), 1, generator=generator)
            writing.add(chosen := torch.where(done[:, None], writing.ids[:, -1:], chosen))      # (B, 1)
            if len(stops) and bool((done := done | torch.isin(chosen[:, 0], stops)).all()):
                break
    return writing.ids


def check_settings(model: Model, ids: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, penalty: float,
                   num_beams: int, early_stopping: bool | str) -> None:
    writes = "seq2seq" if isinstance(model, EncoderDecoder) else "causal"
    if not isinstance(model.head, VocabularyHead) or model.head_name != writes:
        raise ValueError(f'a model with head "{model.head_name}"; text is continued by a {writes} head: load it with head="{writes}"')
    if num_beams < 1 or (num_beams > 1 and temperature != 0):
        raise ValueError(f"num_beams={num_beams} with temperature={temperature}; beams are 1 or more and look for the likeliest text, nothing is sampled: "
                         "leave temperature at 0, or num_beams at 1")
    choose("early_stopping", early_stopping, (True, False, "never"))
    if ids.shape[1] == 0:
        raise ValueError(f"a text of no tokens; {NO_TOKENS}")
    wrong = {"max_new_tokens": max_new_tokens if max_new_tokens < 1 else None, "temperature": temperature if temperature != 0 and not 1e-6 <= temperature < math.inf else None,
             "top_k": top_k if top_k is not None and top_k < 1 else None, "top_p": top_p if top_p is not None and not 0 < top_p <= 1 else None,
             "repetition_penalty": penalty if not 0 < penalty < math.inf else None}
    for name, value in wrong.items():
        if value is not None:
            raise ValueError(f"{name}={value}; it must be {'in (0, 1]' if name == 'top_p' else '0, or from 1e-6 on' if name == 'temperature' else 'above 0'}: correct it")


def fill(model: Model, tok: Tokenizer, text: str, k: int = 5) -> list[list[tuple[str, float]]]:
    """The k likeliest tokens at each mask of `text`, with their probabilities.

    Raises: ValueError for a model without a masked head, or a text without a mask.
    """
    need_model(model, "fill")
    probs = mask_probs(model, tok, text)
    best = probs.topk(min(k, probs.shape[-1]))                                      # a vocabulary has no more
    return [[(tok.decode([int(i)]).strip(), float(p)) for p, i in zip(*rows, strict=True)] for rows in zip(best.values, best.indices, strict=True)]


@torch.no_grad()
def mask_probs(model: Model, tok: Tokenizer, text: str) -> Float[Tensor, "N V"]:
    """The probability of every token at each mask of `text`. Raises: as `fill`."""
    need_model(model, "fill")
    if not isinstance(model.head, VocabularyHead) or not model.head_name.startswith("masked"):
        raise ValueError(f'a model with head "{model.head_name}"; masks are filled by a masked head: load it with head="masked"')
    batch = tok([text])
    if tok.mask_id is None:
        raise ValueError("this tokenizer has no mask token; masks are filled by a model trained with one: use its tokenizer")
    places = batch["input_ids"][0].eq(tok.mask_id).nonzero()[:, 0]                  # (N,)
    if len(places) == 0:
        raise ValueError(f"{text!r} has no mask; there must be one to fill: write {tok.tokens([tok.mask_id])[0]} where a word is missing")
    with evaluating(model):
        inputs: dict[str, Any] = {name: t.to(model.device) for name, t in batch.items()}
        body = model.body(**inputs)
    return model.head.logits(body.x[0, places]).float().softmax(-1)                # (N, V)


@torch.no_grad()
def embed(model: Model, tok: Tokenizer, texts: Sequence[str], batch_size: int = 32, max_length: int | None = None, prompt: str | None = None,
          precision: str = "fp32") -> Float[Tensor, "N P"]:
    """One vector per text, in the order given; texts of as many tokens are computed together.

    Args:   max_length: in tokens; longer texts are cut (default: what the tokenizer says, at most what the model reads).
            prompt: the kind of these texts, one of `model.head.prompts` ("query", "passage"), whose words are written before each; None: the one
            that the model's files name as default, usually none; "": none.
            precision: as in `generate`; with "int8", for an x86 CPU, a vector depends a little on the texts beside it: they share one scale.
    Raises: ValueError for a model without an embedding head, or with an adapter for each row, for a prompt it does not have, a precision it cannot have, and a text
            without a token.
    """
    need_model(model, "embed")
    if not isinstance(model.head, EmbeddingHead):
        raise ValueError(f'a model with head "{model.head_name}"; vectors come from an embedding head: model.set_head("embedding", pooling="mean")')
    check_not_by_row(model, "embed")
    if before := model.head.prompts.before(prompt):
        texts = [before + text for text in texts]
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; so many texts are computed at a time: give 1 or more")
    length = min(model.longest, tok.max_len or model.longest) if max_length is None else max_length
    ids, types = tok.encode_rows(texts, max_length=length)
    check_tokens(ids)
    widths = [project.linear.out_features for project in model.head.projections]
    out = torch.empty(len(texts), widths[-1] if widths else model.config.d_model)
    with evaluating(model), nullcontext(model) if precision == "fp32" else quick(model, precision) as fast:
        for rows in by_length(ids, batch_size):
            batch = tok.collate([ids[i] for i in rows], [types[i] for i in rows])
            out[rows] = fast(**{name: t.to(model.device) for name, t in batch.items()}).embeddings.float().cpu()
    return out
