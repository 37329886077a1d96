"""The quickest way to the same numbers, by planted clocks: measured once for each kind of call, never on a CPU or in a captured graph, and remembered on disk."""
import pytest
import torch

import minitransfer as mt
from minitransfer.nn import attention as attention_module
from minitransfer.nn import backends
from minitransfer.nn.attention import Attention
from minitransfer.nn.backends import quickest
from minitransfer.nn.masks import Mask
from minitransfer.nn.packing import Packing

from .tiny import bert, moved


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """This CPU, taken for a GPU; its clock stands still but for what a test adds to gpu["now"]."""
    state = {"now": 0.0, "capturing": False, "name": "planted"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backends, "MEASURED", ("cpu",))
    monkeypatch.setattr(backends, "perf_counter", lambda: state["now"])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: state["name"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["capturing"])
    monkeypatch.setattr(backends, "found", {})
    return state


def ways(gpu, **seconds):
    """Each takes its seconds, the first time far longer, and a random number."""
    calls = []

    def way(name):
        def run(q, k, v):
            gpu["now"] += seconds[name] if name in calls else 100 / seconds[name]
            calls.append(name)
            return q * k * v * torch.rand(())
        return run
    return {name: way(name) for name in seconds}, calls


def tensors(T=5, H=2, **kind):
    return [torch.ones(1, H, T, 4, **kind) for _ in range(3)]


def test_the_quickest_is_measured_once_for_each_kind(gpu):
    these, calls = ways(gpu, slow=3.0, quick=1.0)
    state = torch.random.get_rng_state()
    assert quickest(these, *tensors(), 5, "causal") is these["quick"] and calls == ["slow", "quick"] * 6
    assert torch.equal(state, torch.random.get_rng_state())
    for longest in (6, 8):
        assert quickest(these, *tensors(), longest, "causal") is these["quick"] and len(calls) == 12
    kinds = [(tensors(), 9, "causal"), (tensors(), 5, "window"), (tensors(H=1), 5, "causal"), (tensors(dtype=torch.float64), 5, "causal"),
             (tensors(requires_grad=True), 5, "causal")]
    for n, (given, longest, fact) in enumerate(kinds):
        assert quickest(these, *given, longest, fact) is these["quick"] and len(calls) == 24 + 12 * n


def test_what_was_found_outlives_the_process(gpu, monkeypatch):
    quickest(ways(gpu, slow=3.0, quick=1.0)[0], *tensors(), 5)
    monkeypatch.setattr(backends, "found", {})
    others, more = ways(gpu, slow=1.0, quick=3.0)
    assert quickest(others, *tensors(), 5) is others["quick"] and not more
    gpu["name"] = "another GPU"
    assert quickest(others, *tensors(), 5) is others["slow"] and more


def test_nothing_is_measured_in_a_graph_on_a_cpu_or_alone(gpu, monkeypatch):
    these, calls = ways(gpu, slow=3.0, quick=1.0)
    gpu["capturing"] = True
    assert quickest(these, *tensors(), 5) is these["slow"]
    gpu["capturing"] = False
    assert quickest({"slow": these["slow"]}, *tensors(), 5) is these["slow"]
    monkeypatch.setattr(backends, "MEASURED", ("cuda",))
    assert quickest(these, *tensors(), 5) is these["slow"] and not calls
    monkeypatch.setattr(backends, "MEASURED", ("cpu",))
    quickest(these, *tensors(), 5)
    gpu["capturing"] = True
    assert quickest(these, *tensors(), 5) is these["quick"]                      # what the warm-up has found


def test_what_does_not_fit_memory_is_not_taken(gpu):
    def greedy(q, k, v):
        raise torch.OutOfMemoryError
    these, _ = ways(gpu, quick=1.0)
    assert quickest({"greedy": greedy} | these, *tensors(), 5) is these["quick"]


KEEP = torch.arange(9)[None] < torch.tensor([9, 3, 7])[:, None]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "whole"])
@pytest.mark.parametrize("facts", [{}, {"causal": True}, {"causal": True, "window": 4}], ids=str)
@pytest.mark.parametrize("chosen", ["kernel", "sdpa"])
def test_every_way_gives_the_same_numbers(facts, packed, chosen, gpu, monkeypatch):
    taken = []

    def planted(ways, *given):
        taken.append(list(ways))
        return ways[chosen]
    monkeypatch.setattr(attention_module, "quickest", planted)
    attention = Attention(bert(n_heads=4, n_kv_heads=2, d_model=32, dropout=0.0)).eval()
    x, packing = torch.randn(3, 9, 32), Packing.of(KEEP)
    mask = Mask(**facts, documents=packing.texts, packing=packing) if packed else Mask(**facts)
    out, _, _ = attention(packing.pack(x) if packed else x, mask)
    attention.use("reference")
    truth, _, _ = attention(x, Mask(KEEP if packed else None, **facts))
    assert taken == [["kernel", "sdpa"] if packed else ["sdpa", "kernel"]]
    assert torch.allclose(packing.unpack(out)[KEEP] if packed else out, truth[KEEP] if packed else truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", [Mask(keep=KEEP), Mask(documents=torch.zeros(3, 9, dtype=torch.long)), Mask(positions=torch.arange(9).expand(3, 9), window=2)])
def test_a_mask_that_no_kernel_knows(mask, monkeypatch):
    taken = []
    monkeypatch.setattr(attention_module, "quickest", lambda ways, *given: taken.append(list(ways)) or ways["sdpa"])
    Attention(bert(d_model=32, n_heads=4))(torch.randn(3, 9, 32), mask)
    assert taken == [["sdpa"]]


def test_a_checkpointed_body_measures_in_its_first_pass(gpu):
    """What autograd keeps of the trials is no part of the block that is computed again."""
    model = moved(mt.Model(bert(dropout=0.0), head="masked"))
    ids, gradients = torch.randint(5, 101, (2, 12)), []
    for model.checkpointing in (True, False):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert backends.found and all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
