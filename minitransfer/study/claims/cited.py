"""Claims that nothing here decides: figures of others, prices, and what takes larger models or machines than the project measures on."""
from __future__ import annotations

from functools import partial

from .base import Claim, Finding

TEXTS = (
    ("separation", "S0", "The two senses of bank are farther apart than within a sense (ratio above 1), most from the middle layers on.",
     "study.separation_ratio measures it for a model and sentences"),
    ("adaptive-share", "S3", "80 % of what adaptive pretraining gives comes with 5 % of its compute.",
     "it takes a whole adaptive pretraining to compare with; the pilot of study.domain_report extrapolates"),
    ("lora-two-hours", "S2", "LoRA on a 7B model takes less than 2 hours on one 40 GB card.", "it depends on rows and their lengths, which the claim does not name"),
    ("breadth", "S1 S3", "ELMo gained 3 to 20 % on six tasks, BERT led on 11, PubMedBERT on 6 of 7.", "figures of those papers"),
    ("prices", "S0 S2", "BERT-base pretraining costs 5 to 10 thousand dollars, tuning 1 to 50.", "prices of other years and clouds"),
    ("corpora", "S1 S2", "GPT-3 read 300B tokens, recent models 1 to 15T; 800 GB of text.", "figures of those papers"),
    ("languages", "S2", "XLM-R 100 languages, mBERT 104, mT5 101, mBART 50, LaBSE 109, NLLB 200.", "figures of those papers"),
    ("bands", "S3 S4", "Feature extraction below 500 or below 1,000 labels, full tuning from 5,000 or from 10,000.",
     "the tables of one article disagree with each other; frozen-below-1000 measures the lower end"),
)
CLAIMS = tuple(Claim(id, source, text, "cited", partial(Finding, "not tested", "-", why)) for id, source, text, why in TEXTS)
