"""Adapter files against the library that defines them, both ways."""
import json
import re

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minitransfer.families import FAMILIES
from minitransfer.nn.model import Model
from minitransfer.transfer.lora import add_lora, lora_layers
from minitransfer.transfer.named import use_adapter
from minitransfer.transfer.peft_files import load_adapter, remove_adapters, save_adapter
from minitransfer.transfer.peft_lora import pattern_value

NONE, SEQUENCE, TOKEN, MASKED = "BertModel", "BertForSequenceClassification", "BertForTokenClassification", "BertForMaskedLM"
GPT2_LM, GPT2_SEQUENCE = "GPT2LMHeadModel", "GPT2ForSequenceClassification"
CASES = [      # the model, what PEFT is asked for, what we are asked for
    (SEQUENCE, {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}, "q,v"),
    (SEQUENCE, {"task_type": "SEQ_CLS", "target_modules": ["query", "key", "value"]}, "q+k+v"),      # one A for three matrices
    (TOKEN, {"task_type": "TOKEN_CLS", "target_modules": ["key", "intermediate.dense"]}, "k,up"),
    (MASKED, {"target_modules": ["query"], "modules_to_save": ["cls"]}, "q"),
    (NONE, {"target_modules": ["attention.output.dense"]}, "o"),
    (SEQUENCE, {"task_type": "SEQ_CLS", "target_modules": ["query"], "modules_to_save": ["pooler"]}, "down"),
    (GPT2_LM, {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "fan_in_fan_out": True}, "q+k+v"),
    (GPT2_LM, {"task_type": "CAUSAL_LM", "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, "q,v,o,down"),
    (GPT2_SEQUENCE, {"task_type": "SEQ_CLS", "target_modules": ["c_attn"], "fan_in_fan_out": True}, "v,k"),
]
IDS = [f"{name}-{ours}" for name, _, ours in CASES]


def fill(model: torch.nn.Module) -> None:
    """Values in every A and B, and a trained head."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)


@pytest.mark.parametrize("name,theirs,targets", CASES, ids=IDS)
def test_a_file_of_peft_gives_the_same_numbers_and_is_written_back_unchanged(twin, tmp_path, name, theirs, targets):
    one = twin(name)
    wrapped = peft.get_peft_model(one.reference(), peft.LoraConfig(r=5, lora_alpha=7, lora_dropout=0.1, **theirs)).eval()
    fill(wrapped)
    if name == MASKED:        # PEFT copies the tied table into its own head; ours stays tied
        wrapped.base_model.model.cls.modules_to_save["default"].predictions.decoder.weight.data.copy_(wrapped.base_model.model.bert.embeddings.word_embeddings.weight)
    wrapped.save_pretrained(tmp_path / "theirs")
    ours = one.ours()
    plain = one.ours_out(ours)
    load_adapter(ours, tmp_path / "theirs")
    one.same(one.ours_out(ours), one.theirs_out(wrapped))
    assert (one.ours_out(ours) - plain).abs().max() > 1e-2

    save_adapter(ours, tmp_path / "ours")
    before, after = load_file(tmp_path / "theirs" / "adapter_model.safetensors"), load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    was, now = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("theirs", "ours"))
    for name in ("r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "peft_type", "task_type", "rank_pattern", "use_rslora"):
        assert now[name] == was[name], name


@pytest.mark.parametrize("name,theirs,targets", CASES, ids=IDS)
def test_peft_reads_our_file_to_the_same_numbers_and_so_do_we(twin, tmp_path, recwarn, name, theirs, targets):
    one = twin(name)
    ours = one.ours()
    add_lora(ours, r=3, alpha=8, targets=targets)
    fill(ours)
    ours.eval()
    save_adapter(ours, tmp_path / "ours")
    reference = peft.PeftModel.from_pretrained(one.reference(), tmp_path / "ours").eval()
    assert not [str(w.message) for w in recwarn if "missing" in str(w.message) or "Unexpected" in str(w.message)]
    one.same(one.ours_out(ours), one.theirs_out(reference))

    again = one.ours()
    load_adapter(again, tmp_path / "ours")
    assert torch.equal(one.ours_out(again), one.ours_out(ours))
    for name, layer in lora_layers(ours).items():
        mine, other = layer.adapters["default"], lora_layers(again)[name].adapters["default"]
        assert torch.equal(mine.A, other.A) and torch.equal(mine.B, other.B) and mine.scale == other.scale


def test_several_cycles_change_nothing(twin, tmp_path):
    one = twin(GPT2_SEQUENCE)
    model = one.ours()
    add_lora(model, r=3, alpha=5, targets="q,v,up")
    fill(model)
    model.eval()
    want = one.ours_out(model)
    for i in range(3):
        save_adapter(model, tmp_path / str(i))
        if i == 1:
            remove_adapters(model)
        load_adapter(model, tmp_path / str(i))
        assert torch.equal(one.ours_out(model), want)
    assert all(torch.equal(a, b) for a, b in zip(*(load_file(tmp_path / i / "adapter_model.safetensors").values() for i in "02"), strict=True))


def test_a_file_whose_note_lies_is_read_as_one_adapter(twin, tmp_path):
    """If PEFT trained the zeros on, or somebody moved the blocks, the whole matrix counts."""
    one = twin(GPT2_LM)
    model = one.ours()
    add_lora(model, r=3, targets="q,v")
    fill(model)
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        note = file.metadata()
    tensors = {name: t + 0.1 for name, t in load_file(path).items()}
    save_file(tensors, path, metadata=note)
    ours = one.ours()
    load_adapter(ours, tmp_path)
    one.same(one.ours_out(ours), one.theirs_out(peft.PeftModel.from_pretrained(one.reference(), tmp_path).eval()))


def test_ranks_of_different_matrices(twin, tmp_path):
    one = twin(SEQUENCE)
    model = one.ours()
    add_lora(model, r=3, alpha=8, targets="q,v")
    add_lora(model, r=5, alpha=8, targets="blocks.0-1.mlp.down_proj")
    fill(model)
    save_adapter(model, tmp_path)
    model.eval()
    one.same(one.theirs_out(peft.PeftModel.from_pretrained(one.reference(), tmp_path).eval()), one.ours_out(model))
    again = one.ours()
    load_adapter(again, tmp_path)
    assert torch.equal(one.ours_out(again), one.ours_out(model))


@pytest.mark.parametrize("kind,modules,r,count", [("BertModel", ["query", "value"], 8, 294_912), ("GPT2Model", ["c_attn"], 16, 589_824),
                                                  ("GPT2Model", ["c_attn", "c_proj"], 16, 1_622_016)])
def test_counts_on_real_sizes_are_those_of_peft(kind, modules, r, count):
    """c_proj is the name of two Linears of a GPT-2 block, in the attention and in the MLP: 884,736 would be the attention's alone."""
    config = getattr(transformers, kind.replace("Model", "Config"))()
    with torch.device("meta"):
        reference = getattr(transformers, kind)(config)
        wrapped = peft.get_peft_model(reference, peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=modules, fan_in_fan_out=kind == "GPT2Model"))
        ours = Model(FAMILIES[config.model_type].read(config.to_dict()), seed=None)
        assert wrapped.get_nb_trainable_parameters()[0] == add_lora(ours, r=r, alpha=2 * r, targets=modules).trainable == count


def test_rslora(twin, tmp_path):
    one = twin(SEQUENCE)
    wrapped = peft.get_peft_model(one.reference(), peft.LoraConfig(r=5, lora_alpha=7, use_rslora=True, task_type="SEQ_CLS")).eval()
    fill(wrapped)
    wrapped.save_pretrained(tmp_path)
    ours = one.ours()
    load_adapter(ours, tmp_path)
    one.same(one.ours_out(ours), one.theirs_out(wrapped))


def test_a_head_and_a_fresh_pooler_are_in_the_file(twin, tmp_path):
    """A body without a pooler gets a fresh one, which trains; without it in the file the adapter would be lost."""
    one = twin(MASKED)
    model = Model.from_pretrained(one.folder, head="sequence", labels=["a", "b"])
    add_lora(model)
    fill(model)
    model.eval()
    save_adapter(model, tmp_path / "adapter")
    again = Model.from_pretrained(one.folder, head="sequence", labels=["a", "b"], seed=5)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again(one.ids).logits, model(one.ids).logits)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == ["pooler", "classifier"]


@pytest.mark.parametrize("name,fits", [(GPT2_SEQUENCE, True), (GPT2_LM, False)])
def test_a_token_table_in_the_file_is_the_adapters_own_or_refused_where_it_is_the_outputs_too(twin, tmp_path, name, fits):
    """PEFT trains a copy of the table below, and leaves the tied matrix above as it was."""
    one = twin(name)
    wrapped = peft.get_peft_model(one.reference(), peft.LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["wte"])).eval()
    fill(wrapped)
    wrapped.save_pretrained(tmp_path / "theirs")
    ours = one.ours()
    was = {at: p.detach().clone() for at, p in ours.named_parameters()}
    if not fits:
        with pytest.raises(ValueError, match=r"tied: .*wte.weight was trained alone, but this family uses one tensor for it and lm_head.weight: merge"):
            load_adapter(ours, tmp_path / "theirs")
    else:
        load_adapter(ours, tmp_path / "theirs")
        one.same(one.ours_out(ours), one.theirs_out(wrapped))
        assert not torch.equal(ours.embed.tokens.weight, was["embed.tokens.weight"])
        with use_adapter(ours, None):
            assert torch.equal(one.ours_out(ours), one.ours_out(one.ours()))
        one.same(one.ours_out(ours), one.theirs_out(wrapped))
        load_adapter(ours, tmp_path / "theirs", name="again")       # the base is known below what the first one brought
        remove_adapters(ours)
    now = dict(ours.named_parameters())
    assert now.keys() == was.keys() and all(torch.equal(now[at], p) for at, p in was.items())


def saved(one, folder) -> Model:
    model = one.ours()
    add_lora(model, r=3)
    save_adapter(model, folder)
    return model


def change_config(folder, **values) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


Q = "base_model.model.bert.encoder.layer.1.attention.self.query"
FAULTS = [
    (lambda f: change_config(f, peft_type="LOHA"), "peft_type='LOHA'; read are LORA, IA3, PREFIX_TUNING"),
    (lambda f: change_config(f, peft_type="IA3"), r"unexpected: .*query.lora_A.weight \(nearest: .*query"),
    (lambda f: change_config(f, peft_type="PROMPT_TUNING"), "unexpected: .*lora_A"),
    (lambda f: change_config(f, bias="all"), "uses bias='all'; LoRA is read without"),
    (lambda f: change_config(f, init_lora_weights="pissa_niter_4"), "uses init_lora_weights='pissa_niter_4'; LoRA is read without: merge this adapter"),
    (lambda f: change_config(f, kasa_config={}, use_qalora=True), "uses use_qalora=True, kasa_config={}; LoRA"),
    (lambda f: change_config(f, use_dora=True), "half: .*query has lora_A and lora_B and not lora_magnitude: use_dora=True needs"),
    (lambda f: change_config(f, r=4), r"shape: encoder.layer.0.attention.self.query has A \(3, 28\) and B \(28, 3\); rank 4 .* needs \(4, 28\)"),
    (lambda f: (f / "adapter_config.json").write_text("{"), "is not JSON"),
    (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    (lambda f: (f / "adapter_model.safetensors").unlink(), "adapters are read from safetensors only"),
    (lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-9]), "cannot be read as safetensors"),
    (lambda f: change_tensors(f, lambda t: t.pop(Q + ".lora_A.weight")), "half: encoder.layer.1.attention.self.query has lora_B"),
    (lambda f: change_tensors(f, lambda t: t.update({Q + ".lora_A.weight": torch.full((3, 28), torch.nan)})), "values that are NaN"),
    (lambda f: change_tensors(f, lambda t: t.update({Q.replace("query", "quarry") + ".lora_A.weight": torch.zeros(3, 28)})),
     r"unexpected: .*quarry.* \(nearest: .*query"),
    (lambda f: change_tensors(f, lambda t: t.update({Q.replace("layer.1", "layer.9") + ".lora_B.weight": torch.zeros(3, 28)})),
     "unexpected: .*layer.9"),
    (lambda f: change_tensors(f, lambda t: t.update({"base_model.model.classifier.weight": torch.zeros(7, 28)})),
     r"classifier.weight is \(7, 28\), head.classifier.weight is \(3, 28\)"),
    (lambda f: change_tensors(f, lambda t: [t.pop(name) for name in list(t) if "lora_" in name]), "empty: it holds no lora_A"),
]


@pytest.mark.parametrize("fault,message", FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_a_file_that_does_not_fit_is_one_error_and_changes_nothing(twin, tmp_path, fault, message):
    one = twin(SEQUENCE)
    saved(one, tmp_path / "adapter")
    fault(tmp_path / "adapter")
    model = one.ours()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path / "adapter")
    assert before.keys() == model.state_dict().keys() and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_an_adapter_for_another_base_or_head_names_both(twin, tmp_path):
    one, other = twin(SEQUENCE), twin(TOKEN)
    saved(one, tmp_path / "adapter")
    message = r"made for .*BertForSequenceClassification\) does not fit this model \(.*BertModel\)(.|\n)*head: .*classifier"
    with pytest.raises(ValueError, match=message):
        load_adapter(twin(NONE).ours(), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"unexpected: .*bert.encoder"):
        load_adapter(twin(GPT2_SEQUENCE).ours(), tmp_path / "adapter")
    message = r"made for .*BertForSequenceClassification\) does not fit this model \(.*BertForTokenClassification\):\s+base: it was trained on other weights"
    with pytest.raises(ValueError, match=message):
        load_adapter(other.ours(), tmp_path / "adapter")
    load_adapter(other.ours(), tmp_path / "adapter", any_base=True)       # the same classifier shape: fits


def test_what_cannot_be_saved_is_refused(twin, tmp_path):
    model = twin(SEQUENCE).ours()
    with pytest.raises(ValueError, match="save_adapter on a model without LoRA"):
        save_adapter(model, tmp_path)
    add_lora(model)
    for layer in lora_layers(model).values():
        layer.merge()
    with pytest.raises(ValueError, match="save_adapter on a merged model"):
        save_adapter(model, tmp_path)
    for layer in lora_layers(model).values():
        layer.unmerge()
    model.blocks[0].norm_mlp.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"blocks.0.norm_mlp.weight \(1 in all\) train beside the LoRA"):
        save_adapter(model, tmp_path)
    model.blocks[0].norm_mlp.weight.requires_grad_(False)
    lora_layers(model)["blocks.0.attn.q_proj"].adapters["default"].dropout = 0.3
    with pytest.raises(ValueError, match="differ in dropout or rslora"):
        save_adapter(model, tmp_path)


def test_one_fused_matrix_has_one_scale(twin, tmp_path):
    model = twin(GPT2_LM).ours()
    add_lora(model, r=3, alpha=4, targets="q")
    add_lora(model, r=3, alpha=5, targets="v")
    with pytest.raises(ValueError, match=r"one matrix \(h.0.attn.c_attn\) in the file and their LoRAs differ in scale"):
        save_adapter(model, tmp_path)


def test_a_full_disk_leaves_the_previous_adapter(twin, tmp_path, monkeypatch):
    one = twin(SEQUENCE)
    model = saved(one, tmp_path / "adapter")
    before = {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("minitransfer.transfer.peft_files.save_file", full)
    fill(model)
    with pytest.raises(ValueError, match=r"could not be written .*No space left"):
        save_adapter(model, tmp_path / "adapter")
    assert {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()} == before


@pytest.mark.parametrize("key, r", [("q_proj", 2), (r"^blocks\.\d+\.attn\.q_proj$", 2), (r".*\.attn\.q_proj", 2), ("blocks.1.attn.q_proj", 3), ("v_proj", 3)])
def test_patterns_match_as_in_peft(key, r):
    assert pattern_value({"rank_pattern": {key: 2}}, "rank_pattern", "blocks.0.attn.q_proj", 3) == r == (2 if re.match(rf"(.*\.)?({key})$", "blocks.0.attn.q_proj") else 3)


@pytest.mark.parametrize("key", ["([a-z0-9_.]+)+!", "(a|aa)+$", ".*.*.*.*!", "[qv]_proj", "q_proj+"])
def test_patterns_that_may_never_end_are_refused(key):
    with pytest.raises(ValueError, match=r"alpha_pattern in adapter_config\.json has"):
        pattern_value({"alpha_pattern": {key: 2}}, "alpha_pattern", "blocks.0.attn.q_proj", 3)
