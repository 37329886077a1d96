"""Heads: what a body is asked. Each turns what the body says into logits, and knows its own loss: a sum and the number of targets in it."""
from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, normalize

from ..config import ModelConfig, choose
from ..ops.dropout import Dropout
from ..ops.linear import Linear
from .answers import IGNORE, BodyOutput, LossAndCount, Transform, check_fit, classifier_transform
from .pooling import first_token, last_token, mean_token
from .sentence import Prompts
from .vocabulary import VocabularyHead

POOLINGS = ("mean", "cls", "max", "last")
CLASSIFIES = ("sequence", "token")                                  # heads with named classes
ONE_CLASS, ANY_CLASS, REGRESSION = PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")     # of a sequence head, as in config.json
SIMILARITY, NEGATIVES = "cosine", "negatives"                        # what an embedding head learns from pairs
CONTRAST = 20                                                       # a cosine is at most 1: without this the softmax would be nearly flat
HEAD_NAMES = ("none", "masked", "masked+next", "causal", "causal+back", "seq2seq", "replaced", "sequence", "choice", "token", "span", "embedding", "projection")
READS_IDS = ("masked", "masked+next", "causal", "causal+back", "replaced", "choice", "token", "span")     # no head for images
AFTER_READING = ("none", "seq2seq", "sequence", "span")               # heads of an encoder-decoder


class SequenceHead(nn.Module):
    """One answer for the whole text, from its first token, pooled if the body does that, or the mean of all (encoders), or from the last attended one
    (decoders, without a bias). The config says what stands in front of the classifier.

    problem: what the outputs are and which loss they get, per target:
        "single_label_classification"   logits of a softmax: cross entropy
        "multi_label_classification"    logits of n sigmoids, each a yes or no: binary cross entropy, n targets a text
        "regression"                    the numbers themselves: squared error, n targets a text
    """

    def __init__(self, c: ModelConfig, n_labels: int, problem: str = ONE_CLASS):
        super().__init__()
        self.pooling, self.problem = "last" if c.causal else c.classifier_pooling, problem
        self.dropout = Dropout(c.rate("head_dropout"))
        self.transform = classifier_transform(c, "dense", "transform")
        self.dropout_first = Dropout(c.rate("transform_dropout") if c.classifier == "dense" else 0.0)
        self.classifier = Linear(c.d_model, n_labels, bias=not c.causal or self.transform is not None)

    def use(self, problem: str) -> None:
        """Read the outputs in another way. Raises: ValueError for one that does not exist."""
        choose("problem", problem, PROBLEMS)
        self.problem = problem

    def reads(self, body: BodyOutput) -> Float[Tensor, "B D"]:
        """The vector of each text that is classified."""
        if self.pooling == "first":
            return first_token(body.x, body.keep) if body.pooled is None else body.pooled
        return mean_token(body.x, body.keep) if self.pooling == "mean" else last_token(body.x, body.keep)

    def forward(self, body: BodyOutput) -> Float[Tensor, "B n"]:
        read = self.reads(body)
        if self.transform is not None:
            read = self.transform(self.dropout_first(read))
        return self.classifier(read if self.pooling == "last" and self.transform is None else self.dropout(read))

    def loss(self, body: BodyOutput, labels: Shaped[Tensor, "B *n"]) -> LossAndCount:
        if self.problem != ONE_CLASS:
            return self.loss_of_each(self(body).float(), labels)
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(f"labels of shape {tuple(labels.shape)} and {labels.dtype} for a head with one class a text; it takes the number of the class of each "
                             f'text: pass whole numbers (B,), or call model.head.use("{ANY_CLASS}") or use("{REGRESSION}")')
        check_fit(labels, self.classifier.out_features, "labels")
        return cross_entropy(self(body).float(), labels, reduction="sum", ignore_index=IGNORE), (labels != IGNORE).sum()

    def loss_of_each(self, logits: Float[Tensor, "B n"], labels: Shaped[Tensor, "B *n"]) -> LossAndCount:
        """Each output against its own target; labels of one output may come without their last axis."""
        labels = (labels[:, None] if labels.dim() == 1 else labels).to(logits.dtype)
        if labels.shape != logits.shape:
            raise ValueError(f"labels of shape {tuple(labels.shape)} for outputs of shape {tuple(logits.shape)} ({self.problem}); each output needs a target: "
                             "pass one number for each")
        if self.problem == REGRESSION:
            return mse_loss(logits, labels, reduction="sum"), labels.numel()
        if labels.device.type == "cpu" and len(wrong := labels[(labels < 0) | (labels > 1)]):
            raise ValueError(f"a label {float(wrong[0]):g} for a head that answers yes or no; labels are 1 (yes), 0 (no) or between: check the labels")
        return binary_cross_entropy_with_logits(logits, labels, reduction="sum"), labels.numel()


class ChoiceHead(SequenceHead):
    """Which of C texts is right: one number for each, a softmax over those of one question. Texts of a question are C rows in succession."""

    def __init__(self, c: ModelConfig):
        super().__init__(c, 1)
        self.dropout, self.dropout_first = Dropout(c.rate("choice_dropout")), Dropout(0.0)
        self.transform = None if c.pooler else self.transform                    # one layer in front of the classifier is enough

    def loss(self, body: BodyOutput, labels: Int[Tensor, "B"]) -> LossAndCount:
        if len(body.x) % len(labels):
            raise ValueError(f"{len(body.x)} texts and {len(labels)} labels for a choice head; every question has the same number of texts and one label: check the batch")
        logits = self(body).float().view(len(labels), -1)                        # (B, C)
        check_fit(labels, logits.shape[1], "choices")
        return cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE), (labels != IGNORE).sum()


class ReplacedHead(nn.Module):
    """Was this token replaced? One number a token, above 0: yes.

    Source: Clark et al. 2020 (ELECTRA), section 2.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.transform = Transform(c, c.d_model, c.activation, norm=False)
        self.answer = Linear(c.d_model, 1)

    def forward(self, body: BodyOutput) -> Float[Tensor, "B T"]:
        return self.answer(self.transform(body.x)).squeeze(-1)

    def loss(self, body: BodyOutput, labels: Int[Tensor, "B T"]) -> LossAndCount:
        """Every token that is not padding counts: 1 was replaced, 0 was not."""
        check_fit(labels, 2, "answers")
        wanted = body.keep & (labels != IGNORE)
        return binary_cross_entropy_with_logits(self(body)[wanted].float(), labels[wanted].float(), reduction="sum"), int(wanted.sum())


class TokenHead(nn.Module):
    """One label for every token."""

    def __init__(self, c: ModelConfig, n_labels: int):
        super().__init__()
        self.transform = classifier_transform(c, "transform")
        self.dropout = Dropout(c.rate("token_dropout"))
        self.classifier = Linear(c.d_model, n_labels)

    def forward(self, body: BodyOutput) -> Float[Tensor, "B T n"]:
        return self.classifier(self.dropout(body.x if self.transform is None else self.transform(body.x)))

    def loss(self, body: BodyOutput, labels: Int[Tensor, "B T"]) -> LossAndCount:
        check_fit(labels, self.classifier.out_features, "labels")
        return cross_entropy(self(body).float().flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORE), (labels != IGNORE).sum()


class SpanHead(nn.Module):
    """Where an answer starts and ends: two scores a token. Padding gets the lowest finite score, so a padded text answers as it does alone."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.transform, self.dropout = classifier_transform(c, "transform"), Dropout(c.span_dropout)
        self.ends = Linear(c.d_model, 2)

    def forward(self, body: BodyOutput) -> Float[Tensor, "B T 2"]:
        logits = self.ends(self.dropout(body.x if self.transform is None else self.transform(body.x)))
        return logits.masked_fill(~body.keep[..., None], torch.finfo(logits.dtype).min)

    def loss(self, body: BodyOutput, labels: Int[Tensor, "B 2"]) -> LossAndCount:
        """Labels are the positions of the first and the last token; the count has both, so sum / count is their mean as in BERT."""
        check_fit(labels, body.x.shape[1], "positions")
        if labels.device.type == "cpu" and len(wrong := ((labels != IGNORE) & ~body.keep.gather(1, labels.clamp(min=0))).nonzero()):
            row, end = wrong[0].tolist()
            raise ValueError(f"row {row} has the label {int(labels[row, end])}, where it has padding; an answer begins and ends at tokens: check the labels")
        logits = self(body).float().transpose(1, 2)                              # (B, 2, T)
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORE), (labels != IGNORE).sum()


class EmbeddingHead(nn.Module):
    """One vector for the whole text: the mean or maximum over its tokens (none: zeros), or its first or last token; then the `projections`, if its files
    have any; scaled to length 1 if `normalise`.

    problem: what pairs of texts teach it; rows 0 ... B - 1 of a batch are the first texts a_i, rows B ... 2 B - 1 the second ones b_i:
        "cosine"      (cos(a_i, b_i) - label_i)^2, labels in [-1, 1]
        "negatives"   -log softmax_j(20 cos(a_i, b_j))[i]: b_i belongs to a_i, the others of the batch do not; labels are not read
    Source: Reimers & Gurevych 2019, section 3; Henderson et al. 2017, section 4.4 (with cosines in the place of products).
    """

    def __init__(self, pooling: str = "mean", normalise: bool = True):
        super().__init__()
        choose("pooling", pooling, POOLINGS)
        self.pooling, self.normalise, self.problem = pooling, normalise, SIMILARITY
        self.projections: Any = nn.ModuleList()                                  # of sentence.Projection, in order
        self.prompts = Prompts()

    def use(self, problem: str) -> None:
        """Learn from pairs in another way. Raises: ValueError for one that does not exist."""
        choose("problem", problem, (SIMILARITY, NEGATIVES))
        self.problem = problem

    def forward(self, body: BodyOutput) -> Float[Tensor, "B P"]:
        x, keep = body.x, body.keep[..., None]                                   # (B, T, D), (B, T, 1)
        if self.pooling == "mean":
            pooled = mean_token(x, body.keep)
        elif self.pooling == "max":
            pooled = x.masked_fill(~keep, torch.finfo(x.dtype).min).amax(1) * keep.any(1)
        else:
            pooled = (first_token if self.pooling == "cls" else last_token)(x, body.keep)
        for project in self.projections:
            pooled = project(pooled)
        return normalize(pooled, dim=-1) if self.normalise else pooled

    def loss(self, body: BodyOutput, labels: Tensor) -> LossAndCount:
        if len(body.x) != 2 * len(labels):
            raise ValueError(f"{len(body.x)} texts and {len(labels)} labels for an embedding head; it learns from pairs, first all the first texts and then all the "
                             "second ones, with one label a pair: use PairBatches")
        a, b = (normalize(part.float(), dim=-1) for part in self(body).chunk(2))  # (B, D) each
        if self.problem == NEGATIVES:
            return cross_entropy(CONTRAST * a @ b.T, torch.arange(len(a), device=a.device), reduction="sum"), len(a)
        return mse_loss((a * b).sum(-1), labels.to(a.dtype), reduction="sum"), len(a)


class ProjectionHead(nn.Module):
    """The pooled vector, taken by a matrix to a space that texts and images share. What it learns from is a batch of both: see nn/two_towers.py."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.project = Linear(c.d_model, c.project_width, bias=False)

    def forward(self, body: BodyOutput) -> Float[Tensor, "B P"]:
        return self.project(body.pooled)

    def loss(self, body: BodyOutput, labels: Tensor) -> LossAndCount:
        raise ValueError("labels for a projection head; it learns from pairs of a text and an image: put both models into TwoTowers")


def reads_pooler(name: str, c: ModelConfig) -> bool:
    """Whether this head, or who asks for none, looks at the pooled first token; the others read every position, and are saved without a pooler."""
    return c.pooler and (name in ("none", "embedding", "masked+next", "choice", "projection") or (name == "sequence" and c.classifier == "plain" and c.pooler_kind != "end"))


def check_head(name: str, c: ModelConfig, labels: list[str] | None) -> None:
    """Raises: ValueError for a head that does not exist, that this body cannot carry, or whose labels are not one name per class."""
    choose("head", name, HEAD_NAMES)
    if name in CLASSIFIES and not labels:
        raise ValueError(f'head="{name}" without labels; it needs one output per label: pass labels=["...", "..."]')
    if name not in CLASSIFIES and labels:
        raise ValueError(f'labels={list(labels)} for head="{name}"; only {" and ".join(CLASSIFIES)} heads have classes: choose one of these, or leave labels out')
    if labels and len(set(labels)) < len(labels):
        raise ValueError(f"labels={list(labels)} name a class twice; each class needs a name of its own: remove the repeated one")
    if c.cross_attention and name not in AFTER_READING:
        raise ValueError(f'head="{name}" on an encoder-decoder, which carries {", ".join(AFTER_READING)}: choose one of these, or load the checkpoint with this head, '
                         "for which the encoder is enough")
    if name == "seq2seq" and not c.cross_attention:
        raise ValueError('head="seq2seq" on a body that is one stack; what is written follows from what an encoder has read: use an encoder-decoder, or another head')
    if name == "causal" and not c.causal:
        raise ValueError('head="causal" on a body with causal=False; each token would see the one it has to predict: use head="masked", or causal=True')
    if name in READS_IDS and c.patch_size is not None:
        raise ValueError(f'head="{name}" on a body of images; it says something of each token of a text: use one of {", ".join(one for one in HEAD_NAMES if one not in READS_IDS)}')
    if name == "projection" and not c.pooler:
        raise ValueError('head="projection" on a body with pooler=False; it reads the pooled vector: use head="embedding", or pooler=True')
    if name == "causal+back" and not getattr(c, "both_ways", False):
        raise ValueError('head="causal+back" on a body that is not two towers; one has to read from the left and one from the right: use a RecurrentConfig with both_ways=True')
    if name == "masked+next" and not c.pooler:
        raise ValueError('head="masked+next" on a body with pooler=False; its second question is asked of the pooled first token: use head="masked", or pooler=True')


def make_head(name: str, c: ModelConfig, tokens: Any, labels: list[str] | None, pooling: str = "mean", normalise: bool = True) -> nn.Module | None:
    """The head called `name`; None for "none". Raises: see `check_head`."""
    from .recurrent_heads import BothWaysHead, ConcatHead  # which are made of the heads of this page
    check_head(name, c, labels)
    n_labels = len(labels or ())
    makers = {
        "none": lambda: None,
        "masked": lambda: VocabularyHead(c, tokens, transform=True, shift=False),
        "masked+next": lambda: VocabularyHead(c, tokens, transform=True, shift=False, next_sentence=True),
        "causal": lambda: VocabularyHead(c, tokens, transform=False, shift=True),
        "causal+back": lambda: BothWaysHead(c, tokens),
        "seq2seq": lambda: VocabularyHead(c, tokens, transform=False, shift=False),
        "replaced": lambda: ReplacedHead(c),
        "sequence": lambda: (ConcatHead if c.classifier_pooling == "concat" else SequenceHead)(c, n_labels),
        "choice": lambda: ChoiceHead(c),
        "token": lambda: TokenHead(c, n_labels),
        "span": lambda: SpanHead(c),
        "embedding": lambda: EmbeddingHead(pooling, normalise),
        "projection": lambda: ProjectionHead(c),
    }
    return makers[name]()
