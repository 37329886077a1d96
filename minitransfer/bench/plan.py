"""Predicted and measured peak memory of training steps: `minitransfer bench plan`. `python -m minitransfer.bench.plan NAME THREADS` measures one.

On a CPU that of a process, in fp32; where there is a GPU, of the tensors on it, in bf16 and with batches of eight times as many rows.
"""
from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checks.cards import CARDS
from ..checks.plan import plan
from ..config import ModelConfig, Rotary
from ..nn.heads import IGNORE
from ..nn.model import Model
from ..tasks.base import supervised
from ..training import TrainSettings, train
from ..training.memory import keep_freed_memory, peak_memory, reset_peak
from ..training.throughput import cpu_name
from ..transfer import lora, strategy
from ..transfer.base import Strategy
from .compare import RESULTS, chosen, kept, last_line
from .rows import BERT_BASE, GPT2

RESULT, GPU_RESULT = RESULTS / "plan.json", RESULTS / "plan_gpu.json"
BAR = 0.10
STEPS = 3
CPU = torch.device("cpu")
MINILM = ModelConfig(vocab_size=30_522, d_model=384, n_layers=6, n_heads=12, d_ff=1536, max_len=512)
TINY = ModelConfig(vocab_size=101, d_model=32, n_layers=1, n_heads=2, d_ff=64, max_len=32)
LABELS = ["no", "yes"]


@dataclass(frozen=True)
class Case:
    """A training step of a model with random weights, in fp32."""

    config: ModelConfig
    head: str
    strategy: str
    batch_size: int
    length: int
    checkpointing: bool | str = False

    def model(self) -> Model:
        return Model(self.config, self.head, LABELS if self.head == "sequence" else None)

    def batch(self) -> dict[str, Tensor]:
        dice = torch.Generator().manual_seed(0)
        ids = torch.randint(4, self.config.vocab_size, (self.batch_size, self.length), generator=dice)
        hidden = torch.rand(ids.shape, generator=dice) < 0.15
        labels = {"sequence": torch.arange(self.batch_size) % 2, "causal": ids, "masked": ids.masked_fill(~hidden, IGNORE)}
        return {"input_ids": ids, "labels": labels[self.head]}


CASES = {
    "minilm full 16x128": Case(MINILM, "sequence", "full", 16, 128),
    "minilm full 32x128": Case(MINILM, "sequence", "full", 32, 128),
    "minilm lora 32x128": Case(MINILM, "sequence", "lora", 32, 128),
    "minilm adapter 16x256": Case(MINILM, "sequence", "adapter", 16, 256),
    "minilm masked 32x128 checkpointing": Case(MINILM, "masked", "full", 32, 128, True),
    "bert full 4x128": Case(BERT_BASE, "sequence", "full", 4, 128),
    "bert full 8x128": Case(BERT_BASE, "sequence", "full", 8, 128),
    "bert masked 8x128": Case(BERT_BASE, "masked", "full", 8, 128),
    "bert full 8x128 checkpointing": Case(BERT_BASE, "sequence", "full", 8, 128, True),
    "bert last:2 16x128": Case(BERT_BASE, "sequence", "last:2", 16, 128),
    "bert head 16x128": Case(BERT_BASE, "sequence", "head", 16, 128),
    "bert lora 8x128": Case(BERT_BASE, "sequence", "lora", 8, 128),
    "bert lora 16x128 checkpointing": Case(BERT_BASE, "sequence", "lora", 16, 128, True),
    "gpt2 full 2x256": Case(GPT2, "causal", "full", 2, 256),
    "gpt2 full 4x256 checkpointing": Case(GPT2, "causal", "full", 4, 256, True),
}


GPU_CASES = {name: replace(case, batch_size=8 * case.batch_size) for name, case in CASES.items()}


class Same:
    """One batch, again and again."""

    def __init__(self, case: Case):
        self.batch = case.batch()

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return self.batch


def run_case(case: Case, device: torch.device = CPU, precision: str = "fp32") -> int:
    """The peak of the process, or of tensors on the GPU, over steps of the engine's own loop."""
    model = case.model().to(device)
    strategy(case.strategy).apply(model)
    settings = TrainSettings(steps=STEPS, lr=1e-4, precision=precision, checkpointing=case.checkpointing, progress=False)
    return train(model, Same(case), supervised, settings).peak_memory


def measure(case: Case) -> dict[str, int]:
    """In this process: what a case takes above what the process takes after a step of a tiny model, which loads what is loaded late."""
    keep_freed_memory()
    run_case(Case(TINY, "sequence", "full", 2, 8))
    reset_peak(CPU)
    before = peak_memory(CPU)
    return {"measured": run_case(case) - before, "before": before}


def compare_on_gpu(name: str) -> dict[str, Any]:
    """One case on this GPU, beside its prediction."""
    case, device = GPU_CASES[name], torch.device("cuda")
    reset_peak(device)
    before = torch.cuda.memory_allocated(device)
    measured = run_case(case, device, "bf16") - before
    told = plan(case.config, case.strategy, card="H200", batch_size=case.batch_size, length=case.length, head=case.head, precision="bf16", checkpointing=case.checkpointing,
                look_further=False)
    return {"name": name, "rows": case.batch_size, "predicted": told.footprint.peak, "measured": measured, "error": told.footprint.peak / measured - 1, "bar": BAR,
            "parts": told.footprint.parts, "gpu": torch.cuda.get_device_name(device), "torch": torch.__version__, "date": datetime.date.today().isoformat()}


def compare(name: str) -> dict[str, Any]:
    """One case in a process of its own, beside its prediction."""
    case, threads = CASES[name], torch.get_num_threads()
    measured = last_line("plan", name, threads)
    told = plan(case.config, case.strategy, card="cpu", batch_size=case.batch_size, length=case.length, head=case.head, precision="fp32",
                checkpointing=case.checkpointing, look_further=False)
    return {"name": name, "predicted": told.footprint.peak, **measured, "error": told.footprint.peak / measured["measured"] - 1, "bar": BAR, "parts": told.footprint.parts,
            "threads": threads, "cpu": cpu_name(), "torch": torch.__version__, "date": datetime.date.today().isoformat()}


def run(names: Sequence[str] | None = None, save: bool = False) -> list[dict[str, Any]]:
    """Measure cases and compare them with their predictions, a JSON line each.

    Args:   names: of CASES, default all; save: also write bench/results/plan.json, of a GPU plan_gpu.json (cases not measured now stay).
    Raises: KeyError for a case that does not exist.
    """
    lines, (measured, result) = [], (compare_on_gpu, GPU_RESULT) if torch.cuda.is_available() else (compare, RESULT)
    for name in chosen(names, CASES, "case"):
        lines.append(measured(name))
        print(json.dumps(lines[-1]), flush=True)
        if save:
            kept(result, {name: lines[-1]})
    return lines


# ---- the table of the scale page -----------------------------------------------------------------------------------------------------------------

LLAMA: dict[str, Any] = {"n_token_types": 0, "positions": "none", "rotary": Rotary(), "norm": "rms", "norm_bias": False, "norm_eps": 1e-5, "norm_position": "pre",
                         "qkv_bias": False, "o_bias": False, "mlp_bias": False, "activation": "silu", "gated": True, "causal": True, "embed_norm": False, "final_norm": True,
                         "pooler": False, "tied": False, "dropout": 0.0}
LLAMA_1B = ModelConfig(vocab_size=32_000, d_model=2048, n_layers=22, n_heads=32, n_kv_heads=4, d_ff=5632, max_len=2048, **LLAMA)
LLAMA_7B = ModelConfig(vocab_size=32_000, d_model=4096, n_layers=32, n_heads=32, d_ff=11_008, max_len=4096, **LLAMA)
WAYS: dict[str, tuple[str | Strategy, dict[str, Any]]] = {
    "full": ("full", {}), "LoRA": ("lora", {"dtype": "bf16"}), "LoRA over NF4": (lora(base="nf4"), {"dtype": "bf16"})}
SCALES: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "bert-base, 32 x 128": (BERT_BASE, {"batch_size": 32, "length": 128, "head": "masked"}),
    "gpt2, 8 x 1,024": (GPT2, {"batch_size": 8, "length": 1024}),
    "LLaMA shape of 1.1B, 4 x 1,024": (LLAMA_1B, {"batch_size": 4, "length": 1024, "checkpointing": True}),
    "LLaMA shape of 7B, 1 x 1,024": (LLAMA_7B, {"batch_size": 1, "length": 1024, "checkpointing": True})}
ON = ("T4", "RTX 4090", "A100", "H100")


def scale() -> str:
    """Predicted memory and tokens a second of each way on each card; a dash where it does not fit."""
    rows = [f"| predicted | memory | {' | '.join(ON)} |", f"|---|---|{'---|' * len(ON)}"]
    for name, (config, settings) in SCALES.items():
        for way, (strategy_, more) in WAYS.items():
            told = plan(config, strategy_, card="A100", look_further=False, **settings | more)
            each = [replace(told, card=card, step=replace(told.step, precision=str(card.half))) for card in (CARDS[one] for one in ON)]
            rows.append(f"| {name}, {way} | {told.memory / 2**30:.1f} GiB | {' | '.join(f'{one.tokens_per_second:,.0f}' if one.fits else '-' for one in each)} |")
            print(rows[-1], file=sys.stderr)
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CASES)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(measure(CASES[given.name])))
