"""Padding dropped between embedding and head changes no number that anyone reads: states, losses, gradients."""
import pytest
import torch

import minitransfer as mt
from minitransfer.nn.packing import Packing

from .tiny import bert, gpt2, gradients, moved

ROPED = {"norm": "rms", "activation": "silu", "gated": True, "positions": "none", "rotary": mt.config.Rotary(), "n_kv_heads": 2, "n_heads": 4, "d_model": 32}
BODIES = {"encoder": (bert(), "masked"), "pooled": (bert(), "sequence"), "tokens": (bert(), "token"), "decoder": (gpt2(), "causal"), "roped": (gpt2(**ROPED), "causal"),
          "windows": (bert(d_model=32, positions="none", rotary=mt.config.Rotary(local_theta=77.0), window=3, global_layers=(0,)), "masked")}
KEEP = torch.tensor([[1] * 11 + [0] * 2, [0] * 6 + [1] * 7, [1] * 13, [0] * 13, [1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1]]).bool()


def run(name, keep, packs, **more):
    config, head = BODIES[name]
    labels = None if head in ("masked", "causal") else list("abc")
    model = moved(mt.Model(config, head, labels=labels))
    model.packs = packs
    ids = torch.randint(5, 101, keep.shape, generator=torch.Generator().manual_seed(3))
    answers = torch.randint(3, keep.shape if head == "token" else keep.shape[:1], generator=torch.Generator().manual_seed(4))
    out = model(ids, attention_mask=keep.long(), labels=(answers if labels else ids).masked_fill(~keep if head != "sequence" else ~keep.any(1), -100), **more)
    out.loss.backward()
    return out, gradients(model)


@pytest.mark.parametrize("name", BODIES)
def test_packed_is_padded(name):
    packed, of_packed = run(name, KEEP, True)
    padded, of_padded = run(name, KEEP, False)
    torch.testing.assert_close(packed.last_hidden_state[KEEP], padded.last_hidden_state[KEEP], rtol=1e-5, atol=1e-5)
    assert not packed.last_hidden_state[~KEEP].any()
    torch.testing.assert_close(packed.loss, padded.loss, rtol=1e-5, atol=1e-5)
    for parameter, grad in of_padded.items():
        torch.testing.assert_close(of_packed[parameter], grad, rtol=1e-4, atol=1e-5, msg=lambda said, parameter=parameter: f"{parameter}: {said}")


def test_blocks_see_tokens_only():
    config, head = BODIES["encoder"]
    model, seen = moved(mt.Model(config, head)), []
    model.blocks[1].register_forward_hook(lambda module, given, made: seen.append(tuple(made[0].shape)))
    for model.packs in (True, False, None):
        model(torch.full(KEEP.shape, 7), attention_mask=KEEP)
    assert seen == [(1, int(KEEP.sum()), 28), (5, 13, 28), (5, 13, 28)]             # None: a CPU pads


@pytest.mark.parametrize("changes", [{"output_hidden_states": True}, {"output_attentions": True}])
def test_who_asks_for_states_gets_those_of_the_padded_batch(changes):
    packed, padded = run("encoder", KEEP, True, **changes)[0], run("encoder", KEEP, False, **changes)[0]
    for name in ("hidden_states", "attentions"):
        for ours, theirs in zip(getattr(packed, name) or (), getattr(padded, name) or (), strict=True):
            assert torch.equal(ours, theirs)


def test_offsets_by_hand():
    packing = Packing.of(KEEP)
    assert packing.offsets.tolist() == [0, 11, 18, 31, 31, 40] and packing.offsets.dtype == torch.int32
    assert packing.texts[0, [0, 10, 11, 17, 18, 30, 31, 39]].tolist() == [0, 0, 1, 1, 2, 2, 4, 4]
    x = torch.randn(5, 13, 2)
    assert torch.equal(packing.unpack(packing.pack(x)), x * KEEP[..., None]) and torch.equal(packing.pack(x[:1])[0, 11:18], x[0, 6:])


@pytest.mark.parametrize("attention", ["auto", "reference", "sdpa"])
@pytest.mark.parametrize("name", BODIES)
def test_padding_behind_the_tokens_is_seen_by_none(name, attention):
    """Seven places of padding, whatever stands there, change no state of a token, no loss and no gradient."""
    (config, head), seen, found = BODIES[name], [], []
    model = moved(mt.Model(config, head, labels=None if head in ("masked", "causal") else list("abc")))
    model.packs, model.attention, of_text = True, attention, head == "sequence"
    model.blocks[1].register_forward_hook(lambda module, given, made: seen.append(made[0].shape[1]))
    ids = torch.randint(5, 101, KEEP.shape, generator=torch.Generator().manual_seed(3))
    labels = (ids[:, 0] if of_text else ids).remainder(3 if head in ("sequence", "token") else 101).masked_fill(~(KEEP.any(1) if of_text else KEEP), -100)
    places = torch.cat([KEEP.flatten().nonzero()[:, 0], (~KEEP).flatten().nonzero()[[0, 3, 4, 9, 14, 21, 22], 0]])
    for place, junk in ((None, 1), (places, 1), (places, 2)):                    # ids that no token has
        body = model.body(ids.masked_fill(~KEEP, junk), KEEP.long(), packed=place)
        loss, _ = model.head.loss(body, labels)
        found.append((loss, body.x[KEEP], *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)))
    assert seen == [40, 47, 47] and body.x[~KEEP].any()
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_packed_in_the_kernel(monkeypatch):
    """The whole body in float16 with every kernel it has, in the emulator: as near to the fp64 truth as the padded body in plain PyTorch is."""
    from ..kernels.harness import judge, took_kernel
    config = bert(d_model=64, n_heads=2, dropout=0.0)
    ids = torch.randint(5, 101, KEEP.shape, generator=torch.Generator().manual_seed(3))
    found = {}
    for dtype, packs, kernels in ((torch.float64, False, "off"), (torch.float16, False, "off"), (torch.float16, True, "emulate")):
        monkeypatch.setenv("MINITRANSFER_KERNELS", kernels)
        model = moved(mt.Model(config)).half().to(dtype)
        model.packs = packs
        with torch.no_grad():
            found[dtype, packs] = model.body(ids, KEEP, packed=torch.cat([part.flatten().nonzero()[:, 0] for part in (KEEP, ~KEEP)])[:53]).x[KEEP]
    assert took_kernel("attention_packed") and took_kernel("layer_norm_residual")
    judge(found[torch.float16, True], found[torch.float16, False], found[torch.float64, False], "states")
