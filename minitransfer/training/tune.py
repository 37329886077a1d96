"""A run in which a strategy says what trains, at which rate and when: what `finetune` and `adapt` share."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from ..nn.model import Model
from ..objectives import Objective
from ..transfer.base import Strategy, nothing_else
from ..transfer.forgetting import Keep
from ..transfer.groups import TrainableReport, set_trainable, trainable_report
from ..transfer.peft_files import carried, check_adapter, save_adapter
from ..transfer.plan import Plan, planned
from ..weights.files import read_json, recover
from ..weights.save import check_names
from . import ranks
from .batches import Batches
from .evaluate import Evaluation
from .loop import train
from .optim import param_groups
from .run import TrainResult
from .settings import TrainSettings
from .state import STATE, Save


def as_it_is(model: Model) -> Strategy:
    """What trains in the model now goes on training; saved as the adapter it carries, or whole."""
    merged = any(getattr(module, "merged", False) for module in model.modules())
    return Strategy("as it is", trains=lambda model: [name for name, p in model.named_parameters() if p.requires_grad],
                    save=save_adapter if carried(model) and not merged else Model.save_pretrained)


def check_save(model: Model, strategy: Strategy) -> None:
    """Raises: ValueError now, rather than after hours at the first save, for a model that the strategy's files cannot hold."""
    if strategy.save is save_adapter:
        check_adapter(model)
    elif strategy.save is Model.save_pretrained:
        check_names(model)


def follow(model: Model, strategy: Strategy, steps_per_epoch: float, start: int, trained: set[str]) -> Callable[[dict], None] | None:
    """What freezes and unfreezes during the run, for `on_step`; the state of step `start` is set at once. `trained` gathers what trained at some step."""
    if strategy.now is None:
        return None
    for step in range(start):
        trained.update(strategy.at(model, step / steps_per_epoch))
    set_trainable(model, strategy.at(model, start / steps_per_epoch))

    def after(record: dict) -> None:
        trained.update(name for name, p in model.named_parameters() if p.requires_grad)
        set_trainable(model, strategy.at(model, record["step"] / steps_per_epoch))
    return after


def steps_done(out: Path | None, resume: bool) -> int:
    """The step from which a run goes on."""
    def read() -> int:
        if not resume or out is None or not recover(out / "last").is_dir():
            return 0
        return int(read_json(out / "last" / STATE)["progress"]["step"])
    return ranks.from_first(read)


def once(streams: Sequence[Batches]) -> Iterator[dict[str, Tensor]]:
    """Every batch of one epoch of each stream."""
    return (stream[k] for stream in streams for k in range(len(stream)))


def name_base(model: Model, trained: TrainableReport, out: Path | None) -> None:
    """A body that was trained is no longer the checkpoint it came from: an adapter put on it later names the folder where it is now, or none."""
    if model.load_report is not None and any(row.trainable for row in trained.rows if row.group not in ("head", "pooler")) and not carried(model):
        saved = None if out is None else out / "model"
        model.load_report.source = str(saved) if saved is not None and saved.is_dir() else ""


def tune(model: Model, batches: Batches, objective: Objective, settings: TrainSettings, strategy: Strategy, *, beside: Save, data: dict[str, str],
         measured: Sequence[Batches] = (), keep: Keep | None = None, out: str | Path | None = None, evaluate: Evaluation | None = None, resume: bool = False,
         on_step: Callable[[dict], None] | None = None) -> tuple[TrainableReport, Plan | None, TrainResult]:
    """Apply a strategy to a model with its head in place, and train.

    Args:    beside: writes what stands in a saved folder beside the strategy's files. measured: the batches of the evaluation.
             keep: of transfer.forgetting. The others are those of `train`.
    Returns: the table of what trained, of a run with a folder the plan it followed, and what `train` returns.
    Raises:  ValueError for a model that could not be saved, before anything is trained; and what `train` raises.
    """
    if settings.shard and ranks.world() > 1 and (keep is not None or strategy.now is not None or strategy.during is not nothing_else):
        raise ValueError(f"shard=True with strategy {strategy.name!r}{'' if keep is None else ' and keep'}; what compares, freezes or replaces weights during the run needs "
                         "them whole: leave shard out, or choose a strategy such as full or lora without keep")
    if settings.graphs and (strategy.now is not None or strategy.during is not nothing_else):
        raise ValueError(f"graphs=True with strategy {strategy.name!r}; a graph repeats what it was made of, and this strategy freezes or replaces parts during the run: "
                         "leave graphs out, or choose a strategy such as full or lora")
    report = strategy.apply(model, settings.seed)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_save(model, strategy)
    groups = param_groups(model, settings.weight_decay, strategy.rate(model))
    trained: set[str] = set()
    per_epoch = len(batches) / settings.micro_batches
    phase = follow(model, strategy, per_epoch, steps_done(folder, resume), trained)

    acts = [act for act in (phase, on_step) if act is not None]

    def each_step(record: dict) -> None:
        for act in acts:
            act(record)

    def save(tuned: Model, place: Path) -> None:
        strategy.save(tuned, place)
        beside(tuned, place)

    with strategy.during(model, once([batches, *measured])):
        wanted = strategy.objective(model, objective)
        result = train(model, batches, wanted if keep is None else keep(model, wanted), settings, out=folder, evaluate=evaluate, groups=groups, resume=resume,
                       on_step=each_step if acts else None, save=save, data={**data, "strategy": strategy.name})
        followed = None if folder is None or result.steps == 0 else planned(model, strategy, settings, result.steps, result.steps / per_epoch)
        note = strategy.left_out(model, trained, result.steps / per_epoch) if phase is not None else ""
    if phase is not None:
        report = trainable_report(model, trained, note)
    name_base(model, report, result.out)
    return report, followed, result
