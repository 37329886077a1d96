"""Learning rates against the reference library's schedulers and the papers' formulas; the ends of runs."""
import math

import pytest
import torch
import transformers

from minitransfer.training import TrainSettings, lr_at
from minitransfer.training.schedule import Horizon


def rates(steps: int, **settings) -> list[float]:
    chosen = TrainSettings(steps=steps, **settings)
    return [lr_at(step, float(steps), chosen) for step in range(steps)]


def theirs(name: str, steps: int, warmup: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup"), [(101, 13), (53, 0), (37, 1)])
def test_the_decay_is_that_of_the_reference_library(name, steps, warmup):
    ours, reference = rates(steps, lr=3e-4, schedule=name, warmup=warmup), theirs(name, steps, warmup, 3e-4)
    assert ours[warmup:] == pytest.approx(reference[warmup:], abs=1e-12)
    assert ours[:warmup] == pytest.approx([*reference[1:warmup], 3e-4][:warmup], abs=1e-12)   # ours starts one step further up, not at a rate of 0


def test_a_warm_up_given_as_a_fraction_has_as_many_steps_as_the_reference_gives_it():
    assert rates(101, lr=1.0, warmup=0.1) == rates(101, lr=1.0, warmup=math.ceil(0.1 * 101))


def test_constant_stays_at_the_peak_after_its_warm_up():
    assert rates(7, lr=2.0, schedule="constant", warmup=2) == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_the_cosine_ends_at_min_lr():
    ours = rates(2000, lr=1e-3, schedule="cosine", warmup=100, min_lr=0.1)
    assert ours[100:] == pytest.approx([1e-4 + 0.5 * (1 + math.cos(math.pi * (s - 100) / 1900)) * (1e-3 - 1e-4) for s in range(100, 2000)], rel=1e-12)


@pytest.mark.parametrize("steps", [100, 1000, 770])
def test_the_slanted_triangle_is_equation_3(steps):
    cut_frac, ratio, cut = 0.1, 32, math.floor(steps * 0.1)
    wanted = []
    for t in range(steps):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        wanted.append(0.01 * (1 + p * (ratio - 1)) / ratio)
    assert rates(steps, lr=0.01, schedule="slanted", warmup=0.1) == pytest.approx(wanted, abs=1e-12)


def test_the_slanted_triangle_never_goes_below_its_foot():
    assert min(rates(105, lr=1.0, schedule="slanted", warmup=0.1)) == 1 / 32      # equation 3 as printed gives negative rates here: cut is rounded down


@pytest.mark.parametrize("schedule", ["linear", "cosine", "slanted"])
@pytest.mark.parametrize("limits", [{"tokens": 1000}, {"minutes": 0.5}, {"steps": 10_000, "tokens": 1000}])
def test_the_schedule_lands_where_the_first_limit_is(schedule, limits):
    """Steps of ten tokens and 0.3 seconds: both limits are 100 steps away."""
    chosen = TrainSettings(lr=1.0, schedule=schedule, warmup=0.1, **limits)
    horizon, seen, step = Horizon.of(chosen, batches_per_epoch=7), [], 0
    while not horizon.reached(step, 10 * step, 0.3 * step):
        seen.append(lr_at(step, horizon.total_steps(step, 10 * step, 0.3 * step), chosen))
        step += 1
    wanted = rates(100, lr=1.0, schedule=schedule, warmup=0.1)
    assert step == 100
    assert seen[1:] == pytest.approx(wanted[1:], abs=1e-9)
    assert seen[0] <= wanted[0]                  # before the first step the length of such a run is not known


def test_whichever_limit_comes_first_ends_the_run():
    horizon = Horizon.of(TrainSettings(steps=9, epochs=2, tokens=500, minutes=1), batches_per_epoch=7)
    assert horizon.reached(8, 499, 59.9) is None
    assert horizon.reached(9, 499, 59.9) == "steps"
    assert horizon.reached(8, 500, 59.9) == "tokens"
    assert horizon.reached(8, 499, 60.0) == "minutes"
    assert Horizon.of(TrainSettings(epochs=1.5, micro_batches=2), batches_per_epoch=7).reached(6, 0, 0.0) == "epochs"    # ceil(1.5 * 7 / 2) = 6


@pytest.mark.parametrize(("given", "message"), [
    ({}, "no limit for this run.*give steps, epochs, tokens or minutes"),
    ({"steps": 0}, "steps=0; it has to be above zero"),
    ({"steps": 1, "lr": -1.0}, "lr=-1.0; it has to be above zero"),
    ({"steps": 1, "lr": float("inf")}, "lr=inf; it has to be above zero, and finite"), ({"minutes": float("nan")}, "minutes=nan; it has to be above zero"),
    ({"steps": 1, "weight_decay": float("nan")}, "weight_decay=nan; neither can be negative or infinite"),
    ({"steps": 1, "beta2": 1.0}, "beta2=1.0; it is a fraction"),
    ({"steps": 1, "min_lr": 1.5}, "min_lr=1.5; it is a fraction"),
    ({"steps": 1, "warmup": -0.1}, "warmup=-0.1.*neither can be negative"),
    ({"steps": 1, "schedule": "triangle"}, "schedule='triangle'; it is one of 'linear'"),
    ({"steps": 1, "optimizer": "lion"}, "optimizer='lion'; it is one of 'adamw', 'muon'"),
    ({"steps": 1, "optimizer": "muon", "shard": True}, 'optimizer="muon" with shard=True; Muon steps a matrix as a whole, .*: leave shard out'),
    ({"steps": 1, "precision": "fp8"}, "precision='fp8'; it is one of 'auto'"),
    ({"steps": 1, "best": "loss"}, "best='loss'; it is a metric and the better direction"),
    ({"steps": 1, "patience": 2}, "patience=2 without best"),
])
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**given)


def test_an_unknown_setting_is_answered_with_the_nearest():
    with pytest.raises(KeyError, match=r"no setting is called 'learning_rat'.*leave it out"):
        TrainSettings.from_dict({"steps": 1, "learning_rat": 1e-3})
    with pytest.raises(KeyError, match="did you mean 'warmup'"):
        TrainSettings.from_dict({"steps": 1, "warm_up": 3})
