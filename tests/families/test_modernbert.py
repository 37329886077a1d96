"""ModernBERT: what its config says, and that it needs no package for its attention."""
import subprocess
import sys

import pytest
import transformers

from minitransfer.config import ModelConfig, Rotary
from minitransfer.families import FAMILIES, read_config

BASE = {    # as published with ModernBERT-base: the fields of 2024, some of which no longer exist
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 50281, "classifier_activation": "gelu",
    "classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
    "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "hidden_activation": "gelu", "hidden_size": 768,
    "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-5, "local_attention": 128, "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192, "mlp_bias": False, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-5, "num_attention_heads": 12,
    "num_hidden_layers": 22, "pad_token_id": 50283, "position_embedding_type": "absolute", "sep_token_id": 50282, "tie_word_embeddings": True, "vocab_size": 50368}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
WITHOUT_PACKAGES = """
import importlib.abc, sys
asked = []
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("flash_attn", "flash_attn_interface", "flash_attn_3", "kernels", "xformers", "transformers"):
            asked.append(name)
sys.meta_path.insert(0, Watch())
import torch, minitransfer as mt
model = mt.Model.from_pretrained(sys.argv[1])
out = model(torch.arange(3, 34)[None], labels=torch.arange(31)[None])
out.loss.backward()
print(asked, model.config.rotary is not None)
"""


def test_the_published_config():
    _, c = read_config(BASE)
    assert (c.window, c.global_layers) == (65, (0, 3, 6, 9, 12, 15, 18, 21)) and c.rotary == Rotary(theta=160_000.0, local_theta=10_000.0)
    assert c.classifier_pooling == "mean" and not (c.first_norm or c.norm_bias or c.qkv_bias or c.transform_bias) and c.unembed_bias
    again = transformers.AutoConfig.for_model("modernbert", **{key: value for key, value in BASE.items() if key != "model_type"}).to_dict()
    assert read_config(again)[1] == c == read_config(FAMILIES["modernbert"].write(c))[1]


@pytest.mark.parametrize("changes, message", [
    ({"rope_parameters": {"full_attention": LINEAR}}, r"rope_parameters=.*we compute one scaling of whole heads, with a base for each kind of block: use another"),
    ({"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}, "sliding_attention": {"partial_rotary_factor": 0.5}}}, "we compute one scaling of whole heads"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, r"rope_type='yarn' in config\.json; we compute"),
    ({"layer_types": ["full_attention"] * 21}, r"layer_types=.*for each of 22 layers: use another checkpoint"),
    ({"layer_types": ["chunked_attention"] * 22}, r"layer_types=\['chunked_attention'.*needed is full_attention or sliding_attention"),
    ({"classifier_pooling": "max"}, r"classifier_pooling='max'; it is one of 'first', 'mean'"), ({"classifier_activation": "mish"}, r"classifier_activation='mish'")])
def test_a_variant_whose_maths_we_do_not_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(BASE | changes)


def test_one_scaling_for_both_kinds_of_blocks_is_read():
    _, c = read_config(BASE | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    assert c.rotary == Rotary(theta=160_000.0, local_theta=10_000.0, scaling="linear", factor=2.0)
    assert isinstance(c, ModelConfig) and read_config(FAMILIES["modernbert"].write(c))[1] == c


@pytest.mark.slow
def test_it_runs_without_a_package_for_attention(tmp_path):
    """From the import to the gradients, nobody even looks for one."""
    sizes = {"vocab_size": 61, "hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 7, "local_attention": 8, "pad_token_id": 0}
    transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**sizes)).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGES, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "[] True\n", done.stdout + done.stderr
