"""The rows of a GPU: each side works on a CPU with a tiny model, and both do the same work."""
import pytest
import torch

from minitransfer.bench import gpu_rows, gpu_sides, run, sides
from minitransfer.bench.side import measures
from minitransfer.nn.model import Model

ROWS = gpu_rows.ROWS


def test_rows_have_the_bars_that_were_promised():
    bars = {name: (">=" if row.minimum else "<=", row.bar) for name, row in ROWS.items() if not name.startswith("op-")}
    assert bars == {"gpt2-step": (">=", 1.0), "bert-128": (">=", 2.5), "bert-512": (">=", 2.5), "small-step": (">=", 5.0), "lora-gpt2-medium": (">=", 1.5),
                    "lora-gpt2-medium-memory": ("<=", 0.6), "lora-llama-1b": (">=", 1.5), "lora-llama-1b-memory": ("<=", 0.6), "generate-1": (">=", 3.0),
                    "generate-32": (">=", 1.5)}


def test_sizes_are_those_of_the_models_named():
    """gpt2-medium as published; LLaMA-3.2-1B's shape (1,235,814,400 parameters) with 32,000 of its 128,256 tokens."""
    counts = {name: sum(p.numel() for p in Model(ROWS[name].config, "causal", seed=None).parameters()) for name in ("lora-gpt2-medium", "lora-llama-1b")}
    assert counts == {"lora-gpt2-medium": 354_823_168, "lora-llama-1b": 1_235_814_400 - (128_256 - 32_000) * 2048}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_each_side_gives_readings(name):
    row = gpu_rows.tiny(ROWS[name])
    for side in measures(row, None):
        found = side(row, 1)
        assert len(found["readings"]) == 1 and found["readings"][0] > 0


def test_the_compiled_peer_is_our_model():
    row = gpu_rows.tiny(ROWS["gpt2-step"])
    ours, peer = Model(row.config, "causal").eval(), gpu_sides.CompiledGPT(row.config).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        own = dict(ours.named_parameters())
        for name, p in peer.named_parameters():
            place = name.replace("qkv", "attn.q_proj").replace("out.", "attn.o_proj.").replace("up.", "mlp.up_proj.").replace("down.", "mlp.down_proj.")
            place = f"embed.{name}" if name.startswith(("tokens", "positions")) else place
            p.copy_(torch.cat([own[place.replace("q_proj", x)] for x in ("q_proj", "k_proj", "v_proj")]) if "qkv" in name else own[place])
    batch = sides.Given(row)[1]
    torch.testing.assert_close(peer(**batch).loss, ours(**batch).loss, atol=1e-5, rtol=1e-5)


def test_lengths_are_those_of_real_texts():
    """A tenth of the rows lies between two deciles; padding holds no target; both sides are given the same."""
    row = ROWS["bert-512"]
    lengths = torch.cat([sides.Given.lengths_of(row, torch.Generator().manual_seed(k)) for k in range(300)])
    found = lengths.quantile(torch.linspace(0, 1, 11))
    assert (found - torch.tensor(row.deciles)).abs().max() <= 12 and int(lengths.min()) >= 34 and int(lengths.max()) == 512
    batch = sides.Given(gpu_rows.tiny(row))[5]
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all() and (batch["labels"] >= 0).any() and (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_lora_trains_as_much_as_the_peer():
    row = gpu_rows.tiny(ROWS["lora-llama-1b"])
    from peft import LoraConfig, get_peft_model

    from minitransfer.transfer import add_lora
    ours = Model(row.config, "causal")
    add_lora(ours, r=8, alpha=16, targets="q,v")
    peer = get_peft_model(sides.peer_model(row.config, "causal"), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    assert len({sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, peer)}) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured():
    with pytest.raises(ValueError, match="bench gpu without a GPU; its rows are measured on an NVIDIA GPU: run it there, or with --dry-run"):
        run(["small-step"], gpu=True)
