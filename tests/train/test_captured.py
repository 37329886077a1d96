"""A step that a CUDA graph can hold: nothing in it asks the device for a number. Tensors on `meta` have no numbers, so whatever asks fails."""
from dataclasses import replace

import pytest
import torch

import minitransfer as mt
from minitransfer.objectives import Causal, Masked
from minitransfer.ops import clip_factor, grad_norm
from minitransfer.ops.adamw import AdamW
from minitransfer.training.captured import Captured, check_capture, forward_backward
from minitransfer.training.precision import Precision

ENCODER = mt.ModelConfig(vocab_size=8192, d_model=24, n_layers=2, n_heads=3, d_ff=41, max_len=64)
DECODER = replace(ENCODER, norm_position="pre", causal=True, n_token_types=0, embed_norm=False, final_norm=True, pooler=False)
ROPED = replace(DECODER, norm="rms", activation="silu", gated=True, positions="none", rotary=mt.config.Rotary(), n_kv_heads=1, head_width=8, window=5)


@pytest.fixture(scope="module")
def tok():
    return mt.Tokenizer.from_pretrained("mini-bert")


def made(config, tok, device="cpu"):
    model = mt.Model(config, "causal" if config.causal else "masked").train()
    objective = Causal() if config.causal else Masked(tok)
    ids = torch.randint(5, 8192, (7, 31), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "document_ids": torch.arange(31).expand(7, -1) // 11 - (torch.arange(31) > 28).long() * 3}
    return model.to(device), objective, {name: t.to(device) for name, t in batch.items()}


@pytest.mark.parametrize("config", [ENCODER, DECODER, ROPED], ids=["encoder", "decoder", "roped"])
def test_a_whole_step_asks_for_no_number(config, tok):
    """Forward, backward, norm, clip factor and update."""
    model, objective, batch = made(config, tok, "meta")
    optimizer = AdamW(model.parameters())
    loss, count = forward_backward(model, objective, Precision("fp32", model), batch, torch.Generator())
    norm = grad_norm(p.grad for p in model.parameters() if p.grad is not None)
    optimizer.step(factor=clip_factor(norm, count, 1.0))
    assert loss.device == count.device == norm.device == torch.device("meta") and all(p.grad is not None for p in model.head.parameters() if p.requires_grad)


@pytest.mark.parametrize("fault", [lambda x: x if float(x.sum()) > 0 else -x, lambda x: x[x > 0].sum() + x, lambda x: x + len((x > 0).nonzero())])
def test_what_asks_for_a_number_is_noticed(fault, tok):
    model, objective, batch = made(ENCODER, tok, "meta")
    model.blocks[1].mlp.register_forward_hook(lambda module, given, out: fault(out))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        forward_backward(model, objective, Precision("fp32", model), batch, torch.Generator())


@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["masked", "causal"])
def test_a_fixed_budget_gives_the_same_loss_and_gradients(config, tok):
    model, objective, batch = made(replace(config, dropout=0.0, mlp_dropout=0.0), tok)
    loss, n = objective(model, batch, torch.Generator().manual_seed(3))
    want = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    ours, count = forward_backward(model, objective, Precision("fp32", model), batch, torch.Generator().manual_seed(3))
    assert int(count) == n and model.head.budget is None
    torch.testing.assert_close(ours, loss.detach(), rtol=1e-6, atol=1e-5)
    for p, grad in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-5)


def test_the_budget_of_the_masked_is_never_too_small(tok):
    objective, n = Masked(tok), 7 * 4099
    drawn = [int((objective.draw(torch.full((7, 4099), 99), torch.ones(7, 4099, dtype=torch.bool), torch.Generator().manual_seed(k))[1] >= 0).sum()) for k in range(50)]
    assert max(drawn) <= objective.most_targets(n) <= 1.09 * n * 0.15 and objective.most_targets(3) == 3 and Causal().most_targets(n) == n


def test_what_no_graph_can_hold_is_refused(tok):
    model, objective, _ = made(ENCODER, tok)
    with pytest.raises(ValueError, match="graphs=True on cpu; CUDA graphs are an NVIDIA GPU's: leave graphs out"):
        check_capture(model, objective)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_replays_are_steps(config, tok):
    """Replayed, the same seeds give the same sums and gradients as a step that was not captured, and other seeds others; two batches add up."""
    model, objective, batch = made(config, tok, "cuda")
    precision, sums = Precision("bf16", model), []
    captured = Captured(model, objective, precision)
    for compute in (lambda *given: forward_backward(model, objective, precision, *given), captured):
        model.zero_grad(set_to_none=False)
        for seed in (1, 2, 2):
            torch.cuda.manual_seed(seed)
            loss, count = compute(batch, torch.Generator("cuda").manual_seed(seed))
            sums.append((float(loss), int(count)))
        sums[-1] += tuple(float(p.grad.double().norm()) for p in model.parameters() if p.grad is not None)
    assert sums[0] != sums[1] and sums[1] == sums[2][:2]
    torch.testing.assert_close(torch.tensor(sums[3]), torch.tensor(sums[0]), rtol=2e-3, atol=0)
    torch.testing.assert_close(torch.tensor(sums[5]), torch.tensor(sums[2]), rtol=2e-3, atol=1e-4)
