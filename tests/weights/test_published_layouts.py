"""Folders laid out as well-known repositories are, with random weights: each loads through its family's page, old or new, with no case of its own."""
import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers.implementations import BertWordPieceTokenizer

import minitransfer as mt
from minitransfer.families import FAMILIES
from tests.reference import close

TEXTS = ["The Café opened early and the naïve guest was NOT amused", "Acute Pain", "profit rose by 3 %, said the firm", "up and down and up again and up and up and down"]
PIECES = sorted({piece for text in TEXTS for word in text.split() for piece in (word, word.lower(), "cafe", "naive", *word, *(f"##{c}" for c in word), *word.lower())})
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
SIZES = {"vocab_size": len(VOCABULARY), "hidden_size": 28, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 53, "max_position_embeddings": 37}


def bert(name, **changes):
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.BertConfig(**SIZES, **changes, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


OLD = {     # class, cased, its tokenizer_config.json, what its config.json lacks, whether norms are called gamma and beta, its labels
    "BioBERT": ("BertForPreTraining", True, {"do_lower_case": False}, ("architectures",), True, None),
    "SciBERT": ("BertModel", False, None, ("architectures",), False, None),
    "FinBERT": ("BertForSequenceClassification", False, {"do_lower_case": True, "model_max_length": 512}, (), False, ["positive", "negative", "neutral"]),
    "PubMedBERT": ("BertForMaskedLM", False, {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}, (), False, None),
    "mBERT": ("BertForMaskedLM", True, {"do_lower_case": False, "strip_accents": False}, (), True, None),
}


def old_folder(folder, name):
    class_name, cased, tokenizer_config, lacks, gamma, labels = OLD[name]
    reference = bert(class_name, **({"id2label": dict(enumerate(labels))} if labels else {}))
    folder.mkdir()
    config = {key: value for key, value in reference.config.to_dict().items() if key not in lacks} | ({} if "architectures" in lacks else {"architectures": [class_name]})
    (folder / "config.json").write_text(json.dumps(config, default=str))
    state = reference.state_dict()
    if gamma:
        state = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor for key, tensor in state.items()}
    torch.save(state | {("" if class_name == "BertModel" else "bert.") + "embeddings.position_ids": torch.arange(37)[None]}, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    strip = (tokenizer_config or {}).get("strip_accents")
    return reference, BertWordPieceTokenizer({piece: i for i, piece in enumerate(VOCABULARY)}, lowercase=not cased, strip_accents=strip)


@pytest.mark.parametrize("name", OLD)
def test_an_old_bert_is_converted_once_and_loads(name, tmp_path):
    reference, theirs = old_folder(tmp_path / "old", name)
    if name == "SciBERT":                                                           # without a configuration the vocabulary has to say so
        (tmp_path / "old" / "vocab.txt").write_text("\n".join([*VOCABULARY[:5], *(p.lower() if p.lower() == p else f"[unused{i}]".lower() for i, p in enumerate(PIECES))]))
    with pytest.raises(ValueError, match=r"convert pytorch_model\.bin once with `minitransfer convert .*old`"):
        mt.Model.from_pretrained(tmp_path / "old")
    mt.convert(tmp_path / "old", tmp_path / "new")
    model, tok = mt.Model.from_pretrained(tmp_path / "new"), mt.Tokenizer.from_pretrained(tmp_path / "new")
    batch = tok(TEXTS)
    assert [row[keep].tolist() for row, keep in zip(batch["input_ids"], batch["attention_mask"], strict=True)] == [theirs.encode(text).ids for text in TEXTS]
    with torch.no_grad():
        ours, want = model(**batch), reference(**batch, output_hidden_states=True)
    close(ours.last_hidden_state[batch["attention_mask"]], want.hidden_states[-1][batch["attention_mask"]])
    if OLD[name][3] == ():
        assert model.head_name == {"BertForSequenceClassification": "sequence", "BertForMaskedLM": "masked"}[OLD[name][0]]
        close(ours.logits if model.head_name == "sequence" else ours.logits[batch["attention_mask"]],
              want.logits if model.head_name == "sequence" else want.logits[batch["attention_mask"]])
        assert model.labels == OLD[name][5]


def sentences(model, folder, cased=False, pooling="mean", dense=0, normalise=True, longest=None, prompts=None, default=None, lower=None):
    """What sentence-transformers adds to a body's folder; the Dense module as a .bin."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=not cased, model_max_length=37).save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *["Dense"] * dense, *["Normalize"] * normalise]
    rows = [{"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(rows))
    for row in rows[1:]:
        (folder / row["path"]).mkdir()
    flags = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens", "last": "pooling_mode_lasttoken"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 28} | {flag: mode == pooling for mode, flag in flags.items()}))
    widths, generator = [28, 23, 19][: dense + 1], torch.Generator().manual_seed(3)
    for i in range(dense):
        place, activation = folder / f"{2 + i}_Dense", ("activation.Tanh", "linear.Identity")[i]
        about = {"in_features": widths[i], "out_features": widths[i + 1], "bias": i == 0, "activation_function": f"torch.nn.modules.{activation}"}
        (place / "config.json").write_text(json.dumps(about))
        state = {"linear.weight": torch.randn(widths[i + 1], widths[i], generator=generator), "linear.bias": torch.randn(widths[i + 1], generator=generator)}
        torch.save({key: state[key] for key in list(state)[: 2 - i]}, place / "pytorch_model.bin")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest, "do_lower_case": bool(lower)}))
    if prompts:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts, "default_prompt_name": default}))


E5 = {"query": "profit up: ", "passage": "the firm: "}
SENTENCES = {
    "all-MiniLM-L6-v2": {"longest": 11}, "all-mpnet-base-v2": {"longest": 9}, "e5-base": {"prompts": E5}, "e5-default": {"prompts": E5, "default": "passage", "normalise": False},
    "bge-base-en": {"pooling": "cls", "lower": True, "cased": True}, "LaBSE": {"cased": True, "pooling": "cls", "dense": 1}, "two-dense": {"dense": 2, "normalise": False},
    "last-token": {"pooling": "last"},
}


def build(name, folder):
    if "mpnet" in name and "mpnet" in FAMILIES:
        torch.manual_seed(0)
        model = transformers.MPNetModel(transformers.MPNetConfig(**SIZES)).eval()
    else:
        model = bert("BertModel")
    sentences(model, folder, **SENTENCES[name])
    for place in sorted(folder.glob("*_Dense")):
        with pytest.raises(ValueError, match=rf"convert pytorch_model\.bin once with `minitransfer convert .*{place.name}`"):
            mt.Model.from_pretrained(folder)
        mt.convert(place)
    return mt.Model.from_pretrained(folder), mt.Tokenizer.from_pretrained(folder)


def embed(model, tok, prompt=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mt.text.TruncationWarning)
        return mt.embed(model, tok, TEXTS, batch_size=3, prompt=prompt).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", SENTENCES)
def test_vectors_are_those_of_sentence_transformers(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                          # its imports warn about things that are not ours
        from sentence_transformers import SentenceTransformer
    (tmp_path / "theirs").mkdir()
    model, tok = build(name, tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    tok.save_pretrained(tmp_path / "ours")
    found = {}
    for side in ("theirs", "ours"):
        reference = SentenceTransformer(str(tmp_path / side), device="cpu")
        for prompt in (None, *SENTENCES[name].get("prompts", ())):
            found[prompt] = embed(model, tok, prompt)
            assert np.abs(found[prompt] - reference.encode(TEXTS, prompt_name=prompt)).max() <= 1e-5, (side, prompt)
    again = embed(mt.Model.from_pretrained(tmp_path / "ours"), mt.Tokenizer.from_pretrained(tmp_path / "ours"))
    assert np.array_equal(again, found[None])
    assert all(np.abs(found["query"] - other).max() > 1e-2 for kind, other in found.items() if kind != "query" and "query" in found)


def test_a_dense_module_by_hand_and_in_every_dtype(tmp_path):
    (tmp_path / "labse").mkdir()
    model, tok = build("LaBSE", tmp_path / "labse")
    dense, plain = load_file(tmp_path / "labse" / "2_Dense" / "model.safetensors"), mt.Model.from_pretrained(tmp_path / "labse", head="none")
    with torch.no_grad():
        first = plain(**tok(TEXTS)).last_hidden_state[:, 0]
        want = torch.nn.functional.normalize(torch.tanh(first @ dense["linear.weight"].T + dense["linear.bias"]))
    close(torch.from_numpy(embed(model, tok)), want)
    assert {"head.projections.0.linear.weight", "head.projections.0.linear.bias"} <= set(model.load_report.loaded)
    half = mt.Model.from_pretrained(tmp_path / "labse", dtype=torch.bfloat16)
    assert np.abs(embed(half, tok) - want.numpy()).max() < 0.05
    half.save_pretrained(tmp_path / "half")
    assert load_file(tmp_path / "half" / "2_Dense" / "model.safetensors")["linear.weight"].dtype == torch.bfloat16


def test_an_adapter_keeps_the_dense_module_of_its_base(tmp_path):
    (tmp_path / "labse").mkdir()
    model, tok = build("LaBSE", tmp_path / "labse")
    rows = [{"text": a, "pair": b, "label": i / 4} for i, (a, b) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True))]
    mt.finetune(model, tok, "similarity", train=rows, strategy="lora", lr=1e-2, steps=2, out=tmp_path / "run", progress=False, precision="fp32", best=None)
    loaded, own = mt.tasks.load_tuned(tmp_path / "run")
    assert np.array_equal(embed(loaded, own), embed(model, tok)) and len(loaded.head.projections) == 1


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("file, values, message", [
    ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Softplus"}, "activation_function in .*'Softplus'; it is one of 'Tanh'"),
    ("2_Dense/config.json", {"use_residual": True}, "use_residual=True in .*2_Dense"),
    ("2_Dense/config.json", {"out_features": 24}, r"model.safetensors holds .*\(23, 28\).* its config.json needs .*\(24, 28\)"),
    ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt=False"),
    ("1_Pooling/config.json", {"pooling_mode_cls_token": False, "pooling_mode_weightedmean_tokens": True}, r"pooling='weightedmean_tokens'; it is one of"),
    ("config_sentence_transformers.json", {"prompts": {"query": "q: "}, "default_prompt_name": "document"}, "prompt='document'; this model has 'query'"),
])
def test_what_would_change_the_vectors_is_an_error(file, values, message, tmp_path):
    (tmp_path / "config_sentence_transformers.json").write_text("{}")
    build("LaBSE", tmp_path)
    change(tmp_path / file, **values)
    with pytest.raises(ValueError, match=message):
        mt.Model.from_pretrained(tmp_path)


def test_modules_out_of_order_and_outside_the_folder(tmp_path):
    build("LaBSE", tmp_path)
    rows = json.loads((tmp_path / "modules.json").read_text())
    for changed, message in ((rows[:2] + rows[:1:-1], "Transformer, Pooling, Normalize, Dense; they are computed in the order"),
                             ([rows[0], rows[1] | {"path": "../1_Pooling"}], r"names the folder '\.\./1_Pooling'"), ([{"idx": 0}], "is no list of modules")):
        (tmp_path / "modules.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            mt.Model.from_pretrained(tmp_path)


def test_a_prompt_that_no_file_names(tmp_path):
    (tmp_path / "mini").mkdir()
    model, tok = build("all-MiniLM-L6-v2", tmp_path / "mini")
    with pytest.raises(ValueError, match=r"prompt='query'; this model has no prompts: .* say what it is, model\.head\.prompts\['query'\]"):
        embed(model, tok, "query")
    model.head.prompts["query"] = "up "
    assert np.abs(embed(model, tok, "query")[1] - mt.embed(model, tok, ["up " + TEXTS[1]]).numpy()[0]).max() < 1e-6
