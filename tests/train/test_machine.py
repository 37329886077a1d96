"""Precision by capability, memory, speed: what depends on the machine."""
from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minitransfer.objectives import Causal
from minitransfer.training import precision as rooms
from minitransfer.training import savings, train
from minitransfer.training.memory import keep_freed_memory, saved_for_backward
from minitransfer.training.precision import choose_precision
from minitransfer.training.rehearsal import StepShape
from minitransfer.training.savings import advice
from minitransfer.training.throughput import Meter, flops, peak_flops

from .small import Listed, batches, gpt, settings, weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("capability", "wanted"), [((6, 0), "fp16"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 6), "bf16"), ((9, 0), "bf16")])
def test_auto_on_a_gpu_goes_by_its_compute_capability(monkeypatch, capability, wanted):
    """P100, V100, T4 / A100, 3090, H100."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", CUDA, 10**7) == wanted


def test_auto_on_a_cpu_goes_by_its_instructions_and_the_size_of_the_model(monkeypatch):
    for there, parameters, wanted in ((True, 10**7, "bf16"), (False, 10**7, "fp32"), (True, 10**5, "fp32")):
        monkeypatch.setattr(rooms, "cpu_computes_bf16", lambda there=there: there)
        assert choose_precision("auto", CPU, parameters) == wanted
    assert choose_precision("fp32", CPU, 10**7) == "fp32"
    with pytest.raises(ValueError, match=r'precision="fp16" on cpu.*needs an NVIDIA GPU'):
        choose_precision("fp16", CPU, 10**7)


def test_the_capability_is_read_from_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False}, raising=False)
    monkeypatch.setattr(rooms.Path, "read_text", lambda self: "processor : 0\nflags\t\t: fpu avx512f\nbogomips : 3\n")
    assert not rooms.cpu_computes_bf16()
    monkeypatch.setattr(rooms.Path, "read_text", lambda self: "processor : 0\nFeatures\t: fp asimd bf16\n")
    monkeypatch.setattr(rooms.Path, "exists", lambda self: True)
    assert rooms.cpu_computes_bf16()
    monkeypatch.setattr(rooms.Path, "exists", lambda self: False)
    assert not rooms.cpu_computes_bf16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert rooms.cpu_computes_bf16()


def test_bf16_computes_in_bf16_and_keeps_float32_weights_moments_and_losses(monkeypatch):
    monkeypatch.setattr("minitransfer.training.throughput.peak_flops", lambda device, dtype: 1e9)     # where bf16 is emulated, the measurement takes seconds
    model, seen, dtypes = gpt(dropout=0.0), {}, set()
    model.blocks[0].mlp.up_proj.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    for name in ("fp32", "bf16"):
        model = gpt(dropout=0.0)
        model.blocks[0].mlp.up_proj.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
        losses: list[float] = []
        result = train(model, batches(), Causal(), settings(5, precision=name), on_step=lambda record, losses=losses: losses.append(record["loss"]))
        seen[name] = losses
        assert result.precision == name and {p.dtype for p in weights(model).values()} == {torch.float32}
    assert dtypes == {torch.float32, torch.bfloat16}
    assert seen["bf16"] != seen["fp32"] and seen["bf16"] == pytest.approx(seen["fp32"], rel=1e-2)


def test_floating_point_operations_are_those_that_pytorch_counts(monkeypatch):
    """Every token a target, so that the head counts in full; the counter sees the products that are really run, forward and backward.

    It does not know oneDNN's operator, so the products are PyTorch's here.
    """
    monkeypatch.setattr("minitransfer.ops.linear.available", lambda: False)
    model, ids = gpt(dropout=0.0, vocab_size=47), torch.randint(47, (3, 17))
    model.attention = "reference"
    with FlopCounterMode(display=False) as counter:
        body = model.body(ids)
        torch.nn.functional.linear(body.x, model.embed.tokens.weight).sum().backward()
    assert flops(model, ids.numel(), ids.numel(), 17.0) == counter.get_total_flops()
    for p in model.blocks.parameters():
        p.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.linear(model.body(ids).x, model.embed.tokens.weight).sum().backward()
    assert flops(model, ids.numel(), ids.numel(), 17.0) == counter.get_total_flops()


def test_the_meter_divides_by_seconds_and_by_the_peak():
    model = gpt()
    meter = Meter(model, torch.float32)
    meter.add(tokens=30, targets=20, length=10, seconds=0.5, loss=2.0)
    meter.add(tokens=10, targets=10, length=20, seconds=1.5, loss=5.0)
    rates = meter.read()
    assert rates["loss"] == pytest.approx((20 * 2.0 + 10 * 5.0) / 30) and rates["tokens_per_second"] == pytest.approx(20.0)
    done = flops(model, 30, 20, 10.0) + flops(model, 10, 10, 20.0)
    assert rates["mfu"] == pytest.approx(done / 2.0 / peak_flops(CPU, torch.float32)) and meter.read()["tokens_per_second"] == 0.0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_glibc_listens():
    assert keep_freed_memory()


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux can reset the peak of a process")
def test_the_peak_is_that_since_the_reset():
    """In a process of its own: one that has freed gigabytes before fills those first, and its peak stands still."""
    code = ("import torch; from minitransfer.training.memory import peak_memory, reset_peak; cpu = torch.device('cpu'); big = torch.ones(64 * 2**20); del big; "
            "reset_peak(cpu); before = peak_memory(cpu); big = torch.ones(32 * 2**20); print(before, peak_memory(cpu))")
    before, after = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert 100 * 2**20 < after - before < 160 * 2**20                            # 128 MiB, and nothing left of the 256 before the reset


def test_a_gpu_that_is_full_is_answered_with_what_to_change():
    def objective(model, batch, generator):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with pytest.raises(torch.OutOfMemoryError, match=r"half the batch_size with twice the micro_batches.*: [\d,]+ [KM]iB less; .*checkpointing=True: .* [KM]iB less.*"
                                                     r"the step was predicted to take [\d,]+ MiB.*Tried to allocate 20.00 MiB") as said:
        train(gpt(), batches(), objective, settings())
    assert "rehearsed" not in str(said.value)


def test_a_step_that_cannot_be_rehearsed_is_answered_too(monkeypatch):
    def rehearse(*args):
        raise NotImplementedError("an operation without shapes")
    monkeypatch.setattr(savings, "rehearse", rehearse)
    said = advice(gpt(), StepShape(2, 3), torch.device("cpu"))
    assert said.startswith("(1) half the batch_size") and "checkpointing=True" in said and "cannot be rehearsed" in said


def test_what_was_kept_is_reported():
    """At most: the largest batch, and what a hand-made step of it keeps."""
    model, same = gpt(), gpt()
    result = train(model, batches(), Causal(), settings(3, log_every=1))
    largest = max((batches()[k] for k in range(3)), key=lambda batch: batch["input_ids"].numel())
    with saved_for_backward(same.train()) as saved:
        loss, _ = Causal()(same, largest, torch.Generator())
    assert result.kept_memory == sum(saved.values()) > 0 and loss.requires_grad
    assert result.history[-1]["kept"] == result.kept_memory and "of them kept for the backward pass" in str(result)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_the_same_in_every_precision(precision):
    model = gpt(dropout=0.0).to(CUDA)
    losses: list[float] = []
    train(model, batches(), Causal(), settings(60, precision=precision), on_step=lambda record: losses.append(record["loss"]))
    on_cpu: list[float] = []
    train(gpt(dropout=0.0), batches(), Causal(), settings(60), on_step=lambda record: on_cpu.append(record["loss"]))
    assert losses[0] == pytest.approx(on_cpu[0], rel=2e-2) and losses[-1] == pytest.approx(on_cpu[-1], rel=0.1) and losses[-1] < 0.9 * losses[0]


@pytest.mark.gpu
def test_fp16_skips_steps_that_overflow_and_goes_on():
    model = gpt(dropout=0.0).to(CUDA)
    before = weights(model)
    huge = Listed([{"input_ids": torch.randint(43, (64, 31))}])

    def objective(model, batch, generator):
        total, n = Causal()(model, batch, generator)
        return total * 1e4, n

    records: list[dict] = []
    train(model, huge, objective, settings(30, precision="fp16"), on_step=records.append)
    assert any(not torch.tensor(one["grad_norm"]).isfinite() for one in records) and torch.tensor(records[-1]["grad_norm"]).isfinite()
    assert all(p.isfinite().all() for p in weights(model).values())
    assert any(not torch.equal(before[name], p) for name, p in weights(model).items())
