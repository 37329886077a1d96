"""Adapter files of other families than BERT and GPT-2 against the library that defines them: the same numbers, and the same file written back."""
import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minitransfer.families import FAMILIES
from minitransfer.nn.model import Model
from minitransfer.transfer import load_adapter, merge_lora, save_adapter
from tests.reference import close, let_peft_pass_prefixes

from .cases import CASES

FEED_FORWARD = {"attn.k_proj", "attn.v_proj", "mlp.down_proj"}
WAYS = {
    "lora": lambda names, task: peft.LoraConfig(task_type=task, r=3, lora_alpha=7, target_modules=list(names)),
    "dora": lambda names, task: peft.LoraConfig(task_type=task, r=3, use_dora=True, use_rslora=True, target_modules=list(names)),
    "ia3": lambda names, task: peft.IA3Config(task_type=task, target_modules=[theirs for theirs, ours in names.items() if ours in FEED_FORWARD],
                                              feedforward_modules=[theirs for theirs, ours in names.items() if ours == "mlp.down_proj"]),
    "prefix": lambda names, task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5),
    "soft prompt": lambda names, task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5),
}
HEADS = {"RobertaForSequenceClassification": "SEQ_CLS", "RobertaForTokenClassification": "TOKEN_CLS", "LlamaForSequenceClassification": "SEQ_CLS",
         "LlamaForTokenClassification": "TOKEN_CLS", "LlamaForCausalLM": "CAUSAL_LM", "Qwen3ForSequenceClassification": "SEQ_CLS"}
# PEFT's classifier on an encoder reads the first learned position of a soft prompt, ours the first token of the text
PAIRS = [(way, name) for way in WAYS for name in HEADS if (way, name) != ("soft prompt", "RobertaForSequenceClassification")]


def moved(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad or "lora_" in name:
                p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


@pytest.mark.parametrize("way, name", PAIRS, ids=[f"{way}-{name}" for way, name in PAIRS])
def test_peft_and_we_agree_and_the_file_comes_back(way, name, tmp_path, monkeypatch):
    case = next(case for case in CASES if name in case.classes and not case.heads)
    reference = case.reference(name)
    reference.save_pretrained(tmp_path / "base")
    let_peft_pass_prefixes(monkeypatch, type(reference), type(reference.base_model))
    theirs = moved(peft.get_peft_model(reference, WAYS[way](FAMILIES[case.model_type].page.LORA_TARGETS, HEADS[name])))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, ids = Model.from_pretrained(tmp_path / "base"), torch.randint(3, 100, (5, 11))
    with torch.no_grad():
        plain, want = ours(ids).logits, theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        load_adapter(ours, tmp_path / "theirs")
        found = ours.eval()(ids).logits
    close(found, want if want.dim() == 2 else want[:, -11:])
    assert (found - plain).abs().max() > 1e-2
    save_adapter(ours, tmp_path / "ours")
    before, after = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("theirs", "ours"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_a_published_lora_of_roberta_base(data, tmp_path):
    """RoBERTa base, tuned on MNLI by the authors of LoRA: rank 8 on q and v of 12 blocks, alpha 16 by their script, and the whole head; on random weights."""
    published = load_file(data / "weights" / "roberta_base_lora_mnli" / "adapter.safetensors")
    sizes = {"vocab_size": 61, "max_position_embeddings": 40, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "num_labels": 3}     # the adapter knows nothing of the vocabulary
    torch.manual_seed(0)
    reference = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**sizes, attn_implementation="eager")).eval()
    reference.save_pretrained(tmp_path / "base")
    (tmp_path / "lora").mkdir()
    names = {key: "base_model.model." + key + (".weight" if ".lora_" in key else "") for key in published}
    save_file({names[key]: tensor for key, tensor in published.items()}, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"],
                                                                       "modules_to_save": ["classifier"], "base_model_name_or_path": "roberta-base"}))
    ids, model = torch.randint(3, 60, (2, 7)), Model.from_pretrained(tmp_path / "base")
    report = load_adapter(model, tmp_path / "lora")
    assert report.trainable == sum(t.numel() for t in published.values()) == 24 * 2 * 8 * 768 + 768 * 769 + 3 * 769
    with torch.no_grad():
        found = model.eval()(ids).logits
        close(found, peft.PeftModel.from_pretrained(reference, tmp_path / "lora").eval()(ids).logits)
        merge_lora(model)
        close(model(ids).logits, found)
