"""Claims that a small experiment decides. The first needs nothing; the others need the folder that MINITRANSFER_DATA names, and what they found is kept in
bench/results/claims.json: `minitransfer claims --run ID --save`."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...nn.model import Model
from ...tasks import SequenceTask, baseline, label_scores
from ...tasks.metrics import wilson
from ...text import Tokenizer, read_rows, sample_rows
from ..tables import Interval
from .base import Claim, Finding, Missing, result
from .measured import BODY, ours, percent, shown

WORDS = {"0": "a negative review", "1": "a positive review"}


def sorted_split() -> Finding:
    """Take the first 2,000 of 25,000 rows that stand sorted by label, as the printed code does."""
    rows = [{"text": f"review {i}", "label": str(int(i >= 12_500))} for i in range(25_000)][:2000]
    try:
        SequenceTask().labels(rows, [])
    except ValueError as why:
        return Finding("not as stated", f"the code as printed gets rows of {len({row['label'] for row in rows})} label: {why}".partition(";")[0],
                       "the file stands sorted by label, so the printed code tunes and tests on one class and cannot have given 93.4")
    raise AssertionError("two labels in one half of a sorted file")


def sst2() -> tuple[list[dict], list[dict]]:
    """All training rows and the validation rows. Raises: ValueError without the data."""
    from ...bench.transfer.sets import SETS, data_folder
    one = SETS["sst2"]
    return read_rows(data_folder() / one.train), read_rows(data_folder() / one.validation)


def many_from_scratch() -> Finding:
    """TF-IDF on 50,000 rows beside the committed figure of full tuning on 2,000."""
    train, held_out = sst2()
    found, few = baseline("logistic", sample_rows(train, 50_000, by="label"), held_out, text="sentence"), percent(ours("sst2")["full"])
    many = Interval(*(100 * found.metrics[f"accuracy{end}"] for end in ("", "_low", "_high")))
    return Finding("reproduced" if few.low > many.high else "not as stated" if few.high < many.low else "partly",
                   f"TF-IDF with 50,000 labels {shown(many)}, full tuning with 2,000 {shown(few)}, on sst2",
                   f"{BODY}, twice the labels of the claim, against a linear model rather than a network; the intervals say whether they can be told apart", many)


def zero_shot() -> Finding:
    """Which of two descriptions each sentence is nearer to, by the vectors of the body, beside the committed figure of full tuning."""
    from ...bench.transfer.sets import body
    _, held_out = sst2()
    answers = label_scores(Model.from_pretrained(body()), Tokenizer.from_pretrained(body()), [row["sentence"] for row in held_out], WORDS)
    right, n, full = sum(a.label == row["label"] for a, row in zip(answers, held_out, strict=True)), len(held_out), percent(ours("sst2")["full"])
    share = Interval(*(100 * 100 * x / full.value for x in (right / n, *wilson(right, n))))
    return Finding("partly" if share.high >= 70 and share.low <= 85 else "not as stated",
                   f"zero-shot {100 * right / n:.1f}, which is {shown(share)} % of full tuning on 2,000 rows of sst2",
                   f"{BODY} tuned for sentence vectors; of two classes guessing alone gives {5000 / full.value:.0f} % of full tuning, so that such shares say little; "
                   "prompts with examples and tuning on few rows: study.ladder", share)


def kept(id: str) -> Finding:
    """What the experiment gave when it was last run with --save."""
    found = result("claims")
    if id not in found:
        raise Missing(f"not run yet: minitransfer claims --run {id} --save")
    told: dict[str, Any] = found[id]
    return Finding(told["verdict"], told["found"], told["reason"], Interval(*told["interval"]) if told["interval"] else None)


def experiment(id: str, source: str, text: str, run: Callable[[], Finding]) -> Claim:
    return Claim(id, source, text, "experiment, claims.json", partial(kept, id), run)


CLAIMS = (
    Claim("imdb-2000", "S2", "2,000 reviews of IMDb, 3 epochs: 93.4 %.", "experiment", sorted_split, sorted_split),
    experiment("many-from-scratch", "S1", "1,000 labels with BERT beat 50,000 from scratch.", many_from_scratch),
    experiment("zero-shot", "S3", "Zero-shot gives 70 to 85 % of full tuning, examples in the prompt 80 to 90 %, tuning on few rows 90 to 95 %.", zero_shot),
)
