"""Cross-entropy in the place of the logits, and the chunk loop around it: kernels against fp64; planted faults are noticed. Gathering of targets by hand."""
import pytest
import torch
from torch.nn.functional import pad

from minitransfer.ops import gather_targets, linear_cross_entropy
from minitransfer.ops.dispatch import why_not
from minitransfer.ops.kernels import SCALARS, kernels
from minitransfer.ops.linear_cross_entropy import reference, rows_in_kernel, rows_in_torch

from .harness import FLOATS, barriers, guarded, judge, planted, took_kernel, turns


def inputs(rows, columns, dtype, device="cpu"):
    """Logits, and targets of which the second is missing and the last two are the ends of a row."""
    new = torch.Generator().manual_seed(rows * columns)
    targets = torch.randint(columns, (rows,), generator=new)
    targets[1], targets[-2], targets[-1] = -100, 0, columns - 1
    return guarded((3 * torch.randn(rows, columns, generator=new)).to(dtype).to(device)), guarded(targets.to(device))


def run(rows, columns, dtype, device="cpu", wanted=True):
    """Rows are filled up with NaN, which may reach nothing, and has no gradient."""
    logits, targets = inputs(rows, columns, dtype, device)
    on_cpu, filled = logits.cpu(), guarded(pad(logits, (0, -columns % 8), value=float("nan")))
    losses, dlogits = rows_in_kernel(kernels("cross_entropy.cu", SCALAR=SCALARS[dtype]), filled, targets, columns, wanted)
    assert not wanted or (dlogits[:, columns:] == 0).all(), "a gradient beyond the vocabulary"
    ours, plainly = (losses, dlogits[:, :columns]), rows_in_torch(on_cpu, targets.cpu())
    return ours, (plainly[0], plainly[1].to(dtype)), rows_in_torch(on_cpu.double(), targets.cpu())


def judge_all(ours, plainly, truth):
    for name, mine, other, true in zip(("losses", "dlogits"), ours, plainly, truth, strict=True):
        judge(mine, other, true, name)
        assert (mine[1] == 0).all(), f"{name} of a row without a target"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rows, columns", [(8, 131), (8, 7), (16, 1), (8, 4099), (8, 16411)])
def test_numbers(rows, columns, dtype, device):
    """Odd vocabularies end within a piece of 16 bytes; the last one is read in several rounds."""
    judge_all(*run(rows, columns, dtype, device))


def test_without_gradients_the_logits_stay(device):
    logits = inputs(8, 131, torch.float32, device)[0]
    ours = run(8, 131, torch.float32, device, wanted=False)
    assert torch.equal(ours[0][1], logits)
    judge(ours[0][0], ours[1][0], ours[2][0], "losses")


def test_extreme_logits(device):
    """Logits of 1e4 and -inf overflow nowhere; a target outside the vocabulary is NaN and no other's number."""
    logits = torch.tensor([[1e4, 9999.0, -1e4], [-1e4, -1e4, -9999.0], [-float("inf"), 1.0, 2.0], [0.0, 0.0, 0.0]] * 4, device=device)
    targets = torch.tensor([1, 2, 1, 3] * 4, device=device)
    known = logits.cpu().double().log_softmax(-1)
    losses, dlogits = rows_in_kernel(kernels("cross_entropy.cu", SCALAR="float"), pad(logits, (0, 1)), targets, 3, True)
    for row in range(3):
        assert abs(losses[row] + known[row, targets[row]]) < 1e-3 and dlogits[row].isfinite().all()
        assert (dlogits[row, :3].cpu() - known[row].exp() + torch.eye(3)[targets[row].item()]).abs().max() < 1e-3
    assert losses[3].isnan()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_with_the_product(bias, dtype, device):
    """The chunk loop: loss and every gradient, rows without a target among them."""
    new = torch.Generator().manual_seed(7)
    tensors = [torch.randn(*shape, generator=new) for shape in ((37, 16), (131, 16), (131,))]
    targets = torch.randint(131, (37,), generator=new)
    targets[::5] = -100

    def both_ways(loss_of, to, at):
        leaves = [t.to(at, dtype).to(to).requires_grad_() for t in tensors[: 3 if bias else 2]]
        loss = loss_of(*leaves, *([] if bias else [None]), targets.to(at))
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]
    ours = both_ways(lambda *given: linear_cross_entropy(*given, chunk=8), dtype, device)
    assert took_kernel("linear_cross_entropy")
    rows = both_ways(reference, dtype, "cpu"), both_ways(reference, torch.float64, "cpu")
    for name, mine, other, true in zip(("loss", "dx", "dweight", "dbias"), ours, *rows, strict=False):
        judge(mine, other.to(mine.dtype), true, name)


def test_autocast_takes_the_kernel_of_its_dtype(device):
    x, weight = torch.randn(8, 16, device=device), torch.randn(131, 16, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        loss = linear_cross_entropy(x, weight, None, torch.zeros(8, dtype=torch.long, device=device))
    assert took_kernel("linear_cross_entropy") and loss.dtype == torch.float32 and torch.autograd.grad(loss, weight)[0].dtype == torch.float32


def test_rows_without_a_target_in_pytorch(monkeypatch):
    """Off, and in fp64: the same numbers as leaving the rows out."""
    monkeypatch.setenv("MINITRANSFER_KERNELS", "off")
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((17, 7), (23, 7), (23,)))
    targets = torch.randint(23, (17,))
    targets[:3] = -100
    results = [torch.autograd.grad(linear_cross_entropy(x[first:], weight, bias, targets[first:], 5), (x, weight, bias)) for first in (0, 3)]
    assert why_not("linear_cross_entropy") == "MINITRANSFER_KERNELS=off" and (results[0][0][:3] == 0).all()
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < 1e-13


def test_the_order_of_threads_and_blocks_changes_no_bit(emulator):
    first = run(8, 4099, torch.float32)[0]
    for order in (1, 2, 3):
        with turns(order):
            assert all(torch.equal(a, b) for a, b in zip(run(8, 4099, torch.float32)[0], first, strict=True)), order


@pytest.mark.parametrize("nth", range(barriers("cross_entropy.cu")))
def test_each_missing_barrier_is_noticed(nth, emulator):
    with planted("cross_entropy.cu", "__syncthreads();", "", nth), pytest.raises(AssertionError):
        for order in (0, 1, 2):
            with turns(order):
                judge_all(*run(8, 4099, torch.float32))


@pytest.mark.parametrize("old, new, fault, message", [
    ("c + VECTOR <= columns) return load", "c <= columns) return load", AssertionError, "from the truth|beyond the vocabulary"),
    ("c + j < columns ?", "c + j <= columns ?", AssertionError, "from the truth|beyond the vocabulary"),
    ("if (c < pitch) store", "store", RuntimeError, "bad memory access"),
    ("if (c < pitch) store", "if (c + VECTOR <= columns) store", AssertionError, "from the truth|beyond the vocabulary"),
    ("sum *= fast_exp(top - highest);", "", AssertionError, "from the truth"),
    ("c + j == goal", "c + j == goal + 1", AssertionError, "from the truth|beyond the vocabulary"),
])
def test_planted_faults_are_noticed(old, new, fault, message, emulator):
    with planted("cross_entropy.cu", old, new), pytest.raises(fault, match=message):
        judge_all(*run(8, 131, torch.float32))


@pytest.mark.parametrize("budget", [1, 4, 5, 11, 19])
def test_gathered_targets(budget):
    """By hand: five of eleven rows have a target."""
    x, targets = torch.randn(11, 3, dtype=torch.float64, requires_grad=True), torch.tensor([-100, 4, -1, 0, -100, 7, 7, -100, -100, 2, -100])
    chosen = torch.tensor([1, 3, 5, 6, 9])[:budget]
    rows, goals, dropped = gather_targets(x, targets, budget)
    n = len(chosen)
    assert rows.shape == (budget, 3) and torch.equal(rows[:n], x[chosen]) and torch.equal(goals[:n], targets[chosen])
    assert (goals[n:] == -100).all() and rows.isfinite().all() and dropped == max(5 - budget, 0)
    drows = torch.randn_like(rows)
    truth = torch.zeros_like(x).index_copy(0, chosen, drows[:n])
    assert torch.equal(torch.autograd.grad(rows, x, drows)[0], truth)
    weight = torch.randn(8, 3, dtype=torch.float64)
    assert abs(linear_cross_entropy(rows, weight, None, goals) - reference(x[chosen], weight, None, targets[chosen])) < 1e-12


def test_gathering_refused():
    with pytest.raises(ValueError, match="budget=0; a buffer holds at least one row: give 1 or more"):
        gather_targets(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), 0)
