"""AdamW over all tensors in one launch: twenty steps against PyTorch's in fp64, states that go both ways, and the norm of the gradients."""
import pytest
import torch
from torch import nn

from minitransfer.ops import AdamW, adamw, clip_factor, grad_norm
from minitransfer.ops.dispatch import why_not
from minitransfer.ops.kernels import ADDRESSES

from .harness import FLOATS, barriers, guarded, guards, judge, planted, took_kernel, turns

SHAPES = [(131, 67), (7,), (3, 5, 2), (1,)]      # of more than a chunk, and of pieces that leave 1, 2 and 3 over
STEPS = 20


def tensors(seed, dtype, size=1.0):
    new = torch.Generator().manual_seed(seed)
    return [(size * torch.randn(shape, generator=new)).to(dtype) for shape in SHAPES]


def optimizer_of(kind, params):
    """With two groups that differ in everything."""
    return kind([{"params": params[:1], "lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}, {"params": params[1:], "lr": 0.003, "weight_decay": 0.0, "eps": 1e-6}])


def walk(optimizer, dtype, steps, factor=None):
    """Step through gradients drawn in `dtype`; the rate falls, and the first parameter has no gradient in every third step."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for n in steps:
        for i, (p, g) in enumerate(zip(params, tensors(n + 1, dtype, 0.1), strict=True)):
            plain = not isinstance(optimizer, AdamW) and factor is not None
            p.grad = None if i == 0 and n % 3 == 1 else guarded((g.to(p.dtype) * factor if plain else g.to(p.dtype)).to(p.device))
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - n / STEPS)
        optimizer.step(**{"factor": torch.tensor(factor, device=params[0].device)} if factor is not None and isinstance(optimizer, AdamW) else {})
    return optimizer


def run(kind, kept, dtype, device="cpu", steps=STEPS, factor=None):
    """Parameters of dtype `kept` that start at numbers of `dtype`, stepped; name -> weight (the master where there is one), moment or step."""
    params = [nn.Parameter(guarded(t.to(kept).to(device))) for t in tensors(0, dtype)]
    optimizer = walk(optimizer_of(kind, params), dtype, range(steps), factor)
    return {f"{name} {i}": t.detach().cpu() for i, p in enumerate(params) for name, t in ({"master": p} | optimizer.state[p]).items()} | {"params": params}


def judge_all(ours, plain, truth):
    for name, value in ours.items():
        if name.startswith("step"):
            assert value.item() == truth[name].item(), name
        elif name != "params":
            judge(value, plain[name], truth[name], name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("factor", [None, 0.37])
def test_twenty_steps(dtype, factor, device):
    """A 16-bit parameter's float32 master is judged as the parameter of a float32 optimizer that gets the same gradients."""
    ours = run(AdamW, dtype, dtype, device, factor=factor)
    assert took_kernel("adamw")
    judge_all(ours, run(torch.optim.AdamW, torch.float32, dtype, factor=factor), run(torch.optim.AdamW, torch.float64, dtype, factor=factor))
    if dtype != torch.float32:
        assert all(torch.equal(p.cpu(), ours[f"master {i}"].to(dtype)) for i, p in enumerate(ours["params"]))


def test_the_formula():
    """`reference` is PyTorch's AdamW, in fp64."""
    w, (m, v) = torch.randn(5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
    p = nn.Parameter(w.clone())
    theirs = torch.optim.AdamW([p], 0.01, (0.8, 0.95), 1e-6, 0.1)
    for t in range(1, 4):
        p.grad = torch.randn(5, dtype=torch.float64)
        w, m, v = adamw.reference(w, p.grad / 3, m, v, t, 0.01, 0.8, 0.95, 1e-6, 0.1, factor=3.0)
        theirs.step()
    assert torch.allclose(w, p, rtol=1e-12, atol=0)


def test_off_the_kernel_the_bits_are_pytorchs_fused():
    ours, theirs = run(AdamW, torch.float32, torch.float32), run(lambda groups: torch.optim.AdamW(groups, fused=True), torch.float32, torch.float32)
    assert why_not("adamw").startswith("a tensor on cpu")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "params")
    assert run(AdamW, torch.float64, torch.float32)["exp_avg 0"].dtype == torch.float64
    halves = run(AdamW, torch.bfloat16, torch.bfloat16, factor=0.5)
    judge_all(halves, *(run(torch.optim.AdamW, wide, torch.bfloat16, factor=0.5) for wide in (torch.float32, torch.float64)))
    assert torch.equal(halves["params"][0], halves["master 0"].bfloat16())


@pytest.mark.parametrize("first, then", [(torch.optim.AdamW, AdamW), (AdamW, torch.optim.AdamW), (AdamW, AdamW)])
def test_states_go_both_ways(first, then, device):
    """Seven steps of one and thirteen of the other are twenty; tables of tensors that are gone are not used."""
    def half_way(kind):
        return optimizer_of(kind, [nn.Parameter(guarded(t.to(device))) for t in tensors(0, torch.float32)])
    one, other, whole = half_way(first), half_way(then), run(torch.optim.AdamW, torch.float64, torch.float32)
    walk(other, torch.float32, range(2))                                         # so that it has tables of its own
    walk(one, torch.float32, range(7))
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(other.param_groups, one.param_groups, strict=True):
            torch._foreach_copy_(mine["params"], theirs["params"])
    walk(other, torch.float32, range(7, STEPS))
    plain = run(lambda groups: torch.optim.AdamW(groups, fused=True), torch.float32, torch.float32, device)      # as the one with our state is
    params = [p for group in other.param_groups for p in group["params"]]
    judge_all({f"{name} {i}": t.detach().cpu() for i, p in enumerate(params) for name, t in ({"master": p} | other.state[p]).items()}, plain, whole)


def test_states_of_16_bits_stay_wide(device):
    params = [nn.Parameter(guarded(t.to(device))) for t in tensors(0, torch.bfloat16)]
    one = walk(optimizer_of(AdamW, params), torch.bfloat16, range(3))
    other = optimizer_of(AdamW, params)
    other.load_state_dict(one.state_dict())
    for p in params:
        assert {name: t.dtype for name, t in other.state[p].items()} == dict.fromkeys(("step", "exp_avg", "exp_avg_sq", "master"), torch.float32)
        assert all(torch.equal(t, one.state[p][name]) and t is not one.state[p][name] for name, t in other.state[p].items())


def test_found_inf_changes_nothing_and_scales_are_read_on_the_device(device):
    scaled, plain = (optimizer_of(AdamW, [nn.Parameter(guarded(t.to(device))) for t in tensors(0, torch.float32)]) for _ in range(2))
    for optimizer in (scaled, plain):
        walk(optimizer, torch.float32, range(1))
    before = [t.clone() for state in scaled.state.values() for t in state.values()] + [p.detach().clone() for p in scaled.state]
    scaled.found_inf = torch.ones(1, device=device)
    walk(scaled, torch.float32, range(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(before, [t for state in scaled.state.values() for t in state.values()] + list(scaled.state), strict=True))
    scaled.found_inf, scaled.grad_scale = torch.zeros(1, device=device), torch.full((1,), 4.0, device=device)
    walk(scaled, torch.float32, range(2, 3), factor=4.0)
    walk(plain, torch.float32, range(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(scaled.state, plain.state, strict=True))


def test_with_a_grad_scaler(device):
    """A scaled loss steps as an unscaled one; a gradient that overflowed changes no weight, and halves the scale."""
    p, q = (nn.Parameter(torch.ones(5, device=device)) for _ in range(2))
    ours, theirs, scaler = AdamW([p], lr=0.1), AdamW([q], lr=0.1), torch.amp.GradScaler(device.type, init_scale=128.0)
    for n in (1.0, 2.0):
        scaler.scale((p * n).square().sum()).backward()
        (q * n).square().sum().backward()
        scaler.step(ours, factor=torch.tensor(0.5, device=device))
        theirs.step(factor=torch.tensor(0.5, device=device))
        scaler.update()
        ours.zero_grad()
        theirs.zero_grad()
    assert torch.equal(p, q) and p[0] < 0.85 and scaler.get_scale() == 128
    scaler.scale((p * torch.inf).sum()).backward()
    scaler.step(ours)
    scaler.update()
    assert torch.equal(p, q) and scaler.get_scale() == 64 and ours.state[p]["step"].item() == 2


@pytest.mark.gpu
def test_a_captured_step_replays_with_new_rates(monkeypatch):
    monkeypatch.setenv("MINITRANSFER_KERNELS", "on")
    ours, theirs = ([nn.Parameter(t.cuda()) for t in tensors(0, torch.float32)] for _ in range(2))
    one, other, targets = AdamW(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1), torch.tensor(4.0, device="cuda")
    for p, q, g in zip(ours, theirs, tensors(1, torch.float32), strict=True):
        p.grad, q.grad = g.cuda(), g.cuda()

    def step():
        one.step(factor=clip_factor(grad_norm(p.grad for p in ours), targets, 1.0))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for rate, count in ((0.2, 4.0), (0.01, 1e6)):
        one.param_groups[0]["lr"] = rate
        one.send_groups()
        targets.fill_(count)
        graph.replay()
    for rate, count in ((0.1, 4.0), (0.2, 4.0), (0.01, 1e6)):
        other.param_groups[0]["lr"] = rate
        for q, g in zip(theirs, tensors(1, torch.float32), strict=True):
            q.grad = g.cuda() / count
        nn.utils.clip_grad_norm_(theirs, 1.0)
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_rate_on_the_device(device):
    """A tensor as learning rate is read at each step: what a captured step replays with."""
    p, q = (nn.Parameter(torch.ones(5, device=device)) for _ in range(2))
    lr = torch.tensor(0.25, device=device)
    ours, theirs = AdamW([p], lr=lr), AdamW([q], lr=0.25)
    for rate in (0.25, 0.5, 0.0):
        p.grad, q.grad = torch.full_like(p, 0.3), torch.full_like(q, 0.3)
        lr.fill_(rate)
        theirs.param_groups[0]["lr"] = rate
        ours.step()
        theirs.step()
        assert torch.equal(p, q)
    assert p[0].item() != 1


def test_a_parameter_that_is_part_of_another_and_more_than_one_launch_holds(device):
    """Views at odd addresses take the narrow loop; more than 480 tensors take two launches."""
    flat, grads = (torch.randn(3 * (ADDRESSES + 7) + 1, generator=torch.Generator().manual_seed(n)).to(device) for n in range(2))
    params = [nn.Parameter(flat[3 * i + 1:3 * i + 4]) for i in range(ADDRESSES + 7)]
    for i, p in enumerate(params):
        p.grad = grads[3 * i:3 * i + 3]
    whole = nn.Parameter(flat[1:].clone())
    whole.grad = grads[:-1].clone()
    for some in (params, [whole]):
        AdamW(some, lr=0.1).step()
    assert torch.equal(flat[1:], whole)
    params.append(nn.Parameter(flat[:0]))
    params[-1].grad = flat[:0]
    AdamW(params[-2:]).step()
    judge(grad_norm(p.grad for p in params), grads[:-1].norm(), grads[:-1].double().norm().cpu(), "norm")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_norm(dtype, device):
    given = [guarded(t.to(device)) for t in tensors(5, dtype, 3.0)]
    with guards():
        norm = grad_norm(given)
    assert took_kernel("grad_norm") and norm.shape == ()
    truth = torch.cat([t.double().cpu().flatten() for t in given]).norm()
    judge(norm, nn.utils.get_total_norm([t.float().cpu() for t in given]), truth, "norm")
    mixed = grad_norm([given[0], given[1].double().float()])
    assert mixed.item() == pytest.approx(torch.cat([t.double().cpu().flatten() for t in given[:2]]).norm().item(), rel=1e-6)


def test_clip_factor():
    for norm, targets, max_norm, wanted in ((20.0, 4, 1.0, 0.2 / 4), (20.0, 4, 6.0, 1 / 4), (20.0, torch.tensor(4), None, 1 / 4), (0.0, 1, 1.0, 1.0), (float("inf"), 1, 1.0, 0.0)):
        assert clip_factor(torch.tensor(norm), targets, max_norm).item() == pytest.approx(wanted, rel=1e-5)


def test_the_order_of_threads_and_blocks_changes_no_bit(emulator):
    first, norm = run(AdamW, torch.float32, torch.float32, steps=2), grad_norm(tensors(3, torch.float32))
    for order in (1, 2, 3):
        with turns(order):
            again = run(AdamW, torch.float32, torch.float32, steps=2)
            assert all(torch.equal(again[name], first[name]) for name in first if name != "params")
            assert torch.equal(grad_norm(tensors(3, torch.float32)), norm)


def test_no_barrier_of_its_own():
    assert barriers("adamw.cu") == 0


@pytest.mark.parametrize("old, new, message", [
    ("< in_fours;", "< in_fours + 4;", "memory access|misaligned access"),
    ("i < count; i += blockDim.x) update", "i <= count; i += blockDim.x) update", "bad memory access"),
    ("c.to_v = (float)(1.0 - group.beta2)", "c.to_v = (float)(1.0 - group.beta1)", "from the truth"),
    ("c.keep = (float)(1.0 - group.lr * group.decay)", "c.keep = (float)(1.0 - group.decay)", "from the truth"),
    ("power(group.beta1, (u64)t)", "power(group.beta1, (u64)t + 1)", "from the truth"),
    ("bool aligned =", "bool aligned = true ||", "misaligned access"),
])
def test_planted_faults_are_noticed(old, new, message, emulator):
    with planted("adamw.cu", old, new), pytest.raises((RuntimeError, AssertionError), match=message):
        judge_all(run(AdamW, torch.float32, torch.float32, steps=2), *(run(torch.optim.AdamW, wide, torch.float32, steps=2) for wide in (torch.float32, torch.float64)))


class Other(torch.Tensor):
    """As a DTensor: its data is elsewhere."""


def test_what_has_no_kernel_says_why(emulator):
    p = nn.Parameter(torch.randn(3, 5).t())
    p.grad = torch.ones(5, 3)
    AdamW([p]).step()
    assert why_not("adamw").startswith("a parameter of shape (5, 3) with strides (1, 5)")
    grad_norm([torch.ones(2).as_subclass(Other)])
    assert why_not("grad_norm") == "gradients of type Other; a kernel reads plain tensors"
    grad_norm([torch.ones(2, dtype=torch.float64)])
    assert why_not("grad_norm").startswith("torch.float64; kernels compute")
    with pytest.raises(ValueError, match="a state of AdamW with amsgrad or maximize"):
        AdamW([p]).load_state_dict(torch.optim.AdamW([p], amsgrad=True).state_dict())
