"""GPT-NeoX: the matrix that is q, k and v head by head, in checkpoints and in adapters; what old files hold beside it."""

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import minitransfer as mt
from minitransfer.checks.parity import batch, difference
from minitransfer.families.rules import split_by_head

from .cases.gpt_neox import CASES
from .test_parity import check

CASE, NAME = CASES[0], "GPTNeoXForCausalLM"


@pytest.fixture
def saved(tmp_path):
    CASE.reference(NAME).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def theirs_on(folder):
    return getattr(transformers, NAME).from_pretrained(folder, attn_implementation="eager").eval()


def logits_agree(ours, theirs):
    ids, keep = batch(CASE.vocab, [13, 13], left=False)
    with torch.no_grad():
        check([difference("logits", ours(ids, attention_mask=keep).logits, theirs(ids).logits)], 1e-5)


def test_rows_go_head_by_head():
    """Two heads of width 2: q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1."""
    op = split_by_head(2)
    q, k, v = op.read(torch.arange(12.0)[:, None], 3)
    assert [part[:, 0].tolist() for part in (q, k, v)] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert torch.equal(op.write([q, k, v]), torch.arange(12.0)[:, None]) and op.read(torch.zeros(11, 1), 3) == []


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "lora_alpha": 5}], ids=["lora", "dora", "rslora"])
def test_an_adapter_of_peft_on_the_fused_matrix(saved, tmp_path, options):
    """Read, the logits are PEFT's; written again, the file is the same."""
    made = peft.LoraConfig(**{"r": 4, "lora_alpha": 7, "task_type": "CAUSAL_LM", "target_modules": ["query_key_value", "dense_4h_to_h"]} | options)
    wrapped = peft.get_peft_model(theirs_on(saved), made).eval()
    with torch.no_grad():
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(tmp_path / "theirs")
    ours = mt.Model.from_pretrained(saved)
    mt.load_adapter(ours, tmp_path / "theirs")
    logits_agree(ours, wrapped)
    mt.save_adapter(ours, tmp_path / "ours")
    before, after = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("targets", ["q,v", "query_key_value", "k"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_reads_our_adapter(saved, tmp_path, targets, dora):
    ours = mt.Model.from_pretrained(saved)
    mt.add_lora(ours, r=3, alpha=8, targets=targets, dora=dora)
    with torch.no_grad():
        for parameter_name, parameter in ours.named_parameters():
            if "adapters" in parameter_name:
                parameter.add_(torch.rand_like(parameter) * 0.1)
    mt.save_adapter(ours.eval(), tmp_path / "ours")
    logits_agree(ours, peft.PeftModel.from_pretrained(theirs_on(saved), tmp_path / "ours").eval())
    again = mt.Model.from_pretrained(saved)
    mt.load_adapter(again, tmp_path / "ours")
    logits_agree(again, lambda ids: ours(ids))


def test_an_adapter_with_an_output_matrix(saved, tmp_path):
    """PEFT calls it as the reference does in memory."""
    wrapped = peft.get_peft_model(theirs_on(saved), peft.LoraConfig(r=2, target_modules=["dense"], modules_to_save=["lm_head"])).eval()
    with torch.no_grad():
        wrapped.base_model.model.lm_head.weight.mul_(1.5)
    wrapped.save_pretrained(tmp_path / "theirs")
    ours = mt.Model.from_pretrained(saved)
    mt.load_adapter(ours, tmp_path / "theirs")
    logits_agree(ours, wrapped)


def test_names_and_buffers_of_other_versions(saved):
    """The output matrix is lm_head in the reference's memory and embed_out in files; masks and angles were saved once."""
    want = mt.Model.from_pretrained(saved)
    tensors = load_file(saved / "model.safetensors")
    assert "embed_out.weight" in tensors
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    for i in range(3):
        at = f"gpt_neox.layers.{i}.attention."
        tensors |= {at + "bias": torch.ones(1, 1, 64, 64), at + "masked_bias": torch.tensor(-1e9), at + "rotary_emb.inv_freq": torch.rand(2)}
    save_file(tensors, saved / "model.safetensors")
    got = mt.Model.from_pretrained(saved)
    assert len(got.load_report.ignored) == 9 and all(torch.equal(a, b) for a, b in zip(got.state_dict().values(), want.state_dict().values(), strict=True))


def test_the_config_of_a_published_model():
    """pythia-160m: the fields as they were written in 2023."""
    hf = {"architectures": [NAME], "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
          "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "num_attention_heads": 12, "num_hidden_layers": 12, "rotary_emb_base": 10000, "rotary_pct": 0.25,
          "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304}
    family, c = mt.families.read_config(hf)
    assert c.rotary.share == 0.25 and c.rotary.theta == 10_000 and c.parallel and not c.tied and c.head_dropout == 0.1
    assert family.read(family.write(c)) == c
    with pytest.raises(ValueError, match=r"rope_type='dynamic' in config\.json"):
        family.read(hf | {"rope_scaling": {"type": "dynamic", "factor": 2.0}})


def test_a_fused_matrix_of_another_size_is_named(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["gpt_neox.layers.0.attention.query_key_value.weight"] = torch.zeros(143, 48)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"shape: gpt_neox\.layers\.0\.attention\.query_key_value\.weight is \(143, 48\)"):
        mt.Model.from_pretrained(saved)
