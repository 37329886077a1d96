"""What is compared on a GPU, as data."""
from __future__ import annotations

from dataclasses import replace

from ..config import ModelConfig, Rotary
from .rows import BERT_BASE, DECODER, GPT2, Row

# deciles of the lengths of real texts, in WordPiece tokens: 3,000 reviews of IMDB cut at 512, 3,000 items of AG News cut at 128
REVIEWS = (34, 128, 160, 179, 203, 233, 276, 342, 431, 512, 512)
NEWS = (19, 36, 41, 44, 48, 51, 54, 57, 61, 69, 128)

GPT2_MEDIUM = ModelConfig(vocab_size=50_257, d_model=1024, n_layers=24, n_heads=16, d_ff=4096, max_len=1024, **DECODER)
LLAMA_1B = ModelConfig(vocab_size=32_000, d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, d_ff=8192, max_len=2048, dropout=0.0, norm="rms", norm_eps=1e-5,
                       norm_position="pre", activation="silu", gated=True, qkv_bias=False, o_bias=False, mlp_bias=False, positions="none", rotary=Rotary(theta=500_000.0),
                       causal=True, n_token_types=0, embed_norm=False, final_norm=True, pooler=False, tied=True)
SMALL = ModelConfig(vocab_size=30_522, d_model=256, n_layers=4, n_heads=4, d_ff=1024, max_len=128)

COMPILED_PEER = ("the same model in torch.compile with PyTorch's flash attention, bf16 autocast, fused AdamW, clipping at 1.0: nanoGPT's own model.py if a clone is given, "
                 "else an equivalent written for this comparison")
STEP_PEER = "transformers with sdpa attention under bf16 autocast, logits at every position, fused AdamW, clipping at 1.0; padded batches"
LORA_PEER = "peft on transformers with sdpa attention under bf16 autocast, the same rank and targets, fused AdamW over the adapters"
GENERATE_PEER = "model.generate(do_sample=False) of transformers in bf16, sdpa attention, its key/value cache, no end token"
EAGER_PEER = "PyTorch's own operations, one after another"
FLASH_PEER = "scaled_dot_product_attention, held to its flash backend"
PADDED_PEER = "scaled_dot_product_attention on the same texts padded to the longest, with their mask"


def lora(name: str, config: ModelConfig, batch: int) -> tuple[Row, Row]:
    """Speed and memory of a LoRA step."""
    speed = gpu(f"lora-{name}", 1.5, "lora", f"a LoRA step, r 8 on q and v of {name}, batch {batch} x 512", LORA_PEER, config=config, head="causal", batch=batch, length=512,
                graphs=True)
    return speed, replace(speed, name=f"lora-{name}-memory", bar=0.6, kind="lora-memory", what=f"peak device memory of that step on {name}", minimum=False, unit="bytes")


def op(name: str, what: str, bar: float = 1.0, peer: str = EAGER_PEER, **facts) -> Row:
    """An operation in bf16; memory-bound ones also have to move bytes at 80 % of the rate of a copy (`copy_share`)."""
    return gpu(f"op-{name}", bar, "op", what, peer, **{"repeats": 30} | facts)


def attention(T: int) -> tuple[Row, Row]:
    facts = {"batch": 16 * 1024 // T, "length": T}
    what = f"causal attention of 12 heads of 64, {16 * 1024 // T} texts of {T:,}"
    return (op(f"attention-{T // 1024}k", f"{what}, forward", 0.8, FLASH_PEER, **facts),
            op(f"attention-{T // 1024}k-backward", f"{what}, backward alone", 0.6, FLASH_PEER, **facts))


def gpu(name: str, bar: float, kind: str, what: str, peer: str, **facts) -> Row:
    return Row(name, bar, kind, what, peer, device="cuda", precision="auto", **{"repeats": 20, "rounds": 1} | facts)


ALL = (
    gpu("gpt2-step", 1.0, "compiled", "a causal step of gpt2 (124M), batch 32 x 1,024; bars also: 475,000 tokens/s (floor 400,000)", COMPILED_PEER, config=GPT2, head="causal",
        batch=32, length=1024, rounds=2, graphs=True),
    gpu("bert-128", 2.5, "step", "a masked step of bert-base on 128 texts as long as news items, at most 128 tokens, 15 % masked", STEP_PEER, config=BERT_BASE, head="masked",
        batch=128, length=128, deciles=NEWS, graphs=True, repeats=60),
    gpu("bert-512", 2.5, "step", "a masked step of bert-base on 32 texts as long as reviews, at most 512 tokens, 15 % masked", STEP_PEER, config=BERT_BASE, head="masked",
        batch=32, length=512, deciles=REVIEWS, graphs=True, repeats=60),
    gpu("small-step", 5.0, "step", "a masked step of 4 blocks of width 256, batch 256 x 128, 15 % masked", STEP_PEER, config=SMALL, head="masked", batch=256, length=128,
        graphs=True),
    *lora("gpt2-medium", GPT2_MEDIUM, 16), *lora("llama-1b", LLAMA_1B, 8),
    gpu("generate-1", 3.0, "generate", "64 greedy tokens of gpt2 after 16 given ones, batch 1", GENERATE_PEER, config=GPT2, head="causal", length=16, repeats=5),
    gpu("generate-32", 1.5, "generate", "64 greedy tokens of gpt2 after 16 given ones, batch 32", GENERATE_PEER, config=GPT2, head="causal", batch=32, length=16, repeats=5),
    op("norm", "residual + dropout + LayerNorm of 32,768 rows of 768, forward and backward", length=768),
    op("gelu", "bias + GELU of 32,768 rows of 3,072, forward and backward", length=3072),
    op("swiglu", "SwiGLU of two tensors of 32,768 rows of 3,072, forward and backward", length=3072),
    op("cross-entropy", "losses and gradients of 4,096 rows of 50,257 logits", batch=4096, length=50_257),
    op("adamw", "a step of AdamW on 32,768 x 3,072 weights in float32", length=3072),
    *attention(1024), *attention(2048), *attention(4096),
    op("attention-packed", "attention of 12 heads of 64, 32 texts as long as reviews, forward and backward", 1.5, PADDED_PEER, batch=32, length=512, deciles=REVIEWS),
)
ROWS: dict[str, Row] = {row.name: row for row in ALL}


def tiny(row: Row) -> Row:
    """The row with a model and batches that a CPU runs in a second: does the script work?"""
    small = row.config and replace(row.config, vocab_size=1511, d_model=64, n_layers=2, n_heads=4, n_kv_heads=None if row.config.n_kv_heads is None else 2, d_ff=96)
    deciles = row.deciles and tuple(-(-n // 16) + 3 for n in row.deciles)
    return replace(row, device="cpu", precision="fp32", repeats=2, rounds=1, batch=min(row.batch, 3), length=max(-(-row.length // 16), 3) + 3, config=small, deciles=deciles)
