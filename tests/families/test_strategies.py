"""Every strategy on every family: the loss falls, what is frozen keeps its bits, what trains has moved, and the saved files give the same answers."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from minitransfer.nn.encoder_decoder import EncoderDecoder
from minitransfer.nn.model import Model
from minitransfer.tasks import finetune, load_tuned
from minitransfer.text import Tokenizer
from minitransfer.transfer import adapter, compacter, l2sp, lora, mixout, prefix, soft_prompt
from minitransfer.transfer.peft_sites import sites

from .cases import CASES, Case

WORDS = "the a this film book song was is very quite not long short old new and but".split()
ROWS = [{"text": " ".join(WORDS[(3 * i + k) % 17] for k in range(2 + i % 3)) + (" good" if i % 2 else " dull"), "label": "pos" if i % 2 else "neg"} for i in range(6)]
QUICK: dict[str, Any] = {"progress": False, "precision": "fp32", "log_every": 1, "best": None, "batch_size": len(ROWS)}     # a step is an epoch
FAMILIES = [case for case in CASES if not case.heads and {"none", "sequence"} <= set(case.classes.values())]


@dataclass(frozen=True)
class Way:
    """A strategy with its settings, and by hand the names that train; TOP stands for the number of the last block."""

    strategy: Any
    trains: str
    lr: float = 1e-3
    keep: Any = None
    steps: int = 5


WAYS = {
    "full": Way("full", ""),
    "head": Way("head", r"head\.", lr=3e-2),
    "features": Way("features", r"head\.", lr=3e-2),
    "last:1": Way("last:1", r"(.*blocks\.TOP|norm|pooler|head)\."),
    "discriminative": Way("discriminative", ""),
    "ulmfit": Way("ulmfit", "", steps=14),                      # a group joins with every step
    "bitfit": Way("bitfit", r".*bias$|head\.", lr=1e-2),
    "lora": Way(lora(r=3), r".*\.lora_|head\.", lr=1e-2),
    "dora": Way(lora(r=3, dora=True), r".*\.lora_|head\.", lr=1e-2),
    "rslora": Way(lora(r=3, rslora=True), r".*\.lora_|head\.", lr=1e-2),
    "ia3": Way("ia3", r".*\.ia3$|head\.", lr=3e-2),
    "adapter": Way(adapter(5), r".*\.adapters\.|head\.", lr=1e-2),
    "compacter": Way(compacter(4, n=2), r".*\.adapters\.|head\.", lr=1e-2),
    "prefix": Way(prefix(5), r".*\.prefix\.|head\.", lr=3e-2),
    "soft_prompt": Way(soft_prompt(5), r".*embed\.prompt\.|head\.", lr=3e-2),
    "l2sp": Way("full", "", keep=l2sp()),
    "mixout": Way("full", "", keep=mixout(0.5)),
}


def without_bias(model: Model) -> bool:
    return not any(name.endswith("bias") and not name.startswith("head.") for name, _ in model.named_parameters())


def has_joined_matrices(model: Model) -> bool:
    return any(len(site.ours) > 1 for site in sites(model).values())


def two_stacks(model: Model) -> bool:
    return isinstance(model, EncoderDecoder)


EXCEPTIONS = {      # strategy -> which bodies it is not for, why, and what it says
    "rslora": (has_joined_matrices, "a file's one matrix for q, k and v has one A, of three times the rank", "are one matrix .* one matrix has one scale: .* without rslora"),
    "features": (two_stacks, "a classifier reads the decoder, which reads what the encoder says", "the features of an encoder-decoder; .* load its encoder alone"),
    "last:1": (two_stacks, "there are two last blocks", "the blocks of an encoder-decoder; .* choose another strategy"),
    "prefix": (two_stacks, "it is made for one stack", "a prefix for an encoder-decoder; .* use add_lora"),
    "soft_prompt": (two_stacks, "it is made for one stack", "a soft prompt for an encoder-decoder; .* use add_lora"),
    "bitfit": (without_bias, "there is no bias to train", "strategy 'bitfit' on a body without biases; .* choose lora, last:2 or full"),
}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    """One for all: without token types, which not every family knows."""
    return Tokenizer.train([row["text"] for row in ROWS], kind="bpe", vocab_size=90, min_count=1, max_len=19)


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    """Case -> the folder of its body, written once; without dropout, so that losses can be compared."""
    written: dict[str, Any] = {}

    def folder(case: Case):
        if case.name not in written:
            written[case.name] = place = tmp_path_factory.mktemp(case.name)
            case.reference(next(name for name, head in case.classes.items() if head == "none"), scale=0.3).save_pretrained(place)
            config = json.loads((place / "config.json").read_text())
            (place / "config.json").write_text(json.dumps(config | {key: 0.0 for key in config if "drop" in key}))
        return written[case.name]
    return folder


def values(model: Model) -> dict[str, torch.Tensor]:
    """Every parameter under the name it has without what was wrapped around it."""
    return {name.replace(".base.", "."): p.detach().clone() for name, p in model.named_parameters()}


# The quick tests try each family with three or four strategies, and each strategy on four or five families.
EVERY = [pytest.param(case, way, marks=[] if (i + j) % 5 == 0 else pytest.mark.slow, id=f"{case.name}-{way}") for i, case in enumerate(FAMILIES) for j, way in enumerate(WAYS)]


@pytest.mark.parametrize("case, way", EVERY)
def test_every_strategy_on_every_family(case, way, tok, body, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, one = Model.from_pretrained(body(case), head="sequence", labels=["neg", "pos"]), WAYS[way]
    call = {"train": ROWS, "strategy": one.strategy, "keep": one.keep, "lr": one.lr, "steps": one.steps, "out": tmp_path / "run", **QUICK}
    applies, _, message = EXCEPTIONS.get(way, (lambda model: False, "", ""))
    if applies(model):
        with pytest.raises(ValueError, match=message):
            finetune(model, tok, **call)
        return
    start = values(model)
    result = finetune(model, tok, on_step=lambda record: [start.setdefault(name, value) for name, value in values(model).items()] if record["step"] == 1 else None, **call)
    losses = [record["loss"] for record in result.history if "loss" in record]
    assert len(losses) == one.steps and losses[-1] < losses[0]

    top = max(re.findall(r"blocks\.(\d+)\.", " ".join(start)), key=int)
    wanted = re.compile(one.trains.replace("TOP", top))
    for name, value in values(model).items():
        same = torch.equal(value, start[name])
        assert same != bool(wanted.match(name)) or "k_proj.bias" in name, (name, same)         # the same number for every key changes no probability
    loaded, _ = load_tuned(tmp_path / "run")
    batch = tok([row["text"] for row in ROWS])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits, atol=1e-6, rtol=0)
