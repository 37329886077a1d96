"""CLIP against the reference library: each tower, both together, images, and zero-shot answers."""
import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import minitransfer as mt
from minitransfer.checks.parity import batch, difference
from minitransfer.families import FAMILIES, read_config
from minitransfer.families.rules import spelled
from minitransfer.nn.two_towers import contrastive_loss
from minitransfer.weights.tensors import read_tensors

from .test_parity import check

END = 96
TEXT = {"vocab_size": 97, "hidden_size": 36, "intermediate_size": 59, "projection_dim": 11, "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 19,
        "bos_token_id": 1, "eos_token_id": END, "pad_token_id": END}
IMAGE = {"hidden_size": 28, "intermediate_size": 53, "projection_dim": 11, "num_hidden_layers": 3, "num_attention_heads": 4, "num_channels": 3, "image_size": 23, "patch_size": 5}
SINGLE = ["CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModel", "CLIPVisionModelWithProjection"]


def perturbed(class_name, **changes):
    """The reference's model with every parameter moved, in eval mode."""
    torch.manual_seed(0)
    text, image = (sizes | {name: value for name, value in changes.items() if name in sizes} for sizes in (TEXT, IMAGE))
    config = {"CLIPT": lambda: transformers.CLIPTextConfig(**text), "CLIPV": lambda: transformers.CLIPVisionConfig(**image),
              "CLIPM": lambda: transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=11)}[class_name[:5]]()
    config._attn_implementation = "eager"
    model = getattr(transformers, class_name)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def texts(lengths, left):
    """Texts that end with their end token; padding has the same id, on either side."""
    ids, keep = batch(END, lengths, left)
    for row, here in zip(ids, keep, strict=True):
        row[here.nonzero()[-1]] = END
    return ids.masked_fill(~keep, END), keep


def images(n=3):
    return torch.randn(n, 3, 23, 23, generator=torch.Generator().manual_seed(1))


def compare_states(what, shown, fast, row, here, theirs):
    """The reference's last state comes before its final norm in `hidden_states`, and after it as last_hidden_state."""
    states = (*theirs.hidden_states[:-1], theirs.last_hidden_state)
    assert len(states) == len(shown.hidden_states) and len(theirs.attentions) == len(shown.attentions)
    found = [difference(f"{what} state {i}", a[row][here], b[0]) for i, (a, b) in enumerate(zip(shown.hidden_states, states, strict=True))]
    found += [difference(f"{what} attention {i}", a[row][:, here][:, :, here], b[0]) for i, (a, b) in enumerate(zip(shown.attentions, theirs.attentions, strict=True))]
    for one in (shown, fast):
        found.append(difference(f"{what} last", one.last_hidden_state[row][here], theirs.last_hidden_state[0]))
        if "pooler_output" in theirs:
            found.append(difference(f"{what} pooled", one.pooled[row], theirs.pooler_output[0]))
        projected = getattr(theirs, "text_embeds", getattr(theirs, "image_embeds", None))
        assert (projected is None) == (one.embeddings is None)
        if projected is not None:
            found.append(difference(f"{what} projected", one.embeddings[row], projected[0]))
    return found


@torch.no_grad()
@pytest.mark.parametrize("end", [END, 2], ids=["end", "legacy"])
@pytest.mark.parametrize("name", SINGLE[:2])
def test_text_tower(name, end, tmp_path):
    reference = perturbed(name, eos_token_id=end)
    reference.save_pretrained(tmp_path)
    model = mt.Model.from_pretrained(tmp_path)
    assert model.config.end_id == (None if end == 2 else END)
    for left in (False, True):
        ids, keep = texts([19, 5, 11], left)
        shown, fast = model(ids, keep, output_hidden_states=True, output_attentions=True), model(ids, keep)
        for row in range(3):
            theirs = reference(ids[row][keep[row]][None], output_hidden_states=True, output_attentions=True)
            check(compare_states(f"row {row}", shown, fast, row, keep[row], theirs), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", SINGLE[2:])
def test_image_tower(name, tmp_path):
    """23 pixels in patches of 5: three rows and columns of pixels are not seen."""
    reference = perturbed(name)
    reference.save_pretrained(tmp_path)
    model = mt.Model.from_pretrained(tmp_path)
    shown, fast = model(pixel_values=images(), output_hidden_states=True, output_attentions=True), model(pixel_values=images())
    for row in range(3):
        theirs = reference(images()[row][None], output_hidden_states=True, output_attentions=True)
        check(compare_states(f"image {row}", shown, fast, row, torch.ones(17, dtype=torch.bool), theirs), 1e-5)


@pytest.mark.parametrize("name", SINGLE)
def test_round_trip_of_a_tower(name, tmp_path):
    reference = perturbed(name)
    reference.save_pretrained(tmp_path / "theirs")
    model = mt.Model.from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    theirs, ours = (dict(read_tensors(tmp_path / side)) for side in ("theirs", "ours"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    again = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(reference.state_dict().values(), again.state_dict().values(), strict=True))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())


def test_older_files_of_a_tower_have_a_prefix(tmp_path):
    from safetensors.torch import load_file, save_file
    perturbed("CLIPTextModel").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    before = mt.Model.from_pretrained(tmp_path)
    save_file({f"text_model.{name}": tensor for name, tensor in load_file(path).items()} | {"text_model.embeddings.position_ids": torch.arange(19)[None]}, path)
    after = mt.Model.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    reference = perturbed("CLIPModel")
    reference.save_pretrained(folder)
    return folder, reference, mt.load_two_towers(folder)


def test_both_towers(towers):
    _, reference, model = towers
    for left in (False, True):
        ids, keep = texts([13, 4, 9], left)
        alone = [reference(ids[row][keep[row]][None], images(5)) for row in range(3)]
        out = model(ids, images(5), keep)
        check([difference("texts", out.text_embeds, torch.cat([one.text_embeds for one in alone])), difference("images", out.image_embeds, alone[0].image_embeds),
               difference("per text", out.logits_per_text, torch.cat([one.logits_per_text for one in alone])),
               difference("per image", out.logits_per_image, torch.cat([one.logits_per_image for one in alone], dim=1))], 1e-5)
        assert out.loss is None


def test_loss_and_every_gradient(towers):
    _, reference, model = towers
    ids, _ = texts([7, 7, 7], left=False)
    want, got = reference(ids, images(), return_loss=True).loss, model(ids, images(), pairs=True).loss
    want.backward()
    got.backward()
    theirs, found = dict(reference.named_parameters()), [difference("loss", got, want), difference("scale", model.logit_scale.grad, reference.logit_scale.grad)]
    for tower, prefix in ((model.text, "text_model."), (model.image, "vision_model.")):
        parameters = dict(tower.named_parameters())
        for name, rule, ours in spelled(FAMILIES[tower.source_config["model_type"]].weights(tower.config), "projection", tower.config):
            gradient = theirs.get(prefix + name, theirs.get(name)).grad
            found += [difference(one, parameters.pop(one).grad, value) for one, value in zip(ours, rule.op.read(gradient, len(ours)), strict=True)]
        assert not parameters
    assert len(found) == 2 + len(list(reference.parameters())) - 1
    check(found, 1e-5)


def test_contrastive_loss_by_hand():
    logits = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    total, count = contrastive_loss(logits)
    e = np.exp
    choices = [e(1) / (e(1) + e(0)), e(2) / (e(3) + e(2)), e(1) / (e(1) + e(3)), e(2) / (e(0) + e(2))]      # two texts, then two images
    assert count == 4 and total.item() == pytest.approx(-np.log(choices).sum(), rel=1e-6)


def test_round_trip_of_both(towers, tmp_path):
    folder, reference, model = towers
    mt.save_two_towers(model, tmp_path)
    theirs, ours = (dict(read_tensors(one)) for one in (folder, tmp_path))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    again = transformers.CLIPModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(reference.state_dict().values(), again.state_dict().values(), strict=True))
    assert again.config.text_config.to_dict().items() >= TEXT.items() and again.config.vision_config.to_dict().items() >= IMAGE.items()
    assert again.config.projection_dim == 11 and sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())


def test_published_size():
    """ViT-B/32, from a config with nothing in it but defaults, and from one that says everything."""
    parts = []
    for model_type, said in (("clip_text_model", {}), ("clip_vision_model", transformers.CLIPVisionConfig().to_dict())):
        _, config = read_config({"model_type": model_type} | said)
        parts.append(mt.Model(config, "projection", seed=None))
    assert sum(p.numel() for p in mt.TwoTowers(*parts).parameters()) == 151_277_313


def test_old_configs_count_where_they_say_more(towers, tmp_path):
    """`text_config_dict` is what is read, with defaults for what it leaves out, and not `text_config` beside it."""
    folder, *_ = towers
    said = json.loads((folder / "config.json").read_text())
    said |= {"text_config_dict": said["text_config"], "text_config": said["text_config"] | {"hidden_size": 44}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert mt.load_two_towers(tmp_path).text.config.d_model == transformers.CLIPConfig.from_pretrained(tmp_path).text_config.hidden_size == 36


def test_a_classifier_on_the_image_tower(towers):
    """Only the head is new, and it reads the normed class vector: Radford et al.'s linear probe."""
    folder, reference, _ = towers
    model = mt.load_two_towers(folder).image.set_head("sequence", labels=["a", "b"])
    with torch.no_grad():
        pooled = reference.vision_model(images()).pooler_output
        check([difference("logits", model(pixel_values=images()).logits, model.head.classifier(pooled))], 1e-5)
    model(pixel_values=images(), labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters() if not name.endswith("k_proj.bias"))
    mt.freeze(model, "embed, blocks")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["pooler.weight", "pooler.bias", "head.classifier.weight", "head.classifier.bias"]


def test_fresh_towers_are_drawn_from_their_seed():
    """Every parameter has a value that the seed gives, the class vector too; the loss of such towers is near that of a blind guess."""
    def fresh(seed):
        towers = (("clip_text_model", TEXT), ("clip_vision_model", IMAGE))
        return mt.TwoTowers(*(mt.Model(read_config({"model_type": kind} | sizes)[1], "projection", seed=seed) for kind, sizes in towers))
    one, two, other = fresh(3), fresh(3), fresh(4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert 0.01 < one.image.embed.whole.std() < 0.03 and not torch.equal(one.image.embed.whole, other.image.embed.whole)
    assert one.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)
    ids, keep = texts([5, 7, 6], left=False)
    assert 0.5 < one(ids, images(), keep, pairs=True).loss.item() < 3


# ---- images and labels ---------------------------------------------------------------------------------------------------------------------------

def photo(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


READERS = {"square crop": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
           "wide crop": {"size": {"shortest_edge": 29}, "crop_size": {"height": 17, "width": 25}, "resample": 2},
           "both sides": {"size": {"height": 31, "width": 37}, "crop_size": {"height": 30, "width": 30}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.4, 0.3]}}


@pytest.mark.parametrize("said", READERS.values(), ids=READERS)
def test_images_are_read_as_the_reference_reads_them(said, tmp_path):
    """Pillow's own scaling: each pixel within one of 256 levels, 99 in a hundred the same. Where the sides' ratio changes, for images that Pillow scales by rows first."""
    processor = CLIPImageProcessorPil(**said)
    processor.save_pretrained(tmp_path)
    read = mt.ImageReader.from_pretrained(tmp_path)
    level = 1 / 255 / min(read.std)
    for shape in ((57, 83), (20, 47), (201, 311)) + (((83, 57), (41, 41)) if isinstance(read.size, int) else ()):
        array = photo(*shape)
        ours, theirs = read([Image.fromarray(array)]), processor([Image.fromarray(array)], return_tensors="pt").pixel_values
        gap = (ours - theirs).abs()
        assert ours.shape == theirs.shape and gap.max() <= 1.001 * level and (gap < 1e-5).float().mean() > 0.99
        assert torch.equal(ours, read([torch.from_numpy(array).permute(2, 0, 1)]))


def test_other_kinds_of_pixels():
    """Grey and palette images become coloured, transparent ones lie on white; the values of a flat image can be said by hand."""
    read, theirs = mt.ImageReader(8, (8, 8)), CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    for image in (Image.fromarray(photo(11, 13)).convert("L"), Image.fromarray(photo(11, 13)).convert("P"), Image.fromarray(photo(11, 13, 4))):
        assert (read([image]) - theirs([image], return_tensors="pt").pixel_values).abs().max() <= 2.001 / 255 / min(read.std)
    flat = read([torch.full((3, 10, 12), 51, dtype=torch.uint8)])
    assert torch.allclose(flat, ((0.2 - torch.tensor(read.mean)) / torch.tensor(read.std))[None, :, None, None].expand(1, 3, 8, 8), atol=1e-6)


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    """A tokenizer that ends a text with its end token and pads with the same id."""
    words = ["<unk>", "<|startoftext|>", *"a photo of cat dog tall tree house on the hill".split()]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)} | {"<|endoftext|>": END}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    backend.post_processor = processors.TemplateProcessing(single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 1), ("<|endoftext|>", END)])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
                                                  unk_token="<unk>", model_input_names=["input_ids", "attention_mask"])
    theirs.save_pretrained(folder := tmp_path_factory.mktemp("tok"))
    return theirs, mt.Tokenizer.from_pretrained(folder)


def test_zero_shot_answers_are_those_of_the_pipeline(towers, tok):
    _, reference, model = towers
    processor = CLIPImageProcessorPil(size={"shortest_edge": 23}, crop_size={"height": 23, "width": 23})
    pipe = transformers.pipeline("zero-shot-image-classification", model=reference, tokenizer=tok[0], image_processor=processor)
    labels, pictures = {"cat": "cat", "dog": "tall dog", "house": "house on the hill"}, [Image.fromarray(photo(40, 30, seed=i)) for i in range(5)]
    pixel_values = processor(pictures, return_tensors="pt").pixel_values
    for template in ("a photo of a {}", "{}"):
        answers = mt.classify_images(model, tok[1], pixel_values, labels, template, batch_size=2)
        for answer, picture in zip(answers, pictures, strict=True):
            want = {one["label"]: one["score"] for one in pipe(picture, candidate_labels=list(labels.values()), hypothesis_template=template)}
            assert list(answer.probabilities.values()) == pytest.approx([want[words] for words in labels.values()], abs=1e-5)
            assert labels[answer.label] == max(want, key=want.get)
    assert len({round(answer.probability, 4) for answer in answers}) == 5
    assert mt.classify_images(model, tok[1], pixel_values, list(labels.values()), "{}")[0].probability == pytest.approx(answers[0].probability, abs=1e-6)


# ---- refused -------------------------------------------------------------------------------------------------------------------------------------

def test_refused(towers, tok, tmp_path):
    folder, _, model = towers
    ids, keep = texts([5, 4], left=False)
    image = torch.zeros(3, 9, 9, dtype=torch.uint8)
    for match, call in {
        "use load_two_towers": lambda: mt.Model.from_pretrained(folder),
        "no token 96": lambda: model.text(torch.ones(2, 3, dtype=torch.long)),
        r"model reads \(images, 3, 23, 23\)": lambda: model.image(pixel_values=torch.zeros(1, 3, 24, 24)),
        "pixel_values for a body that reads input_ids": lambda: model.text(pixel_values=images()),
        "nothing for a body that reads pixel_values": lambda: model.image(),
        "2 texts and 3 images": lambda: model(ids, images(3), keep, pairs=True),
        "both have a projection": lambda: mt.TwoTowers(model.text, mt.Model(model.image.config)),
        "on a body of images": lambda: mt.Model(model.image.config, "masked"),
        "labels for a projection head": lambda: model.text(ids, keep, labels=ids),
        "with pooler=False": lambda: mt.Model(dataclasses.replace(model.text.config, pooler=False), "projection"),
        "max_len=16": lambda: dataclasses.replace(model.image.config, max_len=16),
        "there must be something to choose from": lambda: mt.classify_images(model, tok[1], images(), ["cat"]),
        "template='a photo'": lambda: mt.classify_images(model, tok[1], images(), ["cat", "dog"], "a photo"),
        "no image": lambda: mt.ImageReader()([]),
        "an image given as str": lambda: mt.ImageReader()(["photo.jpg"]),
        "an image given as .*float32": lambda: mt.ImageReader()([image.float()]),
        "a smaller crop": lambda: mt.ImageReader(8, (9, 8))([image]),
        "patch_size=": lambda: read_config({"model_type": "clip_vision_model", "patch_size": [4, 5]}),
        "eos_token_id=": lambda: read_config({"model_type": "clip_text_model", "eos_token_id": [3, 4]}),
        "hidden_act='mish'": lambda: read_config({"model_type": "clip_text_model", "hidden_act": "mish"}),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    for match, said in {"switches off do_normalize": {"do_normalize": False}, "resample=0": {"resample": 0}, "longest_edge": {"size": {"longest_edge": 9}}}.items():
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
        with pytest.raises(ValueError, match=match):
            mt.ImageReader.from_pretrained(tmp_path)
