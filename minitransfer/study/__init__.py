"""See what a model has learned: what its parts compute, what its layers say of words, which sentences it prefers. Each is a function that gives data with intervals;
`print` shows a table, `.draw()` a figure.

Reading order: trace.py and lens.py (inside one forward pass), separation.py (a word's senses), treebank.py, examples.py and probe.py (what layers know), mix.py and heads.py
(where), minimal_pairs.py (what is preferred).
"""
from .heads import HeadAccuracy, head_accuracy
from .lens import LogitLens, logit_lens
from .minimal_pairs import Cloze, Pairs, cloze, log_likelihoods, minimal_pairs, paired_bias
from .mix import Centre, centre_of_gravity
from .probe import Probe, probe
from .separation import Neighbours, Separation, neighbours, separation_ratio
from .tables import Interval
from .trace import Traced, trace
from .treebank import Sentence, read_treebank

__all__ = ["Centre", "Cloze", "HeadAccuracy", "Interval", "LogitLens", "Neighbours", "Pairs", "Probe", "Sentence", "Separation", "Traced", "centre_of_gravity", "cloze",
           "head_accuracy", "log_likelihoods", "logit_lens", "minimal_pairs", "neighbours", "paired_bias", "probe", "read_treebank", "separation_ratio", "trace"]
