"""See what a model has learned: what its parts compute, what its layers say of words, which sentences it prefers. Each is a function that gives data with intervals;
`print` shows a table, `.draw()` a figure.

Reading order: trace.py and lens.py (inside one forward pass), separation.py (a word's senses), treebank.py, examples.py and probe.py (what layers know), mix.py and heads.py
(where), layers.py (all of this side by side), minimal_pairs.py (what is preferred); ways.py, gain.py, ladder.py (what a label buys), forgetting.py, domain.py, slices.py,
surgery.py; claims/ (what articles say).
"""
from . import surgery
from .claims import CLAIMS, claims, run_claim
from .domain import DomainReport, domain_report
from .forgetting import Forgetting, cka, forgetting
from .gain import TransferGain, transfer_gain
from .heads import HeadAccuracy, head_accuracy
from .ladder import Ladder, ladder
from .layers import LayerReport, layer_report
from .lens import LogitLens, logit_lens
from .minimal_pairs import Cloze, Pairs, cloze, log_likelihoods, minimal_pairs, paired_bias
from .mix import Centre, centre_of_gravity
from .probe import Probe, probe
from .separation import Neighbours, Separation, neighbours, separation_ratio
from .slices import Slices, slices
from .tables import Interval
from .trace import Traced, trace
from .treebank import Sentence, read_treebank

__all__ = ["CLAIMS", "Centre", "Cloze", "DomainReport", "Forgetting", "HeadAccuracy", "Interval", "Ladder", "LayerReport", "LogitLens", "Neighbours", "Pairs", "Probe", "Sentence",
           "Separation", "Slices", "Traced", "TransferGain", "centre_of_gravity", "cka", "claims", "cloze", "domain_report", "forgetting", "head_accuracy", "ladder",
           "layer_report", "log_likelihoods", "logit_lens", "minimal_pairs", "neighbours", "paired_bias", "probe", "read_treebank", "run_claim", "separation_ratio", "slices",
           "surgery", "trace", "transfer_gain"]
