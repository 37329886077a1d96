"""What only this family has: distances as vectors, a convolution of neighbours, two names of one head, 16-bit numbers, LoRA on shared projections."""
import math

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file

import minitransfer as mt
from minitransfer.checks.parity import batch, compare_outputs
from minitransfer.config import Convolution, Disentangled
from minitransfer.families import FAMILIES, read_config
from minitransfer.nn.attention import BACKENDS
from minitransfer.nn.disentangled import log_buckets
from minitransfer.transfer.prefix import prefixes

from .cases import CASES
from .test_parity import check, loaded

BY_NAME = {case.name: case for case in CASES}
V3, V2 = BY_NAME["deberta-v3"], BY_NAME["deberta-v2"]
TYPES = BY_NAME["deberta-v2-own-keys"]


def ours(case, folder, class_name="DebertaV2Model", **changes):
    case.reference(class_name, **changes).save_pretrained(folder)
    return mt.Model.from_pretrained(folder)


@pytest.mark.parametrize("n, furthest", [(6, 23), (5, 23), (256, 512), (32, 128), (2, 5), (46, 25)])
def test_buckets_are_the_reference_s(n, furthest):
    distance = torch.arange(-1500, 1501)
    theirs = transformers.models.deberta_v2.modeling_deberta_v2.make_log_bucket_position(distance, n, furthest).long()
    assert torch.equal(log_buckets(distance, n, furthest), theirs)


@pytest.mark.parametrize("case", [V3, TYPES], ids=["shared", "own"])
def test_scores_are_the_formula(case, tmp_path):
    """One score at a time, in fp64, from the formula's own words."""
    model = ours(case, tmp_path).double()
    c, d, attn, ids = model.config, model.config.disentangled, model.blocks[0].attn, torch.randint(3, 101, (1, 19))
    out = model(ids, output_hidden_states=True, output_attentions=True)
    x, H = out.hidden_states[0][0], c.n_heads
    table = model.relative.table.weight if model.relative.norm is None else model.relative.norm(model.relative.table.weight)
    q, k, K, Q = (layer(t).unflatten(-1, (H, -1)) for layer, t in (
        (attn.q_proj, x), (attn.k_proj, x), (attn.pos_k_proj or attn.k_proj, table), (attn.pos_q_proj or attn.q_proj, table)))
    for h, i, j in ((0, 0, 18), (1, 18, 0), (2, 7, 7), (3, 11, 4), (0, 4, 12), (1, 3, 2)):
        bucket = int(log_buckets(torch.tensor([i - j]), d.buckets, d.furthest)) if d.buckets else i - j
        r = min(max(d.span + bucket, 0), 2 * d.span - 1)
        score = (q[i, h] @ k[j, h] + q[i, h] @ K[r, h] + k[j, h] @ Q[r, h]) / math.sqrt(3 * c.d_head)
        assert (score - out.scores[0][0, h, i, j]).abs().item() < 1e-10


@pytest.mark.parametrize("case", [V3, V2, TYPES], ids=["v3", "convolution", "own"])
def test_a_text_says_the_same_alone_padded_with_holes_and_packed(case, tmp_path):
    model, texts = ours(case, tmp_path), [torch.randint(3, 101, (n,)) for n in (5, 9, 4)]
    alone = [model(text[None]).last_hidden_state[0] for text in texts]
    keep = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0]]).bool()
    ids = torch.full(keep.shape, 1)
    ids[keep] = torch.cat(texts)
    padded = model(ids, attention_mask=keep).last_hidden_state
    assert all((padded[row][keep[row]] - alone[row]).abs().max() < 2e-6 for row in range(3))
    packed, documents = torch.cat([*texts, torch.tensor([1, 1])])[None], torch.tensor([[0] * 5 + [1] * 9 + [2] * 4 + [-1] * 2])
    assert (model(packed, document_ids=documents).last_hidden_state[0, :18] - torch.cat(alone)).abs().max() < 2e-6


def run(model, ids, keep, backend="auto", checkpointing=False):
    model.attention, model.checkpointing = backend, checkpointing
    model.zero_grad()
    out = model(ids, attention_mask=keep).last_hidden_state * keep[..., None]
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return {"out": out.detach()} | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", [V2, TYPES], ids=["shared", "own"])
def test_every_backend_and_checkpointing_give_the_same(case, tmp_path):
    model, (ids, keep) = ours(case, tmp_path), batch(101, [17, 5, 11], left=True)
    truth = run(model, ids, keep, "reference")
    assert "relative.table.weight" in truth and truth["relative.table.weight"].abs().max() > 1e-3
    for settings in (*({"backend": one} for one in BACKENDS), {"checkpointing": True}):
        found = run(model, ids, keep, **settings)
        assert found.keys() == truth.keys()
        assert all((found[name] - truth[name]).abs().max() <= 1e-5 * max(1, truth[name].abs().max()) for name in truth), settings


def test_vectors_of_distances_are_dropped_out_in_training_only(tmp_path):
    model, ids = ours(V3, tmp_path, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0), torch.randint(3, 101, (1, 9))
    attn = model.blocks[0].attn.train()
    told, x = model.relative(9, 9, None), model.embed(ids, torch.arange(9)[None], None)
    q, k, _ = attn.project(x)
    one, two = attn.bias(q, k, told), attn.bias(q, k, told)
    assert not torch.allclose(one, two) and torch.equal(attn.eval().bias(q, k, told), attn.bias(q, k, told))


def test_a_cache_changes_nothing():
    """No checkpoint of this kind is causal, but the maths does not mind."""
    model = mt.Model(mt.ModelConfig(101, 28, 2, 4, 53, 37, positions="none", causal=True, pooler=False, disentangled=Disentangled(23, 6)), "causal", seed=3)
    torch.nn.init.normal_(model.relative.table.weight)
    ids, keep = batch(101, [11, 4, 7], left=True)
    settings = {"attention_mask": keep, "max_new_tokens": 13, "precision": "fp32"}
    assert torch.equal(mt.generate(model.eval(), ids, use_cache=True, **settings), mt.generate(model, ids, use_cache=False, **settings))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_prefix_is_at_no_distance(backend, tmp_path):
    """Queries meet its keys by content alone; the distances between tokens stay what they were."""
    model, ids = ours(V3, tmp_path), torch.randint(3, 101, (2, 9))
    before = model(ids, output_attentions=True).scores[0]
    mt.transfer.add_prefix(model, 4)
    model.attention = backend
    out, attn = model(ids, output_hidden_states=True, output_attentions=True), model.blocks[0].attn
    q = attn.heads(attn.q_proj(out.hidden_states[0]))
    P = prefixes(model)["blocks.0.attn.prefix"].keys.unflatten(-1, (4, 7)).transpose(0, 1)
    assert torch.allclose(out.scores[0][..., 4:], before, atol=1e-5)
    assert torch.allclose(out.scores[0][..., :4], q @ P.mT / math.sqrt(3 * 7), atol=1e-5)
    assert torch.allclose(model(ids).last_hidden_state, out.last_hidden_state, atol=1e-5)


@pytest.mark.parametrize("case", [V3, TYPES], ids=["shared", "own"])
def test_lora_is_peft_s(case, tmp_path):
    """With shared keys the vectors of distances go through the adapted projections too."""
    targets = ["query_proj", "key_proj", "value_proj"] + (["pos_key_proj", "pos_query_proj"] if case is TYPES else [])
    reference = case.reference("DebertaV2ForSequenceClassification")
    reference.save_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(reference, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, task_type="SEQ_CLS")).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    model, ids = mt.Model.from_pretrained(tmp_path / "base"), torch.randint(3, 101, (2, 13))
    plain = model(ids).logits
    mt.load_adapter(model, tmp_path / "adapter")
    want = theirs(input_ids=ids).logits
    assert (model(ids).logits - want).abs().max() <= 1e-5 and (plain - want).abs().max() > 1e-2
    mt.save_adapter(model, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(case.reference("DebertaV2ForSequenceClassification"), tmp_path / "ours").eval()
    assert (again(input_ids=ids).logits - want).abs().max() <= 1e-5


def test_the_newer_masked_head_is_read_and_saved_under_the_older_names(tmp_path):
    reference, model = loaded(V3, "DebertaV2ForMaskedLM", tmp_path / "old")
    newer = V3.reference("DebertaV2ForMaskedLM", seed=3, legacy=False)
    newer.save_pretrained(tmp_path / "new")
    model, (ids, keep) = mt.Model.from_pretrained(tmp_path / "new"), batch(101, [13, 5, 11], left=True)
    check(compare_outputs(newer, model, ids, keep), 2e-5)
    model.save_pretrained(tmp_path / "ours")
    again = transformers.DebertaV2ForMaskedLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert again.config.legacy and not torch.allclose(reference(ids).logits, newer(ids).logits, atol=1e-2)
    check(compare_outputs(again, model, ids, keep), 2e-5)


def test_what_v3_files_hold_beside_the_model(tmp_path):
    """The question of its pretraining, and a table of positions that nothing reads."""
    V3.reference("DebertaV2Model").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = dict(mt.weights.tensors.read_tensors(tmp_path))
    tensors |= {"mask_predictions.classifier.weight": torch.ones(1, 28), "mask_predictions.LayerNorm.bias": torch.ones(28),
                "embeddings.position_embeddings.weight": torch.ones(37, 28)}
    save_file(tensors, file, metadata={"format": "pt"})
    assert len(mt.Model.from_pretrained(tmp_path).load_report.ignored) == 3


@pytest.mark.parametrize("size", [30.0, 300.0])
def test_fp16_is_finite_and_no_worse_than_the_reference(size, tmp_path):
    """Queries, keys and vectors of distances so large that, at the larger size, a product of two overflows 16 bits before it is scaled."""
    reference = V3.reference("DebertaV2Model", scale=0.05, seed=1)
    with torch.no_grad():
        reference.encoder.LayerNorm.weight.mul_(2)
        for layer in reference.encoder.layer:
            layer.attention.self.query_proj.weight.mul_(size)
            layer.attention.self.key_proj.weight.mul_(size)
    reference.save_pretrained(tmp_path)
    ids = torch.randint(3, 101, (3, 31))
    rounded = reference.half().double()                          # the truth for the weights that both sides have
    truth, theirs = rounded(ids).last_hidden_state, rounded.half()(ids).last_hidden_state
    model = mt.Model.from_pretrained(tmp_path, dtype=torch.float16)
    with torch.no_grad():
        for backend in BACKENDS:
            model.attention = backend
            out = model(ids).last_hidden_state
            assert torch.isfinite(out).all()
            gap = (theirs.double() - truth).abs().mean().nan_to_num(math.inf)
            assert (out.double() - truth).abs().mean() <= 1.1 * gap, (backend, (out.double() - truth).abs().mean(), gap)


@pytest.mark.parametrize("changes, message", [
    ({"pos_att_type": "p2p|c2p"}, "pos_att_type='p2p|c2p' in config.json; we compute c2p and p2c, and not p2p: use another"),
    ({"pos_att_type": []}, r"pos_att_type=[] in config.json; with relative_attention=True it has to name some terms"),
    ({"relative_attention": False}, "with relative_attention=False it has to name no terms of the scores"),
    ({"relative_attention": False, "pos_att_type": None}, "norm_rel_ebd='layer_norm' in config.json; without relative_attention"),
    ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd='batch_norm' in config.json; we compute none and layer_norm"),
    ({"z_steps": 2}, "z_steps=2 in config.json; our deberta-v2 computes z_steps=0 only"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=False in config.json"),
    ({"conv_kernel_size": 4}, "conv_kernel_size=4 in config.json; a token stands in the middle"),
    ({"conv_kernel_size": 3, "conv_act": "mish"}, "conv_act='mish' in config.json; we compute"),
    ({"pooler_hidden_act": "mish"}, "pooler_hidden_act='mish' in config.json"),
    ({"pooler_hidden_size": 17}, "pooler_hidden_size=17 in config.json; with hidden_size=28 it can only be 28"),
    ({"attention_head_size": 5}, "attention_head_size=5 in config.json; with hidden_size=28 it can only be 7"),
    ({"legacy": False, "embedding_size": 17}, "legacy=False in config.json; such a masked head needs embedding_size=28"),
    ({"position_buckets": 60}, "disentangled.buckets=60, disentangled.furthest=23; half of the buckets"),
])
def test_fields_that_we_do_not_compute_are_named(changes, message):
    with pytest.raises(ValueError) as error:
        read_config({"model_type": "deberta-v2"} | V3.sizes | changes)
    assert message in str(error.value)


@pytest.mark.parametrize("changes, message", [
    ({"disentangled": Disentangled(5), "relative_buckets": 3}, "disentangled with relative_buckets=3"),
    ({"disentangled": Disentangled(5), "n_kv_heads": 2}, "disentangled with relative_buckets=0, n_kv_heads=2"),
    ({"convolution": Convolution(3, 5)}, "convolution of 5 groups with d_model=28"),
    ({"convolution": Convolution(), "shared_blocks": True}, "shared_blocks=True"),
    ({"convolution": Convolution(), "norm_position": "pre"}, "norm_position='pre'"),
    ({"transform_dropout": 1.0}, "transform_dropout=1.0; it is a probability"),
])
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(ValueError) as error:
        mt.ModelConfig(101, 28, 2, 4, 53, 37, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize("make, message", [
    (lambda: Disentangled(0), "disentangled.furthest=0; it is an int, 1 or more"), (lambda: Disentangled(9, 1), "disentangled.buckets=1, disentangled.furthest=9"),
    (lambda: Disentangled(9, c2p=False, p2c=False), "disentangled.c2p=False, disentangled.p2c=False"),
    (lambda: Convolution(4), "convolution.width=4; a token stands in the middle"), (lambda: Convolution(activation="mish"), "convolution.activation='mish'")])
def test_parts_that_cannot_be(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


def test_a_dict_says_everything():
    config = mt.ModelConfig(101, 28, 2, 4, 53, 37, disentangled=Disentangled(23, 6, shared_keys=False), convolution=Convolution(5, 7), transform_dropout=0.2)
    assert mt.ModelConfig.from_dict(config.to_dict()) == config
    assert mt.ModelConfig(101, 28, 2, 4, 53, 37, head_dropout=0.3).rate("transform_dropout") == 0.3


def test_dropout_before_and_after_the_layer_of_a_classifier():
    """pooler_dropout stands before the dense layer, cls_dropout after it."""
    hf = {"model_type": "deberta-v2"} | V3.sizes | {"pooler_dropout": 0.25, "cls_dropout": 0.5}
    head = mt.Model(read_config(hf)[1], "sequence", ["a", "b"]).head
    assert (head.dropout_first.rate, head.dropout.rate) == (0.25, 0.5)
    said = FAMILIES["deberta-v2"].write(read_config(hf)[1])
    assert (said["pooler_dropout"], said["cls_dropout"]) == (0.25, 0.5)


def test_sizes_of_v3_base_as_published():
    """86M in the backbone and 98M in the embeddings: its model card."""
    config = read_config({"model_type": "deberta-v2", "vocab_size": 128100, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                          "max_position_embeddings": 512, "type_vocab_size": 0, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
                          "share_att_key": True, "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "max_relative_positions": -1, "position_biased_input": False})[1]
    sizes = {name: p.numel() for name, p in mt.Model(config, seed=None).named_parameters()}
    embedding = sizes["embed.tokens.weight"]
    assert (embedding, sum(sizes.values()) - embedding) == (98_380_800, 85_450_752)
