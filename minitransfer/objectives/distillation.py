"""Learn from a teacher's answers instead of the labels alone."""
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div

from ..nn.heads import IGNORE, BodyOutput, VocabularyHead
from ..nn.model import Model
from ..nn.vocabulary import next_tokens
from .base import inputs_of, tokens_of
from .masked import Masked


def soft_targets(student: Float[Tensor, "N C"], teacher: Float[Tensor, "N C"], temperature: float) -> Float[Tensor, ""]:
    """T^2 sum_n KL(softmax(teacher_n / T) || softmax(student_n / T)), in nats; T^2 keeps the size of the gradient when T grows.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    p, q = (t.float().div(temperature).log_softmax(-1) for t in (teacher, student))
    return temperature**2 * kl_div(q, p, reduction="sum", log_target=True)


def answers(model: Model, body: BodyOutput, labels: Tensor) -> Float[Tensor, "N C"]:
    """The logits for each of the N targets that the labels name."""
    if isinstance(model.head, VocabularyHead):
        wanted = (next_tokens(labels, body) if model.head.shift else labels) != IGNORE
        return model.head.logits(body.x[wanted])
    return model.head(body)[labels != IGNORE]


class Distilled:
    """soft T^2 KL(teacher || student) + hard L_labels + cosine (1 - cos(h_student, h_teacher)), h: the last states of all tokens.

    Args:   teacher: frozen and in evaluation mode here; its head answers the same question as the student's.
            masked: hides tokens of pretraining batches; None: the batch's own labels, or for a causal head its ids.
            soft, hard, cosine: the weights of the three terms, each a mean: over targets, targets, and tokens.
    Source: Sanh et al. 2019, "DistilBERT, a distilled version of BERT", section 2, with the weights of its released training (5, 2, 1; T = 2).
    Raises: ValueError for a temperature or weight out of range, heads that do not fit, or a cosine between states of different widths.
    """

    name = "distilled"

    def __init__(self, teacher: Model, masked: Masked | None = None, temperature: int | float = 2.0, soft: int | float = 5.0, hard: int | float = 2.0,
                 cosine: int | float = 1.0):
        if temperature <= 0 or min(soft, hard, cosine) < 0:
            raise ValueError(f"temperature={temperature}, soft={soft}, hard={hard}, cosine={cosine}; "
                             "a temperature is above 0 and a weight at least 0: correct it")
        self.teacher, self.masked, self.temperature = teacher.eval().requires_grad_(False), masked, temperature
        self.soft, self.hard, self.cosine = soft, hard, cosine

    def fit(self, student: Model) -> None:
        ours, theirs = (f"{m.head_name!r} with {m.config.vocab_size} tokens, labels {m.labels}" for m in (student, self.teacher))
        if ours != theirs:
            raise ValueError(f"a student with the head {ours} and a teacher with {theirs}; both must answer the same question: give them one head and vocabulary")
        if self.cosine and student.config.d_model != self.teacher.config.d_model:
            raise ValueError(f"states of width {student.config.d_model} and {self.teacher.config.d_model}; an angle needs one width: "
                             "set cosine=0.0, or make the student with `student`")

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        self.fit(model)
        keep, ids = tokens_of(batch), batch["input_ids"]
        ids, labels = (ids, batch.get("labels", ids)) if self.masked is None else self.masked.draw(ids, keep, generator)
        inputs = inputs_of(batch, ids)
        body = model.body(**inputs)
        with torch.no_grad():
            taught = self.teacher.body(**inputs)
            right = answers(self.teacher, taught, labels)
        hard, n = model.head.loss(body, labels)
        angle = 1 - cosine_similarity(body.x[keep].float(), taught.x[keep].float(), dim=-1).mean() if self.cosine else 0.0
        return self.soft * soft_targets(answers(model, body, labels), right, self.temperature) + self.hard * hard + self.cosine * n * angle, n


def kept_blocks(depth: int, n: int) -> Int[Tensor, "n"]:
    """Which blocks of a teacher a student of n blocks starts from: evenly, the first and the last among them (6 of 12: 0 2 4 7 9 11)."""
    return torch.linspace(0, depth - 1, n).round().long() if n > 1 else torch.tensor([0])
