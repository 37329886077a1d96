"""Published sizes, full-size shapes, low precision, and the loss of padded rows."""
import pytest
import torch
import transformers

import minitransfer as mt
from minitransfer.checks.parity import batch, compare_outputs, targets
from minitransfer.families import read_config
from minitransfer.nn.encoder_decoder import make_model
from minitransfer.nn.heads import IGNORE

from .cases import CASES
from .test_parity import check, loaded

BY_NAME = {case.name: case for case in CASES}
BART_BASE = {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072,
             "decoder_ffn_dim": 3072}
FULL = {                                                        # class, sizes that differ from the reference's defaults
    "bert-base": ("bert", "BertForMaskedLM", {}),
    "gpt2": ("gpt2", "GPT2LMHeadModel", {}),
    "bart-base": ("bart", "BartModel", BART_BASE),
    "roberta-base": ("roberta", "RobertaForMaskedLM", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "deberta-v3-base": ("deberta-v2", "DebertaV2ForMaskedLM", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                                                               "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
                                                               "pos_att_type": "p2c|c2p", "position_biased_input": False}),
    "t5-small": ("t5", "T5ForConditionalGeneration", {"decoder_start_token_id": 0}),
    "qwen2-0.5b": ("qwen2", "Qwen2ForCausalLM", {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                                                 "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
                                                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "ModernBERT-base": ("modernbert", "ModernBertForMaskedLM", {}),
    "pythia-160m": ("gpt_neox", "GPTNeoXForCausalLM", {"vocab_size": 50304, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                                                       "num_attention_heads": 12}),
    "distilbert-base": ("distilbert", "DistilBertForMaskedLM", {}),
    "electra-small": ("electra", "ElectraModel", {}),
    "albert-base-v2": ("albert", "AlbertModel", {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}),
    "mpnet-base": ("mpnet", "MPNetModel", {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}),
}
PUBLISHED = {"bert-base": 109_514_298, "gpt2": 124_439_808, "bart-base": 139_420_416, "roberta-base": 124_697_433, "deberta-v3-base": 184_551_780,
             "t5-small": 60_506_624, "qwen2-0.5b": 494_032_768, "ModernBERT-base": 149_655_232, "pythia-160m": 162_322_944, "distilbert-base": 66_985_530,
             "electra-small": 13_483_008, "albert-base-v2": 11_683_584, "mpnet-base": 109_486_464}     # with the head


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FULL))
def test_full_size(name, tmp_path):
    model_type, class_name, changes = FULL[name]
    torch.manual_seed(0)
    reference = getattr(transformers, class_name)(transformers.AutoConfig.for_model(model_type, **changes, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.035, 0.035))      # as wide as N(0, 0.02), and drawn faster
    reference.save_pretrained(tmp_path)
    model = mt.Model.from_pretrained(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    check(compare_outputs(reference, model, *batch(model.config.vocab_size, [47, 29], left=True)), 1e-4)


@pytest.mark.parametrize("name", sorted(FULL))
def test_parameter_counts(name):
    model_type, class_name, changes = FULL[name]
    family, config = read_config(transformers.AutoConfig.for_model(model_type, **changes).to_dict())
    assert sum(p.numel() for p in make_model(config, family.heads[class_name], seed=None).parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name, class_name", [("bert", "BertForMaskedLM"), ("gpt2", "GPT2LMHeadModel")])
def test_padded_loss_is_the_mean_over_all_targets(name, class_name, tmp_path):
    """Rows of unequal length: every target counts once, whichever row it is in."""
    reference, model = loaded(BY_NAME[name], class_name, tmp_path)
    ids, keep = batch(BY_NAME[name].vocab, [19, 5, 11], left=True)
    labels = targets(model.head_name, ids, keep, 1)
    total, count = torch.zeros(()), 0
    for row in range(3):
        one = labels[row][keep[row]][None]
        n = int(((one[:, 1:] if model.head_name == "causal" else one) != IGNORE).sum())
        total, count = total + reference(ids[row][keep[row]][None], labels=one).loss * n, count + n
    assert torch.allclose(model(ids, attention_mask=keep, labels=labels).loss, total / count, rtol=1e-5)


@pytest.mark.parametrize("name, class_name", [("bert", "BertModel"), ("llama", "LlamaModel")])
def test_low_precision_is_no_worse_than_the_reference(name, class_name, tmp_path):
    """bf16: our distance from the fp64 truth is at most the reference library's own, with a tenth of slack for the order of sums."""
    BY_NAME[name].reference(class_name, scale=0.05).save_pretrained(tmp_path)
    ids = torch.randint(2, 100, (7, 31))

    def theirs(dtype):
        return getattr(transformers, class_name).from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager")(ids).last_hidden_state
    with torch.no_grad():
        truth, ours = theirs(torch.float64), mt.Model.from_pretrained(tmp_path, dtype=torch.bfloat16)(ids).last_hidden_state
        assert (ours.double() - truth).abs().mean() <= 1.1 * (theirs(torch.bfloat16).double() - truth).abs().mean()
