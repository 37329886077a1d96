"""The loop against a loop written out here, and the promises about what it does and does not touch."""
from __future__ import annotations

import json
import signal
import sys
import types
import weakref
from importlib.metadata import version

import pytest
import torch

import minitransfer as mt
from minitransfer.nn.heads import IGNORE
from minitransfer.objectives import Causal
from minitransfer.training import RandomWindows, held_out_loss, lr_at, param_groups, train
from minitransfer.transfer import add_lora, save_adapter

from .small import Listed, V, batches, bert, gpt, same, settings, weights


class FixedMasks:
    """A masked objective whose labels come with the batch."""

    def __call__(self, model, batch, generator):
        return model.head.loss(model.body(batch["input_ids"]), batch["labels"])


def seen_steps(model, stream, chosen, objective=None, **more) -> list[dict]:
    seen: list[dict] = []
    train(model, stream, objective or Causal(), chosen, on_step=seen.append, **more)
    return seen


def test_the_loop_is_the_loop_of_the_textbook():
    """The same model trained by twelve lines of plain PyTorch, with means instead of sums."""
    chosen, stream = settings(9, weight_decay=0.1, max_grad_norm=0.5, schedule="cosine", warmup=3), batches()
    ours, theirs = gpt(dropout=0.0).double(), gpt(dropout=0.0).double()
    optimizer = torch.optim.AdamW([{"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.1},
                                   {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0}], foreach=False)
    wanted = []
    for step in range(9):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, 9.0, chosen)
        ids = stream[step]["input_ids"]
        logits = theirs(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        wanted.append((loss.item(), torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5).item()))
        optimizer.step()
    got = [(one["loss"], one["grad_norm"]) for one in seen_steps(ours, stream, chosen)]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), atol=1e-6, rtol=1e-6)   # losses are read in single precision
    assert min(norm for _, norm in wanted) > 0.5                                  # every step was clipped


def test_one_batch_of_eight_is_four_of_two():
    """Rows with very different numbers of targets. Gradient norms and losses, not weights: Adam hides the scale of gradients."""
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(V, (3, 8, 13), generator=generator), torch.tensor([12, 1, 3, 2, 1, 9, 1, 5])
    labels = ids.masked_fill(torch.arange(13) >= targets[:, None], IGNORE)
    whole = [{"input_ids": i, "labels": one} for i, one in zip(ids, labels, strict=True)]
    parts = [{"input_ids": i, "labels": one} for b in whole for i, one in zip(b["input_ids"].split(2), b["labels"].split(2), strict=True)]
    runs = [seen_steps(bert(dropout=0.0).double(), Listed(stream), settings(3, micro_batches=k, max_grad_norm=None), FixedMasks())
            for stream, k in ((whole, 1), (parts, 4))]
    for a, b in zip(*runs, strict=True):
        assert a["targets"] == b["targets"] == 34 and a["tokens"] == b["tokens"]
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-6)


def test_a_step_without_any_target_changes_nothing_and_does_not_divide_by_zero():
    stream = Listed([{"input_ids": torch.zeros(2, 5, dtype=torch.long), "labels": torch.full((2, 5), IGNORE)}])
    model = bert(dropout=0.0)
    before = weights(model)
    (one,) = seen_steps(model, stream, settings(1, weight_decay=0.0), FixedMasks())
    assert (one["loss"], one["grad_norm"]) == (0.0, 0.0) and same(before, weights(model))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    runs = []
    for seed in (3, 3, 4):
        model = gpt()
        torch.manual_seed(len(runs))                                             # what the caller did before is of no influence
        train(model, batches(), Causal(), settings(seed=seed))
        runs.append(weights(model))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_every_step_and_micro_batch_draws_other_numbers_for_dropout_and_for_masks():
    drawn: list[list[float]] = [[], []]

    def objective(model, batch, generator):
        drawn[0].append(float(torch.rand(())))
        drawn[1].append(float(torch.rand((), generator=generator)))
        return Causal()(model, batch, generator)

    train(gpt(dropout=0.0), batches(), objective, settings(4, micro_batches=2))
    assert len({*drawn[0], *drawn[1]}) == 16


def test_training_leaves_the_caller_s_random_state_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(gpt(), batches(), Causal(), settings(2))
    assert torch.equal(torch.rand(3), wanted)


def test_evaluation_changes_nothing_about_training():
    """It draws random numbers, asks often, and sees a model in evaluation mode without gradients."""
    modes = []

    def evaluate(model):
        modes.append((model.training, model.blocks[0].training, torch.is_grad_enabled()))
        return {"loss": float(torch.rand(1))}

    watched, alone = gpt(), gpt()
    train(watched, batches(), Causal(), settings(6, eval_every=2), evaluate=evaluate)
    train(alone, batches(), Causal(), settings(6))
    assert modes == [(False, False, False)] * 3 and same(weights(watched), weights(alone)) and not watched.training


def test_evaluation_once_an_epoch_and_at_the_end():
    steps = []
    train(gpt(), batches(n=5), Causal(), settings(9, micro_batches=2), evaluate=lambda model: steps.append(1) or {"loss": 1.0},
          on_step=lambda record: steps.append(0))
    assert steps == [0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1]                      # epochs of 2.5 steps end at 2.5, 5, 7.5 and the run at 9


def test_held_out_loss_is_the_mean_over_targets_and_lets_go_of_its_batches():
    class Watched(Listed):
        most, alive = 0, []

        def __getitem__(self, k):
            batch = {"input_ids": super().__getitem__(k)["input_ids"].clone()}
            self.alive.append(weakref.ref(batch["input_ids"]))
            Watched.most = max(Watched.most, sum(ref() is not None for ref in self.alive))
            return batch

    ragged = [{"input_ids": torch.randint(V, (B, T))} for B, T in ((1, 3), (5, 11), (2, 7), (3, 13)) * 5]
    model = gpt().eval()
    with torch.no_grad():
        metrics = held_out_loss(Watched(ragged), Causal())(model)
        each = torch.cat([-model(b["input_ids"]).logits[:, :-1].log_softmax(-1).gather(2, b["input_ids"][:, 1:, None]).flatten() for b in ragged])
    assert metrics["targets"] == len(each) == 5 * (2 + 50 + 12 + 36)
    assert metrics["loss"] == pytest.approx(each.mean().item(), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(each.mean().exp().item(), rel=1e-5)
    assert Watched.most <= 2                                                     # memory does not grow with the evaluation set


def test_groups_train_at_their_own_rates_and_frozen_parameters_stay_to_the_bit():
    model = gpt()
    model.embed.requires_grad_(False)
    before = weights(model)
    groups = param_groups(model, 0.0, lambda name: 0.25 if name.startswith("blocks.0") else 1.0)
    train(model, batches(), Causal(), settings(1, lr=1e-3, warmup=0), groups=groups)
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in model.named_parameters()}
    assert moved["embed.tokens.weight"] == 0.0
    assert moved["blocks.0.mlp.up_proj.weight"] == pytest.approx(0.25e-3, rel=1e-2)   # the first step of Adam is one learning rate
    assert moved["blocks.1.mlp.up_proj.weight"] == pytest.approx(1e-3, rel=1e-2)


def test_checkpointing_gives_the_same_bits():
    plain, lean = gpt(), gpt()
    train(plain, batches(), Causal(), settings(3))
    train(lean, batches(), Causal(), settings(3, checkpointing=True))
    assert same(weights(plain), weights(lean))


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_best_weights_are_in_the_model_at_the_end(on_disk, tmp_path, capsys):
    values, kept = iter([0.5, 0.7, 0.6, 0.7]), []

    def evaluate(model):
        kept.append(weights(model))
        return {"accuracy": next(values)}

    model = gpt()
    result = train(model, batches(), Causal(), settings(8, eval_every=2, best="accuracy higher", progress=True), evaluate=evaluate,
                   out=tmp_path / "run" if on_disk else None)
    assert result.best == {"step": 4, "metric": "accuracy", "better": "higher", "value": 0.7} and result.metrics == {"accuracy": 0.7}
    assert same(weights(model), kept[1])
    said = capsys.readouterr().err
    assert "best held-out accuracy, higher is better" in said and "kept the weights of step 4: held-out accuracy 0.7000 (higher is better)" in said
    if on_disk:
        assert same(weights(mt.Model.from_pretrained(tmp_path / "run" / "best")), kept[1])
        assert same(weights(mt.Model.from_pretrained(tmp_path / "run" / "model")), kept[1])


def test_patience_ends_the_run():
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    result = train(gpt(), batches(), Causal(), settings(20, eval_every=2, best="loss lower", patience=2), evaluate=lambda model: {"loss": next(losses)})
    assert (result.stopped, result.steps, result.best["step"]) == ("patience", 8, 4)


@pytest.mark.parametrize(("limit", "steps"), [({"epochs": 2}, 14), ({"tokens": 100}, 3), ({"steps": 2, "epochs": 9}, 2)])
def test_limits(limit, steps):
    """Seven batches an epoch, 39 tokens a batch."""
    result = train(gpt(), batches(), Causal(), settings(**({"steps": None} | limit)))
    assert (result.steps, result.tokens, result.stopped) == (steps, 39 * steps, next(iter(limit)))


def test_a_limit_in_minutes_is_kept_by_the_clock():
    result = train(gpt(), batches(), Causal(), settings(None, minutes=0.005))
    assert result.stopped == "minutes" and result.steps >= 1 and result.seconds >= 0.3


def test_padding_is_not_counted_as_tokens():
    batch = {"input_ids": torch.zeros(2, 5, dtype=torch.long), "attention_mask": torch.tensor([[True] * 5, [True] * 2 + [False] * 3])}
    assert train(gpt(), Listed([batch]), Causal(), settings(2)).tokens == 14


def test_the_log_the_manifest_and_the_files(tmp_path):
    out = tmp_path / "run"
    result = train(gpt(), batches(), Causal(), settings(7, log_every=3, eval_every=5), out=out, evaluate=lambda model: {"loss": 1.5}, data={"corpus": "abc"})
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [one["step"] for one in lines] == [3, 5, 6, 7, 7] and [("evaluation" in one) for one in lines] == [False, True, False, False, True]
    assert {"loss", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second", "mfu", "memory"} <= lines[0].keys()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["data"]["corpus"] == "abc" and len(manifest["data"]["batches"]) == 16
    assert manifest["settings"]["steps"] == 7 and manifest["precision"] == "fp32" and manifest["versions"]["torch"] == version("torch")
    assert mt.ModelConfig.from_dict(manifest["model"]["config"]) == gpt().config
    assert manifest["result"]["stopped"] == "steps" and manifest["result"]["metrics"] == {"loss": 1.5}
    assert sorted(path.name for path in out.iterdir()) == ["last", "log.jsonl", "manifest.json", "model"]


def test_the_logged_loss_is_the_mean_over_the_targets_since_the_last_line():
    each: list[dict] = []
    result = train(gpt(), batches(), Causal(), settings(4, log_every=4), on_step=each.append)
    mean = sum(one["loss"] * one["targets"] for one in each) / sum(one["targets"] for one in each)
    assert result.history[0]["loss"] == pytest.approx(mean) and result.history[0]["loss"] != each[-1]["loss"]


def test_nothing_is_logged_elsewhere_unless_it_is_named(tmp_path, monkeypatch):
    """TensorBoard by name only: without the package there is one clear error, with it the same numbers as in the log."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"tensorboard=True, and the tensorboard package is not installed.*pip install tensorboard"):
        train(gpt(), batches(), Causal(), settings(1, tensorboard=True), out=tmp_path / "a")
    with pytest.raises(ValueError, match="tensorboard=True without a run folder"):
        train(gpt(), batches(), Causal(), settings(1, tensorboard=True))
    written = []
    writer = types.SimpleNamespace(add_scalar=lambda *args: written.append(args), close=lambda: written.append("closed"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=lambda folder: writer))
    result = train(gpt(), batches(), Causal(), settings(2, tensorboard=True, log_every=2), out=tmp_path / "b", evaluate=lambda model: {"loss": 7.0})
    assert ("train/loss", result.history[0]["loss"], 2) in written and ("held-out/loss", 7.0, 2) in written and written[-1] == "closed"


def test_arguments_that_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match="resume=True without a run folder"):
        train(gpt(), batches(), Causal(), settings(), resume=True)
    with pytest.raises(ValueError, match="best='loss lower' without an evaluation"):
        train(gpt(), batches(), Causal(), settings(best="loss lower"))
    with pytest.raises(ValueError, match="there is no 'accuracy'; the evaluation gives loss, f1"):
        train(gpt(), batches(), Causal(), settings(1, best="accuracy higher"), evaluate=lambda model: {"loss": 1.0, "f1": 0.5})
    model = gpt()
    add_lora(model, r=2)
    with pytest.raises(ValueError, match=r"have no name in gpt2 files; .*: merge or remove adapters first, or save them with save_adapter"):
        train(model, batches(), Causal(), settings(), out=tmp_path / "lora")
    assert not (tmp_path / "lora").exists() and train(model, batches(), Causal(), settings(1), out=tmp_path / "lora", save=save_adapter).steps == 1
    with pytest.raises(ValueError, match="no family's files can describe this architecture"):
        train(gpt(embed_norm=True), batches(), Causal(), settings(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_random_windows_are_windows_of_the_stream_and_a_function_of_the_number():
    ids = torch.arange(101, dtype=torch.int32).numpy().astype("uint16")
    windows = RandomWindows(ids, length=7, batch_size=5, seed=1)
    batch = windows[3]["input_ids"]
    assert batch.shape == (5, 7) and batch.dtype == torch.int64 and len(windows) == 2
    assert torch.equal(batch, batch[:, :1] + torch.arange(7))
    assert torch.equal(batch, RandomWindows(ids, 7, 5, seed=1)[3]["input_ids"]) and not torch.equal(batch, windows[4]["input_ids"])
    starts = torch.cat([windows[k]["input_ids"][:, 0] for k in range(400)])
    assert starts.min() == 0 and starts.max() == 94                              # the first window and the last
    with pytest.raises(ValueError, match="a stream of 101 tokens; a window has 102"):
        RandomWindows(ids, 102, 1)


def test_ctrl_c_finishes_the_step_saves_and_returns(tmp_path, ctrl_c):
    handler = signal.getsignal(signal.SIGINT)
    whole, model = gpt(), gpt()
    train(whole, batches(), Causal(), settings(9))

    def press(record):
        if record["step"] == 4:
            ctrl_c()

    result = train(model, batches(), Causal(), settings(9), out=tmp_path / "run", on_step=press)
    assert (result.stopped, result.steps) == ("interrupted", 4) and not (tmp_path / "run" / "model").exists()
    assert signal.getsignal(signal.SIGINT) is handler
    again = gpt(seed=7)
    result = train(again, batches(), Causal(), settings(9), out=tmp_path / "run", resume=True)
    assert result.stopped == "steps" and same(weights(again), weights(whole))


def test_a_second_ctrl_c_does_not_wait(ctrl_c):
    def press(record):
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train(gpt(), batches(), Causal(), settings(9), on_step=press)


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert train(gpt(), batches(), Causal(), settings(3), on_step=lambda record: ctrl_c()).stopped == "steps"
