"""No field of a config is ignored: whatever changes what the reference computes changes ours alike, or is an error that names the field.

Every field of the reference's config is set to other values. Where neither the reference's outputs for the same weights nor its parameters change
(fields of training and generation), there is nothing to ask.
"""
import re

import pytest
import torch
from transformers import AutoConfig
from transformers.activations import ACT2FN

import minitransfer as mt
from minitransfer.checks.parity import batch, compare_outputs
from minitransfer.checks.reference import quiet_transformers
from minitransfer.families import gpt2, read_config

from .cases import CASES

NOT_MATHS = {"model_type", "transformers_version", "architectures", "_name_or_path", "return_dict", "dtype", "label2id"}     # names of things, and the form of the answer
ROPES = {"rope_theta": 77.0, "factor": 3.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2,
         "short_factor": [1.5] * 4, "long_factor": [2.5] * 4}
WORDS = ("relative_key", "relative_key_query", "relative", "c2p", "p2c", "sliding_attention", "full_attention", "mean", "first", "single_label_classification")


def others(value):
    """Other values of the same kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, max(1, value // 2)]
    if isinstance(value, float):
        return [0.05, value * 3 + 0.25]
    if isinstance(value, str):
        return ["relu", "gelu_new", "mish", "gelu_10"] if value in ACT2FN else list(WORDS)
    if isinstance(value, list):
        return [value[::-1], value[1:] + value[:1], [value[0]] * len(value), []] if value else [[1], ["c2p", "p2c"]]
    if isinstance(value, dict) and "rope_type" in value:
        nested = [value | {name: other} for name, one in value.items() if name != "rope_type" for other in others(one)]
        return nested + [ROPES | {"rope_type": kind} for kind in ("default", "linear", "dynamic", "yarn", "llama3", "longrope")] + [value | {"partial_rotary_factor": 0.5}]
    if isinstance(value, dict):
        return [value | {len(value): "more"}] if all(isinstance(one, str) for one in value.values()) else [
            value | {name: other} for name, one in value.items() for other in others(one)]
    return [True, 1, 3, 0.05, "relu", "absolute"]


def tensors(out):
    for value in out.values():
        yield from (value,) if isinstance(value, torch.Tensor) else [one for one in value if isinstance(one, torch.Tensor)] if isinstance(value, tuple) else ()


def parameters(reference):
    return {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()}


@torch.no_grad()
def answers(reference, ids):
    more = {"decoder_input_ids": ids} if reference.config.is_encoder_decoder else {}
    ids = ids[None] if type(reference).__name__.endswith("ForMultipleChoice") else ids
    return list(tensors(reference(input_ids=ids, **more, output_hidden_states=True, output_attentions=True, return_dict=True)))


def differs(a, b):
    return len(a) != len(b) or any(one.shape != two.shape or not torch.allclose(one, two, rtol=1e-5, atol=1e-5) for one, two in zip(a, b, strict=True))


def changed(case, class_name, name, value, base, expected, ids):
    """The reference with another value of a field, or None if that is no config of its or gives what the base gives. Equal parameters get the base's values."""
    try:
        other = case.reference(class_name, **{name: value})
        same = parameters(other) == parameters(base)
        if same:
            other.load_state_dict(base.state_dict())
        return other if differs(answers(other, ids), expected) or not same else None
    except Exception:                                            # whatever it is that the reference says of it: not a config that exists
        return None


OURS = {"num_attention_heads": "rotary.share", "high_freq_factor": "rotary.high", "low_freq_factor": "rotary.low"}     # what is asked of two fields together


def names_in(name, value):
    """The field and those inside it, and what we call them."""
    inside = [one for key, child in value.items() for one in names_in(str(key), child)] if isinstance(value, dict) else []
    return [name, *([OURS[name]] if name in OURS else []), *inside]


def fault(case, other, name, value, folder, ids, keep):
    """What is wrong with our answer to this config, or None."""
    other.save_pretrained(folder)
    try:
        model = mt.Model.from_pretrained(folder)
    except (ValueError, KeyError) as e:
        return None if any(re.search(rf"\b{one}\b", str(e)) for one in names_in(name, value)) else f"{name}={value!r}: the error names no field: {str(e)[:200]}"
    try:
        worst = max(compare_outputs(other, model, ids, keep), key=lambda one: one.error)
    except (ValueError, RuntimeError) as e:
        return f"{name}={value!r}: {str(e)[:200]}"
    return None if worst.error <= case.bar else f"{name}={value!r}: {worst.what} is {worst.error:.1e} off"


def chosen(case):
    """A vocabulary head and a classifier: between them they read everything a body has. (Classifiers of encoder-decoders refuse random texts: they have no eos.)"""
    of_kind = [[name for name, head in case.classes.items() if head in heads][:1] for heads in (("causal", "masked", "replaced", "seq2seq"), ("sequence",))]
    return [name for names in (of_kind[:1] if "seq2seq" in case.classes.values() else of_kind) for name in names] or list(case.classes)[:1]


PAIRS = [(case, name) for case in CASES for name in chosen(case)]


@pytest.mark.slow
@pytest.mark.parametrize("case, class_name", PAIRS, ids=[f"{case.name}-{name}" for case, name in PAIRS])
def test_no_field_is_ignored(case, class_name, tmp_path):
    quiet_transformers()
    base = case.reference(class_name)
    ids, keep = batch(case.vocab // 2, [case.lengths[1], 7], left=True)
    expected, tried, faults = answers(base, ids[:1]), set(), []
    for name, value in base.config.to_dict().items():
        for i, one in enumerate(others(value) if name not in NOT_MATHS else ()):
            if one != value and (other := changed(case, class_name, name, one, base, expected, ids[:1])) is not None:
                tried.add(name)
                faults.append(fault(case, other, name, one, tmp_path / f"{name}-{i}", ids, keep))
    assert len(tried) >= 8, f"only {sorted(tried)} change anything"
    assert not any(faults), "\n".join(filter(None, faults))


def test_an_ignored_field_is_found(tmp_path, monkeypatch):
    """A field that changes the reference and that we would not look at."""
    case = next(case for case in CASES if case.name == "gpt2")
    ids, keep = batch(case.vocab, [13, 7], left=True)
    other = case.reference("GPT2Model", scale_attn_weights=False)
    given = case, other, "scale_attn_weights", False, tmp_path, ids, keep
    assert fault(*given) is None
    monkeypatch.setattr(gpt2, "REQUIRED", {})
    assert "scale_attn_weights=False: " in fault(*given) and " off" in fault(*given)


@pytest.mark.parametrize("kind, name", [("mistral", "sliding_window"), ("mistral", "num_key_value_heads"), ("qwen2", "num_key_value_heads"), ("m2m_100", "attention_dropout")])
def test_what_a_config_leaves_out_is_the_reference_s_default(kind, name):
    config = AutoConfig.for_model(kind)
    said = config.to_dict()
    assert read_config({field: value for field, value in said.items() if field != name})[1] == read_config(said | {name: getattr(type(config)(), name)})[1]


@pytest.mark.parametrize("layers", [["full"] * 4, ["sliding_attention"], ["chunked_attention"] * 4], ids=lambda layers: layers[0])
def test_layer_types_are_two_and_one_for_each_layer(layers):
    said = AutoConfig.for_model("qwen2", num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=0).to_dict()
    assert read_config(said)[1].window == 8
    with pytest.raises(ValueError, match="layer_types="):
        read_config(said | {"layer_types": layers})
