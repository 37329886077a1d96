"""Tokens from a graph are the tokens of the plain path. On a CPU `FakeGraph` stands for a graph: what is not a tensor is frozen in it, as in a real one."""
import sys
from weakref import WeakKeyDictionary

import pytest
import torch

import minitransfer as mt
from minitransfer import replay
from tests.reference import pair
from tests.train.graphs import FakeGraph

LEARNED = {"positions": "learned", "activation": "gelu_tanh"}
ROPED = {"positions": "none", "rotary": mt.config.Rotary(share=0.5), "norm": "rms", "activation": "silu", "gated": True, "n_kv_heads": 1, "qk_norm": True}
CONFIGS = {"learned": LEARNED, "roped": ROPED, "window": ROPED | {"window": 7}}
PLAIN = {"precision": "fp32", "max_new_tokens": 9}


def decoder(**changes):
    """A model whose every parameter was moved, so that its texts do not repeat one token."""
    c = mt.ModelConfig(vocab_size=103, d_model=24, n_layers=2, n_heads=2, d_ff=41, max_len=71, norm_position="pre", causal=True, n_token_types=0, embed_norm=False,
                       final_norm=True, pooler=False, **changes)
    model, new = mt.Model(c, "causal").eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=new) * 0.3)
    return model


def prompts(rows=3, width=11, seed=1):
    """Ids and their padding on the left."""
    new = torch.Generator().manual_seed(seed)
    return torch.randint(2, 103, (rows, width), generator=new), torch.arange(width) >= torch.tensor([0, 4, 5, 2, 1])[:rows, None]


@pytest.fixture
def graphs(monkeypatch):
    """Called, it lets this CPU be a device with graphs; returns how many replays there were."""
    def switch():
        monkeypatch.setattr(replay, "DEVICES", ("cpu",))
        monkeypatch.setattr(replay, "Graph", FakeGraph)
        monkeypatch.setattr(FakeGraph, "replays", 0)
        monkeypatch.setattr(sys.modules["minitransfer.generate"], "PACKED", WeakKeyDictionary())        # a copy is of one device
        monkeypatch.setattr("minitransfer.nn.model.scattered", lambda documents, positions: True)       # as on a GPU, which is not asked
        return lambda: FakeGraph.replays
    return switch


def close_in_bf16(model, ids, keep):
    """The last logits of a text against the model that reads it whole under autocast; returns the copy and its step."""
    got = mt.generate(model, ids, keep, max_new_tokens=8, precision="bf16")
    (fast, steps), every = replay.STEPS[model], torch.cat([keep, torch.ones_like(keep[:, :7])], 1)
    step, = steps.values()
    with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16):
        want = model(got[:, :-1], every).logits[:, -1].float()
    assert step.model is fast and (step.graph.out - want).abs().max() <= 0.04 * want.abs().max()
    return fast, step


@pytest.mark.parametrize("kind", ["learned", "roped", "window"])
def test_tokens_are_those_of_the_plain_path(kind, graphs):
    """Greedy, sampled, penalised, beams, with stops; then a second prompt of another length through the graph that is there."""
    model, (ids, keep) = decoder(**CONFIGS[kind]), prompts()
    free = mt.generate(model, ids, keep, **PLAIN)
    calls = [((ids, keep), {}), (prompts(width=6, seed=2), {}), ((ids.flip(1), keep.flip(1)), {}), ((ids, keep), {"temperature": 0.9, "top_k": 20}),
             ((ids, keep), {"repetition_penalty": 1.6}), ((ids, keep), {"stop": free[:, 11 + 5].tolist()}), ((ids, keep), {"num_beams": 3, "length_penalty": 0.7})]

    def answers():
        return [mt.generate(model, *given, generator=torch.Generator().manual_seed(7), **PLAIN, **more) for given, more in calls]
    want, replays = answers(), graphs()
    got = answers()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and len({str(one.tolist()) for one in want}) == len(want)
    assert replays() >= 4 * 8 and set(replay.STEPS[model][1]) == {(3, 64), (9, 64)}
    asked = {func for step in replay.STEPS[model][1].values() for func, *_ in step.graph.calls} & {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
    assert not asked and len(set(free[:, 11:].flatten().tolist())) > 6           # no number of the device, and not one token for ever


def test_tokens_are_those_of_the_reference(tmp_path, graphs):
    reference, ours = pair("GPT2LMHeadModel", tmp_path, scale=0.3, n_positions=47)
    replays, (ids, keep) = graphs(), prompts(rows=5)
    want = reference.generate(ids, attention_mask=keep.long(), max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(mt.generate(ours, ids, keep, max_new_tokens=20, precision="fp32")[:, 11:], want[:, 11:])
    assert replays() == 19 and set(replay.STEPS[ours][1]) == {(5, 47)}          # 31 columns: 64 positions, of which the model has 47


def test_changed_weights_are_heard(graphs):
    model, (ids, keep) = decoder(**LEARNED), prompts()
    first = mt.generate(model, ids, keep, **PLAIN)
    moved = decoder(**LEARNED)
    for one in (model, moved):
        with torch.no_grad():
            one.blocks[1].mlp.up_proj.weight.mul_(-2)
    want, replays = mt.generate(moved, ids, keep, **PLAIN), graphs()
    with torch.no_grad():
        model.blocks[1].mlp.up_proj.weight.mul_(-0.5)
    assert torch.equal(mt.generate(model, ids, keep, **PLAIN), first)
    with torch.no_grad():
        model.blocks[1].mlp.up_proj.weight.mul_(-2)
    assert torch.equal(mt.generate(model, ids, keep, **PLAIN), want) and not torch.equal(first, want) and replays() == 2 * 8


def test_a_step_in_bf16_has_no_weight_to_cast(graphs):
    """Its logits are those of the model under autocast, within its rounding; what is cast are activations."""
    model, (ids, keep) = decoder(**ROPED), prompts()
    graphs()
    fast, step = close_in_bf16(model, ids, keep)
    casts = [args[0].data_ptr() for func, args, _, _ in step.graph.calls if func is torch.ops.aten._to_copy.default]
    assert casts and not {p.data_ptr() for p in fast.parameters()} & set(casts)


def test_what_no_graph_holds_takes_the_plain_path(graphs):
    model, (ids, keep) = decoder(**LEARNED), prompts(width=60)
    few, wide = mt.generate(model, ids, keep, max_new_tokens=7, precision="fp32"), mt.generate(model, ids[1:], keep[1:], max_new_tokens=12, precision="fp32")
    replays = graphs()
    assert torch.equal(mt.generate(model, ids, keep, max_new_tokens=7, precision="fp32"), few)
    assert torch.equal(mt.generate(model, ids[1:], keep[1:], max_new_tokens=12, precision="fp32"), wide)         # 72 columns for 71 positions, as padding takes four
    heard = []
    hook = model.blocks[0].register_forward_hook(lambda *given: heard.append(1))
    mt.generate(model, ids[:, :5], max_new_tokens=8, precision="fp32")
    hook.remove()
    assert len(heard) == 8 and replays() == 0 and model not in replay.STEPS


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["learned", "roped", "window"])
def test_graphs_of_a_gpu_give_the_tokens_of_its_plain_path(kind, monkeypatch):
    model, (ids, keep) = decoder(**CONFIGS[kind]).cuda(), (t.cuda() for t in prompts())
    calls = [(ids, keep), (ids, keep), tuple(t.cuda() for t in prompts(width=6, seed=2))]
    with monkeypatch.context() as plainly:
        plainly.setattr(replay, "DEVICES", ())
        want = [mt.generate(model, *given, **PLAIN) for given in calls]
    assert all(torch.equal(mt.generate(model, *given, **PLAIN), one) for given, one in zip(calls, want, strict=True))
    assert len(replay.STEPS[model][1]) == 1                                      # captured once
    close_in_bf16(model, ids, keep)
