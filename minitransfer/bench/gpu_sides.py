"""The sides that only a GPU's rows have: a compiled GPT as peer, LoRA beside peft."""
from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from ..config import ModelConfig
from ..transfer import add_lora
from .rows import Row
from .sides import ours_step, peer_model, peer_step


class CompiledBlock(nn.Module):
    """Pre-norm attention and feed-forward with one matrix for q, k and v: what torch.compile does best with."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.heads, self.rate = c.n_heads, c.dropout
        self.norm_attn, self.norm_mlp = nn.LayerNorm(c.d_model), nn.LayerNorm(c.d_model)
        self.qkv, self.out = nn.Linear(c.d_model, 3 * c.d_model), nn.Linear(c.d_model, c.d_model)
        self.up, self.down, self.dropout = nn.Linear(c.d_model, c.d_ff), nn.Linear(c.d_ff, c.d_model), nn.Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm_attn(x)).chunk(3, dim=-1))
        mixed = scaled_dot_product_attention(q, k, v, dropout_p=self.rate if self.training else 0.0, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(gelu(self.up(self.norm_mlp(x)), approximate="tanh")))


class CompiledGPT(nn.Module):
    """GPT-2 as short as torch.compile likes it; gives its loss as the models of transformers do."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.tokens, self.positions, self.dropout = nn.Embedding(c.vocab_size, c.d_model), nn.Embedding(c.max_len, c.d_model), nn.Dropout(c.dropout)
        self.blocks, self.norm = nn.ModuleList(CompiledBlock(c) for _ in range(c.n_layers)), nn.LayerNorm(c.d_model)

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        x = self.dropout(self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits = nn.functional.linear(self.norm(x)[:, :-1], self.tokens.weight)
        return SimpleNamespace(loss=cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten()))


class Clone(nn.Module):
    """The model of a clone of nanoGPT, called as the models of transformers are."""

    def __init__(self, clone: Path, c: ModelConfig):
        super().__init__()
        spec = importlib.util.spec_from_file_location("nanogpt_model", clone / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.GPT(module.GPTConfig(vocab_size=c.vocab_size, block_size=c.max_len, n_layer=c.n_layers, n_head=c.n_heads, n_embd=c.d_model, dropout=c.dropout))

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=self.model(input_ids[:, :-1].contiguous(), labels[:, 1:].contiguous())[1])


def peer_compiled(row: Row, repeats: int, clone: Path | None) -> dict[str, Any]:
    """Steps of the compiled peer; `attention` says which it was. A CPU runs it uncompiled: that takes minutes and shows nothing."""
    assert row.config is not None
    torch.manual_seed(0)
    model: Any = CompiledGPT(row.config) if clone is None else Clone(clone, row.config)
    compiled = model if row.device == "cpu" else torch.compile(model)
    return peer_step(row, repeats, compiled) | {"attention": "flash, in nanoGPT's model.py" if clone else "flash, in the equivalent"}


def ours_lora(row: Row, repeats: int) -> dict[str, Any]:
    targets = "q,k,v" if "gpt2" in row.name else "q,v"                          # peft's fused matrix of GPT-2 has all three
    return ours_step(row, repeats, lambda model: add_lora(model, r=8, alpha=16, targets=targets))


def peer_lora(row: Row, repeats: int) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model
    assert row.config is not None
    model = peer_model(row.config, row.head)
    fused = hasattr(model, "transformer")                                        # GPT-2 has one matrix for q, k and v: peft's targets there
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"] if fused else ["q_proj", "v_proj"], fan_in_fan_out=fused)
    return peer_step(row, repeats, get_peft_model(model, adapters))
