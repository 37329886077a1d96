"""What takes a kernel inside a model: the model's numbers against fp64, what listens at its modules, and why some models take none."""
import pytest
import torch
from torch import nn

import minitransfer as mt
from minitransfer.config import Rotary
from minitransfer.nn.heads import IGNORE
from minitransfer.objectives import Masked
from minitransfer.ops import why_not
from minitransfer.text import Tokenizer
from minitransfer.transfer import add_lora, add_soft_prompt, quantize, use_adapter

from ..unit.tiny import bert, gpt2, moved
from .harness import judge, took_kernel

IDS = torch.randint(101, (5, 11), generator=torch.Generator().manual_seed(3))
ROPED = {"norm": "rms", "positions": "none", "n_kv_heads": 2, "d_model": 40, "mlp_bias": False}
BODIES = {"bert": (bert, {"position_offset": 2, "norm_eps": 0.03}), "albert": (bert, {"d_embed": 13, "shared_blocks": True, "embed_scale": 3.7}), "gpt2": (gpt2, {}),
          "roped": (gpt2, ROPED | {"rotary": Rotary()}), "roped in part": (gpt2, ROPED | {"rotary": Rotary(share=0.6), "qk_norm": True, "activation": "silu", "gated": True})}
TAKES = {"bert": ("embedding_sum", "bias_gelu"), "albert": ("embedding_sum", "bias_gelu"), "gpt2": ("embedding_sum", "bias_gelu"), "roped": ("embedding_sum", "rope"),
         "roped in part": ("rope", "gated")}


@pytest.fixture
def device(device, monkeypatch):
    """A GPU's attention takes no kernel for heads of 7, 9 or 10 numbers: the others are looked at here."""
    if device.type == "cuda":
        monkeypatch.setenv("MINITRANSFER_KERNELS", "auto")
    return device


def plain(monkeypatch):
    monkeypatch.setenv("MINITRANSFER_KERNELS", "off")


def body(name, **changes):
    make, own = BODIES[name]
    config = make(**(own | changes))
    return moved(mt.Model(config, "causal" if config.causal else "masked"))


def answers(model, which=None, ids=IDS):
    """Logits, and the gradients of everything that trains, in one row: where a gradient is nothing but rounding it has no meaning of its own."""
    with use_adapter(model, which) if which else torch.enable_grad():
        out = model(ids.to(model.device), labels=ids.to(model.device))
    out.loss.backward()
    return out.logits, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def check(make, device, monkeypatch, takes, **more):
    """As near to the fp64 truth as plain PyTorch is."""
    ours = answers(make().to(device), **more)
    assert {name: why_not(name) for name in takes} == dict.fromkeys(takes, "")
    plain(monkeypatch)
    for name, *three in zip(("logits", "gradients"), ours, answers(make(), **more), answers(make().double(), **more), strict=True):
        judge(*three, name)


@pytest.mark.parametrize("name", BODIES)
def test_numbers(name, device, monkeypatch):
    check(lambda: body(name), device, monkeypatch, TAKES[name])


def test_token_types_and_narrow_ids(device, monkeypatch):
    model = body("bert").to(device)
    types = (torch.arange(55).view(5, 11) % 2).to(device)
    found = model(IDS.int().to(device), token_type_ids=types.int()).logits
    assert took_kernel("embedding_sum")
    plain(monkeypatch)
    torch.testing.assert_close(found, model(IDS.to(device), token_type_ids=types).logits, rtol=1e-5, atol=1e-5)


def test_dropout_of_the_embeddings(device):
    model = body("bert", embed_dropout=0.3).to(device).train()
    places = torch.arange(11, device=device)[None]

    def zeros(seed):
        torch.manual_seed(seed)
        return model.embed(IDS.to(device), places, None) == 0
    one = zeros(1)
    assert took_kernel("embedding_sum") and abs(one.float().mean() - 0.3) < 0.05 and torch.equal(one, zeros(1)) and not torch.equal(one, zeros(2))
    assert not (model.eval().embed(IDS.to(device), places, None) == 0).any()


@pytest.mark.parametrize("name", ["bert", "roped"])
def test_who_listens_at_modules_hears_what_plain_pytorch_makes(name, device, monkeypatch):
    """A kernel neither leaves a module out nor overwrites what it gave, if there is a hook on it."""
    def heard():
        model, made = body(name).to(device), {}
        for at, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) or at == "embed.norm":
                module.register_forward_hook(lambda module, given, out, at=at: made.__setitem__(at, out))
        model(IDS.to(device))
        return made
    ours = heard()
    plain(monkeypatch)
    theirs = heard()
    assert list(ours) == list(theirs) and len(ours) > 10
    for at, made in theirs.items():
        torch.testing.assert_close(ours[at], made, rtol=1e-5, atol=1e-5, msg=lambda said, at=at: f"{at}: {said}")


def test_lora(device, monkeypatch):
    def make():
        model = body("bert", d_model=36)
        add_lora(model, r=3, targets="q,v,down", seed=1)
        return moved(model)
    check(make, device, monkeypatch, ["lora_linear"])


def test_dropout_of_lora(device, monkeypatch):
    model = body("bert", dropout=0.0)
    add_lora(model, r=3, dropout=0.4)
    moved(model).to(device).train()

    def found(seed):
        torch.manual_seed(seed)
        return model(IDS.to(device)).logits
    one = found(1)
    assert took_kernel("lora_linear") and torch.equal(one, found(1)) and (one - found(2)).abs().max() > 0.01
    calm = model.eval()(IDS.to(device)).logits
    assert torch.equal(calm, found(2))
    plain(monkeypatch)
    torch.testing.assert_close(calm, found(1), rtol=1e-5, atol=1e-5)


def several(b="q,v", **changes):
    model = body("bert")
    add_lora(model, r=3, alpha=5, targets="q,v", name="a")
    add_lora(model, r=2, alpha=7, targets=b, name="b", **changes)
    return moved(model).requires_grad_(True)


def test_lora_with_an_adapter_for_each_row(device, monkeypatch):
    check(several, device, monkeypatch, ["lora_linear"], which=["b", None, "a", "a", "b"])
    with pytest.raises(ValueError, match="an adapter for each of 2 rows, and the batch has 5"):
        answers(several(), ["a", "b"])


def test_rows_with_adapters_keep_their_padding():
    """A body that drops padding sees no rows: while each has its adapter, it does not."""
    model, keep = several(), torch.arange(11) < torch.tensor([[11], [3], [7], [5], [2]])
    with use_adapter(model, ["b", None, "a", "a", "b"]):
        padded = model(IDS, attention_mask=keep).logits
    model.packs = True
    with use_adapter(model, ["b", None, "a", "a", "b"]):
        assert torch.equal(model(IDS, attention_mask=keep).logits, padded)
    assert model.packs is True


ROW = {"which": ["b", None, "a", "a", "b"]}


@pytest.mark.parametrize("operation, make, more, reason", [
    ("bias_gelu", lambda: body("gpt2", activation="tanh"), {}, "activation=tanh; kernels know gelu, "),
    ("bias_gelu", lambda: body("gpt2", mlp_bias=False), {}, "no bias, an adapter or a hook at up_proj"),
    ("bias_gelu", lambda: (model := body("bert"), add_lora(model, targets="up"))[0], {}, "no bias, an adapter or a hook at up_proj"),
    ("embedding_sum", lambda: body("gpt2", positions="sinusoidal"), {}, "sinusoidal positions"),
    ("embedding_sum", lambda: body("roped", embed_norm=True), {}, "RMSNorm"),
    ("embedding_sum", lambda: body("bert", d_embed=13, widen_first=True), {}, "a product before the norm"),
    ("embedding_sum", lambda: (model := body("bert"), add_soft_prompt(model, 2))[0], {}, "a soft prompt"),
    ("lora_linear", lambda: several(dora=True), ROW, "DoRA"),
    ("lora_linear", lambda: several("k"), ROW, "rows whose adapter changes other Linears"),
    ("lora_linear", lambda: several(dropout=0.1).train(), ROW, "rows of unequal dropout"),
    ("lora_linear", lambda: (model := body("gpt2"), quantize(model, "int8"), add_lora(model))[0], {}, "a base held as codes"),
])
def test_what_takes_no_kernel_says_why(operation, make, more, reason, emulator, monkeypatch):
    model = make()
    rates = [module for module in model.modules() if "rate" in vars(module)]
    for module in rates:                                                         # dropout of the body would be drawn otherwise
        module.rate = 0.0
    for block in model.blocks:
        block.attn.dropout = 0.0
    torch.manual_seed(0)
    found = answers(model, **more)[0]
    assert why_not(operation).startswith(reason)
    plain(monkeypatch)
    torch.manual_seed(0)
    torch.testing.assert_close(found, answers(model, **more)[0], rtol=1e-5, atol=1e-5)


TEXTS = ["the unbelievable weathermen are forecasting thunderstorms", "nobody understood the misunderstanding"] * 3


def test_the_masked_draw(device, monkeypatch):
    """Drawn by the kernel from the generator: 15 %, 80/10/10, the same ids for the same seed."""
    tok = Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=90)
    ids = torch.randint(tok.vocab_size, (311, 101), generator=torch.Generator().manual_seed(1)).to(device)
    keep, objective = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)).to(device) < 0.9, Masked(tok, 0.2)

    def drawn(seed):
        return objective.draw(ids, keep, torch.Generator(device).manual_seed(seed))
    inputs, labels = drawn(5)
    assert took_kernel("mask_tokens")
    chosen, special = labels != IGNORE, torch.isin(ids, torch.tensor(sorted(tok.special_ids), device=device))
    assert not (chosen & (special | ~keep)).any() and torch.equal(inputs[~chosen], ids[~chosen]) and torch.equal(labels[chosen], ids[chosen])
    assert abs(chosen.sum() / (keep & ~special).sum() - 0.2) < 0.01 and abs((inputs[chosen] == tok.mask_id).float().mean() - 0.8) < 0.02
    assert all(torch.equal(a, b) for a, b in zip((inputs, labels), drawn(5), strict=True)) and not torch.equal(drawn(6)[1], labels)
    Masked(tok, whole_word=True).draw(ids, keep, torch.Generator(device).manual_seed(5))
    assert why_not("mask_tokens") == "whole words"


def test_the_masked_draw_of_a_cpu():
    """Word for word: two draws of torch.rand, then one of other tokens, from the generator."""
    tok = Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=90)
    ids = torch.randint(tok.vocab_size, (7, 13), generator=torch.Generator().manual_seed(1))
    inputs, labels = Masked(tok).draw(ids, ids > -1, torch.Generator().manual_seed(5))
    new, special = torch.Generator().manual_seed(5), torch.isin(ids, torch.tensor(sorted(tok.special_ids)))
    chance, fate = (torch.rand(ids.shape, generator=new) for _ in range(2))
    ordinary = torch.tensor([i for i in range(tok.vocab_size) if i not in tok.special_ids])
    other, chosen = ordinary[torch.randint(len(ordinary), ids.shape, generator=new)], ~special & (chance < 0.15)
    assert torch.equal(labels, ids.where(chosen, IGNORE))
    assert torch.equal(inputs, torch.where(~chosen | (fate >= 0.9), ids, torch.where(fate < 0.8, tok.mask_id, other)))
