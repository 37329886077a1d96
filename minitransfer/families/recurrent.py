"""Recurrent bodies: no library has a layout for them, so the files hold our own names.

Merity et al. 2018, "Regularizing and Optimizing LSTM Language Models" (AWD-LSTM, the body of ULMFiT); Peters et al. 2018, "Deep contextualized word
representations" (ELMo, `both_ways`).

Differs from BERT / GPT-2: layers of LSTMs in the place of blocks; config.json is the RecurrentConfig itself.
Differs from its paper: no bias in the softmax; ELMo's words are the tokenizer's pieces and not networks over characters, and both directions share the token table.
"""
from dataclasses import fields

from ..config import ModelConfig, RecurrentConfig
from .rules import Rule, Table, both

MODEL_TYPES = {"minitransfer_recurrent": "Recurrent"}
PREFIX = ""
HEADS = {"Model": "none", "LMHeadModel": "causal", "BothWaysLMHeadModel": "causal+back", "ForSequenceClassification": "sequence", "ForTokenClassification": "token",
         "ForQuestionAnswering": "span"}
REQUIRED: dict = {}
RENAMED: dict[str, str] = {}
LORA_TARGETS: dict[str, str] = {}


def config_from_hf(hf: dict) -> ModelConfig:
    return RecurrentConfig.from_dict({f.name: hf[f.name] for f in fields(RecurrentConfig)})


def config_to_hf(c: ModelConfig, model_type: str) -> dict:
    if not isinstance(c, RecurrentConfig):
        raise ValueError("a body with attention; these files hold layers of LSTMs: save it as another family")
    return c.to_dict()


def weights(c: ModelConfig) -> Table:
    lstms = [f"blocks.{{i}}.lstms.{k}.{part}_l0" for k in range(2) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")]
    concat = [name for part in ("norm_read", "hidden", "norm_hidden") for name in (f"head.{part}.weight", f"head.{part}.bias")]
    return [Rule("embed.tokens.weight", "embed.tokens.weight"), *(Rule(name, name) for name in (*lstms, *concat)), *both("head.classifier", "head.classifier"),
            *both("head.ends", "head.ends")]
