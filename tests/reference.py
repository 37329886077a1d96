"""The reference library's models, tiny and with every parameter moved: at their own init most norms and biases are constants, and a swap goes unseen.

Every size is a different number, so that no two axes can be confused.
"""
from __future__ import annotations

import inspect
from pathlib import Path

import torch
import transformers

import minitransfer as mt

BERT = {"vocab_size": 101, "hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 53, "max_position_embeddings": 37}
GPT2 = {"vocab_size": 103, "n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 41, "n_inner": 59, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
LABELS = {0: "bad", 1: "fair", 2: "good"}
TINY = {"bert": (transformers.BertConfig, BERT), "gpt2": (transformers.GPT2Config, GPT2)}
HEADS = {
    "BertModel": "none", "BertForMaskedLM": "masked", "BertForPreTraining": "masked+next", "BertForSequenceClassification": "sequence",
    "BertForTokenClassification": "token", "BertForQuestionAnswering": "span",
    "GPT2Model": "none", "GPT2LMHeadModel": "causal", "GPT2ForSequenceClassification": "sequence", "GPT2ForTokenClassification": "token",
    "GPT2ForQuestionAnswering": "span",
}


def config_of(class_name: str, **changes):
    maker, sizes = TINY["bert" if class_name.startswith("Bert") else "gpt2"]
    labels = {} if class_name.endswith("QuestionAnswering") else {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    return maker(**(sizes | labels | changes), attn_implementation="eager")


def perturbed(class_name: str, scale: float = 0.1, seed: int = 0, **changes) -> torch.nn.Module:
    """A reference model in eval mode with N(0, scale) added to every parameter."""
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(config_of(class_name, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def pair(class_name: str, folder: Path, scale: float = 0.1, **changes) -> tuple[torch.nn.Module, mt.Model]:
    """A perturbed reference model, and ours loaded from the files it wrote."""
    reference = perturbed(class_name, scale, **changes)
    reference.save_pretrained(folder)
    return reference, mt.Model.from_pretrained(folder)


def close(ours: torch.Tensor, theirs: torch.Tensor, bar: float = 1e-5, what: str = "") -> None:
    """max |ours - theirs| <= bar * max(1, max |theirs|): the project's measure of parity."""
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    error, limit = (ours - theirs).abs().max().item(), bar * max(1.0, theirs.abs().max().item())
    assert error <= limit, f"{what}: differs by {error:.2e}, allowed is {limit:.2e}"


def let_peft_pass_prefixes(monkeypatch, *models: type) -> None:
    """PEFT 0.21 asks the signature for `past_key_values`, which newer references call `cache` and take under either name."""
    for model in models:
        found = inspect.signature(model.forward)
        if "past_key_values" not in found.parameters:
            named = [one.replace(name="past_key_values") if one.name == "cache" else one for one in found.parameters.values()]
            monkeypatch.setattr(model.forward, "__signature__", found.replace(parameters=named), raising=False)
