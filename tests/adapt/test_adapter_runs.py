"""The strategies that insert something, from `finetune` to a folder that answers alone, and stopped in between."""
import json

import peft
import pytest
import torch
import transformers

from minitransfer.nn.model import Model
from minitransfer.tasks import finetune, load_tuned, predict
from minitransfer.transfer import Strategy, adapter, ia3, lora, prefix, soft_prompt, strategy

from .small import HELD_OUT, QUICK, TRAIN, bert, gpt, tokenizer

TEXTS = [row["text"] for row in HELD_OUT]
WAYS = {"ia3": ia3(), "adapter": adapter(size=7), "pfeiffer": adapter(5, placement="pfeiffer", name="mine"), "prefix": prefix(3), "soft_prompt": soft_prompt(3),
        "dora": lora(r=3, dora=True)}
EVERY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture(scope="module", params=[bert, pytest.param(gpt, marks=pytest.mark.slow)], ids=["bert", "gpt2"])
def base(request, tok, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    request.param(tok, "none").save_pretrained(folder)
    return folder


@EVERY
def test_the_folder_answers_alone_and_the_body_kept_its_bits(tok, base, tmp_path, way):
    model = Model.from_pretrained(base)
    was = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("pooler")}
    result = finetune(model, tok, train=TRAIN, strategy=way, out=tmp_path, epochs=2, batch_size=12, **QUICK)
    assert all(torch.equal(p, was[name]) for name, p in model.named_parameters() if name in was)
    fresh = Model.from_pretrained(base).set_head("sequence", ["neg", "pos"])
    way.apply(fresh)
    assert all(not torch.equal(p, model.get_parameter(name)) for name, p in fresh.named_parameters() if p.requires_grad)
    assert result.report.trainable == sum(p.numel() for p in fresh.parameters() if p.requires_grad)
    want = predict(model, tok, TEXTS)
    found = predict(tmp_path, texts=TEXTS)
    assert [a.label for a in found] == [a.label for a in want]
    assert max(abs(a.probability - b.probability) for a, b in zip(found, want, strict=True)) <= 1e-6
    assert not (tmp_path / "model" / "model.safetensors").exists()
    about = json.loads((tmp_path / "model" / "task.json").read_text())
    assert about["strategy"] == way.name and about["max_length"] == 29 - way.ahead
    learned = {name for name, p in load_tuned(tmp_path)[0].named_parameters() if p.requires_grad}
    assert learned == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("way", [WAYS["ia3"], WAYS["prefix"], WAYS["dora"]], ids=["ia3", "prefix", "dora"])
def test_peft_reads_the_folder(tok, base, tmp_path, peft_prefixes, way):
    """Also a pooler that no checkpoint filled and that was trained along."""
    result = finetune(Model.from_pretrained(base), tok, train=TRAIN, strategy=way, out=tmp_path, steps=3, batch_size=12, **QUICK)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, attn_implementation="eager")
    plain.config.pad_token_id = tok.pad_id
    reference = peft.PeftModel.from_pretrained(plain, tmp_path / "model").eval()
    batch = tok(TEXTS[:7])
    kept = {name: t for name, t in batch.items() if name != "token_type_ids"}
    with torch.no_grad():
        torch.testing.assert_close(result.model.eval()(**kept).logits, reference(**kept).logits, atol=1e-5, rtol=0)


class Stopped(Exception):
    pass


def stop(record: dict) -> None:
    if record["step"] == 5:
        raise Stopped


@pytest.mark.parametrize("base", [bert], indirect=True, ids=["bert"])
@pytest.mark.parametrize("way", [WAYS["adapter"], WAYS["prefix"], WAYS["dora"]], ids=["adapter", "prefix", "dora"])
def test_a_broken_run_goes_on_bit_for_bit(tok, base, tmp_path, way):
    def run(out, **more):
        return finetune(Model.from_pretrained(base), tok, train=TRAIN, strategy=way, out=out, epochs=2, batch_size=15, save_every=3, **QUICK, **more)
    whole = run(tmp_path / "whole").model.state_dict()
    with pytest.raises(Stopped):
        run(tmp_path / "broken", on_step=stop)
    rest = run(tmp_path / "broken", resume=True).model.state_dict()
    assert whole.keys() == rest.keys() and all(torch.equal(t, whole[name]) for name, t in rest.items())


@pytest.mark.parametrize("name,made", [("ia3", ia3()), ("adapter:9", adapter(9)), ("prefix:4", prefix(4)), ("soft_prompt:4", soft_prompt(4))])
def test_by_name_with_a_number(tok, name, made):
    ours, same = bert(tok), bert(tok)
    assert isinstance(strategy(name), Strategy) and strategy(name).ahead == made.ahead
    assert strategy(name).apply(ours).trainable == made.apply(same).trainable
    assert dict(ours.named_parameters()).keys() == dict(same.named_parameters()).keys()


def test_texts_leave_room_for_what_is_learned(tok, tmp_path):
    model = bert(tok, "none")
    with pytest.raises(ValueError, match="max_length=27; this model reads at most 26 tokens"):
        finetune(model, tok, train=TRAIN, strategy=prefix(3), max_length=27, **QUICK)
    long = [{"text": "good " * 60, "label": "pos"}, {"text": "dull " * 60, "label": "neg"}]
    with pytest.warns(UserWarning, match="cut"):
        finetune(model, tok, train=long, strategy=soft_prompt(3), steps=1, **QUICK)
    assert model.longest == 26
