"""Steps that CUDA graphs can hold: nothing in them asks the device for a number. Tensors on `meta` have no numbers, so whatever asks fails.

Captured and replayed they are the steps of the plain loop. On a CPU `FakeGraph` stands for a graph: what is not a tensor is frozen in it.
"""
import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import minitransfer as mt
from minitransfer.nn.heads import ANY_CLASS, NEGATIVES, REGRESSION
from minitransfer.objectives import Causal, Masked
from minitransfer.ops import AdamW, adamw
from minitransfer.tasks.base import supervised
from minitransfer.training import NonFiniteError, captured, loop, param_groups, precision, throughput, train
from minitransfer.training.captured import Captured, check_capture, packed, widened
from minitransfer.training.precision import Precision
from minitransfer.training.ranks import Shared, alone
from minitransfer.training.run import Run
from minitransfer.training.schedule import Horizon
from minitransfer.training.step import Step
from minitransfer.training.tune import tune
from minitransfer.transfer.strategies import strategy

from .graphs import FakeGraph
from .small import Listed, bert, same, settings, weights

ENCODER = mt.ModelConfig(vocab_size=8192, d_model=24, n_layers=2, n_heads=3, d_ff=41, max_len=64)
DECODER = replace(ENCODER, norm_position="pre", causal=True, n_token_types=0, embed_norm=False, final_norm=True, pooler=False)
ROPED = replace(DECODER, norm="rms", activation="silu", gated=True, positions="none", rotary=mt.config.Rotary(), n_kv_heads=1, head_width=8, window=5)
LABELS = ["a", "b", "c"]
HEADS = {"sequence": None, "multilabel": ANY_CLASS, "regression": REGRESSION, "token": None, "span": None, "embedding": None, "negatives": NEGATIVES}


@pytest.fixture(scope="module")
def tok():
    return mt.Tokenizer.from_pretrained("mini-bert")


def labelled(kind, T, seed, B=6, V=43):
    """Rows with padding on the right and the labels of a task; no row fills the width."""
    new = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, T, (B,), generator=new)
    labels = {"multilabel": lambda: torch.randint(2, (B, 3), generator=new).float(), "regression": lambda: torch.randn(B, 3, generator=new),
              "token": lambda: torch.randint(3, (B, T), generator=new).masked_fill(torch.arange(T) >= lengths[:, None] - 1, -100),
              "span": lambda: torch.randint(2, (B, 2), generator=new), "embedding": lambda: torch.rand(B // 2, generator=new) * 2 - 1,
              "negatives": lambda: torch.zeros(B // 2)}.get(kind, lambda: torch.randint(3, (B,), generator=new))
    return {"input_ids": torch.randint(V, (B, T), generator=new), "attention_mask": (torch.arange(T) < lengths[:, None]).long(), "labels": labels()}


def tuned(kind, **changes):
    """A small model with the head of a task, without dropout, whose draws no stand-in repeats as a graph does."""
    head = {"multilabel": "sequence", "regression": "sequence", "negatives": "embedding"}.get(kind, kind)
    model = bert(dropout=0.0, mlp_dropout=0.0, n_layers=2, **changes).set_head(head, LABELS if head in ("sequence", "token") else None)
    if HEADS[kind] is not None:
        model.head.use(HEADS[kind])
    return model


def made(config, tok):
    """A model, its objective and a batch of packed rows."""
    model = mt.Model(config, "causal" if config.causal else "masked").train()
    ids = torch.randint(5, 8192, (7, 31), generator=torch.Generator().manual_seed(1))
    return model, Causal() if config.causal else Masked(tok), {"input_ids": ids, "document_ids": torch.arange(31).expand(7, -1) // 11 - (torch.arange(31) > 28).long() * 3}


def captured_of(model, objective, kind=Captured, name="fp32"):
    groups, chosen = param_groups(model, 0.1), settings()
    run = Run(Shared(model, groups, alone, lambda: nullcontext(model)), AdamW([dict(group) for group in groups], lr=0.01), Precision(name, model), chosen,
              Horizon.of(chosen, 5), {}, None, None, mt.Model.save_pretrained)
    return kind(run, objective, alone)


@pytest.fixture
def anywhere(monkeypatch):
    """Captured steps on a device that is no GPU."""
    class Generator(torch.Generator):
        def __new__(cls, device="cpu"):
            return super().__new__(cls, "cpu" if torch.device(device).type == "meta" else device)

    monkeypatch.setattr(captured, "check_capture", lambda model, objective: None)
    monkeypatch.setattr(torch, "Generator", Generator)
    fused = adamw.adamw                                                          # PyTorch's has no meta kernel for a rate that is a tensor
    monkeypatch.setattr(adamw, "adamw", lambda *given, lr, **named: fused(*given, lr=0.01 if torch.is_tensor(lr) and lr.is_meta else lr, **named))
    return monkeypatch


@pytest.fixture
def faked(anywhere):
    """Runs with graphs=True on this CPU."""
    anywhere.setattr(captured, "Graph", FakeGraph)
    anywhere.setattr(FakeGraph, "replays", 0)
    anywhere.setattr(loop, "make_optimizer", lambda groups, chosen: AdamW([dict(group) for group in groups], lr=chosen.lr, betas=(chosen.beta1, chosen.beta2), eps=chosen.eps))
    return anywhere


def whole_step(model, objective, batch):
    """Forward, backward, norm, clip factor and update on `meta`."""
    model, batch = model.to("meta"), {name: t.to("meta") for name, t in batch.items()}
    model.packs = True                                                           # as on a GPU, where padding is dropped unless a graph forbids it
    step = captured_of(model, objective)
    loss, count = step(batch, torch.Generator())
    numbers = step.update(loss, count)
    assert loss.device == count.device == numbers.device == torch.device("meta") and numbers.shape == (3,) and model.packs
    assert all(p.grad is not None for p in model.head.parameters() if p.requires_grad)


@pytest.mark.parametrize("config", [ENCODER, DECODER, ROPED], ids=["encoder", "decoder", "roped"])
def test_a_whole_step_of_pretraining_asks_for_no_number(config, tok, anywhere):
    whole_step(*made(config, tok))


@pytest.mark.parametrize("kind", HEADS)
def test_a_whole_step_of_fine_tuning_asks_for_no_number(kind, anywhere):
    model = tuned(kind)
    whole_step(model, supervised, widened(model, labelled(kind, 13, 1)))


@pytest.mark.parametrize("kind", HEADS)
def test_nor_does_one_without_most_of_its_padding(kind, anywhere):
    """As on a GPU; blocks see a number of places that the host has found in the batch."""
    anywhere.setattr(captured, "APART", 8)
    model, seen = tuned(kind), []
    model.packs, batch = True, labelled(kind, 13, 1)
    model.blocks[1].register_forward_hook(lambda module, given, made: seen.append(made[0].shape[:2]))
    whole_step(model, supervised, widened(model, batch))
    n = int(batch["attention_mask"].sum())
    assert seen == [(1, -(-n // 8) * 8)] and seen[0][1] < 6 * 16


def test_the_vocabulary_reads_rows_for_what_is_packed_and_not_for_padding(tok, anywhere):
    anywhere.setattr(captured, "APART", 8)
    model, objective, batch = bert(vocab_size=8192), Masked(tok), labelled("masked", 13, 1, B=50)
    for packs, positions in ((True, -(-int(batch["attention_mask"].sum()) // 32) * 32), (False, 50 * 16)):
        model.packs = True
        batch = widened(model, batch)
        model.packs = packs                                                      # changed since: what is asked now counts
        with captured.fixed_shapes(model, objective, batch):
            assert model.packs is packs and model.head.budget == objective.most_targets(positions)


@pytest.mark.parametrize("n, length", [(0, 256), (1, 256), (256, 256), (257, 512), (2047, 2048), (2049, 2304), (4097, 4608), (8200, 9216), (11999, 12000)])
def test_places_are_all_tokens_and_then_padding_up_to_few_lengths(n, length):
    keep = torch.zeros(12000, dtype=torch.bool)
    keep[torch.randperm(12000, generator=torch.Generator().manual_seed(n))[:n]] = True
    places = packed(keep.view(40, 300))
    assert len(places) == length == len(places.unique()) and torch.equal(places[:n], keep.nonzero()[:, 0]) and not keep[places[n:]].any()


@pytest.mark.parametrize("fault", [lambda x: x if float(x.sum()) > 0 else -x, lambda x: x[x > 0].sum() + x, lambda x: x + len((x > 0).nonzero())])
def test_what_asks_for_a_number_is_noticed(fault, tok, anywhere):
    model, objective, batch = made(ENCODER, tok)
    model.blocks[1].mlp.register_forward_hook(lambda module, given, out: fault(out))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        whole_step(model, objective, batch)


@pytest.mark.parametrize("fault", ["clip", "count", "packs"])
def test_what_asks_for_a_number_in_the_update_or_in_a_head_is_noticed(fault, anywhere):
    model = tuned("sequence")
    if fault == "clip":
        anywhere.setattr(captured, "clip_factor", lambda norm, targets, most: min(most, float(norm)))
    elif fault == "count":
        model.head.loss = lambda body, labels: (model.head(body).sum(), int((labels >= 0).sum()))
    else:
        anywhere.setattr(captured, "fixed_shapes", lambda *given: torch.enable_grad())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        whole_step(model, supervised, labelled("sequence", 13, 1))


@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["masked", "causal"])
def test_a_fixed_budget_gives_the_same_loss_and_gradients(config, tok, anywhere):
    model, objective, batch = made(replace(config, dropout=0.0, mlp_dropout=0.0), tok)
    loss, n = objective(model, batch, torch.Generator().manual_seed(3))
    want = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    ours, count = captured_of(model, objective)(batch, torch.Generator().manual_seed(3))
    assert int(count) == n and model.head.budget is None
    torch.testing.assert_close(ours, loss.detach(), rtol=1e-6, atol=1e-5)
    for p, grad in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-5)


def test_the_budget_of_the_masked_is_never_too_small(tok):
    objective, n = Masked(tok), 7 * 4099
    drawn = [int((objective.draw(torch.full((7, 4099), 99), torch.ones(7, 4099, dtype=torch.bool), torch.Generator().manual_seed(k))[1] >= 0).sum()) for k in range(50)]
    assert max(drawn) <= objective.most_targets(n) <= 1.09 * n * 0.15 and objective.most_targets(3) == 3 and Causal().most_targets(n) == n


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_padding_of_buckets_changes_no_number(kind, side):
    """Whatever stands before it: the same loss, count and gradients, in widths of few kinds."""
    model, batch = tuned(kind, vocab_size=47), labelled(kind, 13, 2)
    if side == "left":
        batch = {name: t.flip(1) if name in ("input_ids", "attention_mask") or kind == "token" else t for name, t in batch.items()}
        batch |= {"labels": 12 - batch["labels"]} if kind == "span" else {}
    wide, found = widened(model, batch), []
    assert wide["input_ids"].shape == (6, 16) and wide["labels"].shape == ((6, 16) if kind == "token" else batch["labels"].shape)
    for one in (batch, wide, wide | {"input_ids": wide["input_ids"].masked_fill(wide["attention_mask"] == 0, 46)}):
        loss, n = supervised(model, one, torch.Generator())
        found.append((loss.detach(), torch.as_tensor(n), *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)))
    for one in found[1:]:
        for ours, wanted in zip(one, found[0], strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=2e-5)


def test_buckets_end_where_the_model_does_and_full_rows_stay_as_they_are():
    model = tuned("multilabel")
    assert [widened(model, labelled("multilabel", T, 1))["input_ids"].shape[1] for T in (3, 8, 9, 25, 31)] == [8, 8, 16, 31, 31]
    assert widened(model, labelled("multilabel", 3, 1))["labels"].shape == (6, 3)                        # three classes are no three tokens
    full = {"input_ids": torch.zeros(2, 13, dtype=torch.long)}
    assert widened(model, full) is full


def runs_of(kind, changes, stream, folder, faked, **more):
    """Weights, log and the steps at which numbers were read, of a run with graphs and of one without."""
    found, read = [], Run.read
    for graphs in (True, False):
        model, seen = tuned(kind) if kind in HEADS else bert(dropout=0.0, mlp_dropout=0.0, vocab_size=8192), []
        faked.setattr(Run, "read", lambda self, *given, seen=seen: (seen.append(self.progress.step) if self.unread else None, read(self, *given)))
        train(model, stream, more.get("objective", supervised), settings(graphs=graphs, **changes), out=folder / str(graphs), evaluate=lambda model: {"loss": 1.0})
        lines = [json.loads(line) for line in (folder / str(graphs) / "log.jsonl").read_text().splitlines()]
        found.append((weights(model), [{name: one.get(name) for name in ("step", "loss", "lr", "grad_norm", "targets", "tokens", "evaluation")} for one in lines], seen))
    return found


EXACT = {"lr": 2**-6, "warmup": 8, "schedule": "constant"}                       # rates that single precision holds


@pytest.mark.parametrize("kind", ["sequence", "regression", "token", "span", "embedding"])
def test_replayed_steps_are_those_of_the_plain_loop_to_the_bit(kind, tmp_path, faked):
    """Two widths, a last batch with fewer rows, two batches a step, every step clipped, rates that rise. Numbers are read when something is written."""
    stream = Listed([labelled(kind, T, seed, B) for seed, (T, B) in enumerate([(8, 6), (16, 6), (16, 4)])])
    changes = {"steps": 8, "micro_batches": 2, "max_grad_norm": 0.001, "log_every": 3, "eval_every": 4, "save_every": 7, **EXACT}
    (ours, log, read), (theirs, wanted, every) = runs_of(kind, changes, stream, tmp_path, faked)
    assert same(ours, theirs) and log == wanted
    assert all(one["grad_norm"] is None or one["grad_norm"] > 0.001 for one in log) and len({one["lr"] for one in log if one["lr"]}) == 3
    assert read == [3, 4, 6, 7, 8] and every == list(range(1, 9)) and FakeGraph.replays == 16 + 8 - 5


@pytest.mark.parametrize("kind", ["sequence", "token", "masked"])
def test_packed_steps_replayed_are_packed_and_padded_ones(kind, tok, faked):
    """Full batches and those with texts of one token, of two widths; the packed row has lengths of two kinds."""
    faked.setattr(captured, "APART", 24)
    seen, stream = [], []
    for seed, (T, lengths) in enumerate([(8, [1, 3, 8, 2]), (16, [16, 1, 5, 9, 1]), (8, [8, 8, 8, 8]), (16, [2, 16, 7, 1, 8]), (8, [5, 4, 8, 7])]):
        batch = labelled(kind, T, seed, len(lengths))
        keep = torch.arange(T) < torch.tensor(lengths)[:, None]
        stream.append(batch | {"attention_mask": keep.long()} | ({"labels": batch["labels"].abs() % 3 * keep - 100 * ~keep} if kind == "token" else {}))
    found = []
    for graphs, packs in ((True, True), (False, True), (False, False)):
        model = bert(dropout=0.0, mlp_dropout=0.0, vocab_size=8192) if kind == "masked" else tuned(kind)
        model.packs = packs
        model.blocks[1].register_forward_hook(lambda module, given, made: seen.append(tuple(made[0].shape[:2])))
        result = train(model, Listed(stream), Masked(tok) if kind == "masked" else supervised, settings(12, graphs=graphs, log_every=1, eps=0.01, **EXACT))
        assert model.packs is packs
        found.append(([[one[name] for name in ("loss", "targets", "tokens")] for one in result.history], weights(model)))
    full = (4, 8)                                                                # a CPU looks, and packs nothing
    assert set(seen[:7]) == {(1, 24), (1, 48), full} and set(seen[7:19]) == {(1, 14), (1, 32), (1, 34), (1, 24), full} and set(seen[19:]) == {full, (5, 16)}
    assert FakeGraph.replays == 12 * 2 - 5
    for plain in found[1:]:
        torch.testing.assert_close(found[0], plain, rtol=1e-5, atol=2e-6)


def test_masked_pretraining_replayed(tok, tmp_path, faked):
    """The loss reads a fixed number of rows, so sums are taken in another order; the tokens to hide are drawn anew at each replay."""
    stream = Listed([{"input_ids": torch.randint(5, 43, (6, 29), generator=torch.Generator().manual_seed(k))} for k in range(3)])
    (ours, log, _), (theirs, wanted, _) = runs_of("masked", {"steps": 9, "log_every": 1, **EXACT}, stream, tmp_path, faked, objective=Masked(tok))
    assert FakeGraph.replays == 15 and [one["targets"] for one in log] == [one["targets"] for one in wanted] and len({one["targets"] for one in log}) > 4
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_that_moved_are_noticed_and_who_looks_at_each_step_sees_it(faked):
    found = []
    for graphs in (True, False):
        model, seen, held = tuned("token"), [], []

        def on_step(record, model=model, seen=seen, held=held):
            seen.append((record["step"], record["loss"], model.head.classifier.weight.detach().clone()))
            if record["step"] == 4:
                model.zero_grad(set_to_none=True)
            held.append([p.grad is not None for p in model.head.parameters()])

        train(model, Listed([labelled("token", 8, seed) for seed in range(3)]), supervised, settings(7, graphs=graphs, **EXACT), on_step=on_step)
        assert held[-1] == [graphs] * 2 and model.head.classifier.weight.grad is None   # where graphs add to now; what they added to before is not the model's
        found.append((seen, weights(model)))
    (ours, held), (theirs, wanted) = found
    assert len(ours) == 7 and all(one[:2] == other[:2] and torch.equal(one[2], other[2]) for one, other in zip(ours, theirs, strict=True)) and same(held, wanted)


def test_fine_tuning_from_texts_waits_for_no_step_that_is_not_logged(tok, faked):
    rows, read, found = [{"text": "so " * (i % 7) + word, "label": word} for i in range(9) for word in ("good", "bad")], Run.read, []
    for graphs in (True, False):
        model, seen = mt.Model(replace(ENCODER, dropout=0.0, mlp_dropout=0.0)), []
        faked.setattr(Run, "read", lambda self, *given, seen=seen: (seen.append(self.progress.step) if self.unread else None, read(self, *given)))
        result = mt.finetune(model, tok, train=rows, steps=11, batch_size=4, lr=0.01, log_every=5, progress=False, precision="fp32", graphs=graphs)
        found.append((seen, [one["loss"] for one in result.history], weights(model)))
    assert found[0][0] == [5, 10, 11] and len(found[1][0]) == 11 and FakeGraph.replays > 11
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_what_is_not_finite_changes_no_weight_nor_does_any_step_after_it_and_a_run_goes_on_from_its_save(fault, tmp_path, faked):
    class Breaks(type(supervised)):
        """Token 42 in the first place of a batch breaks it."""

        def __call__(self, model, batch, generator):
            loss, n = super().__call__(model, batch, generator)
            bad = (batch["input_ids"][0, 0] == 42).float()
            return (loss + torch.where(bad == 1, torch.inf, 0.0) if fault == "loss" else loss + (model.blocks[1].attn.q_proj.bias * 0 + 1 - bad).clamp(min=0).sqrt().sum()), n

    stream = Listed([labelled("sequence", 8, seed) for seed in range(11)])
    for k in range(11):
        stream[k]["input_ids"][0, 0] = 42 if k == 7 else 5
    what = "the head is not: look at the labels" if fault == "loss" else "the gradient is not; nearest to the loss that is blocks.1.attn.q_proj.bias"
    chosen = settings(11, graphs=True, save_every=6, **EXACT)
    model, straight, again, held = tuned("sequence"), tuned("sequence"), tuned("sequence"), {}
    with pytest.raises(NonFiniteError, match=f"step 8: .*{what}.*This step changed no weight, and the save of step 6 is intact"):
        train(model, stream, Breaks(), chosen, out=tmp_path)
    train(straight, stream, supervised, replace(chosen, graphs=False), on_step=lambda record: held.update(weights(straight) if record["step"] == 7 else {}))
    train(again, stream, supervised, chosen, out=tmp_path, resume=True)
    assert same(weights(model), held) and same(weights(straight), weights(again))
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 2


def test_fp16_skips_an_overflow_and_halves_the_scale_replayed_as_in_the_plain_loop(tmp_path, faked):
    class Huge(type(supervised)):
        """Token 42 in the first place of a batch makes gradients that fp16 does not hold."""

        def __call__(self, model, batch, generator):
            loss, n = super().__call__(model, batch, generator)
            return loss * torch.where(batch["input_ids"][0, 0] == 42, 1e9, 1.0), n

    faked.setattr(precision, "choose_precision", lambda wanted, device, parameters: "fp16")
    faked.setattr(throughput, "peak_flops", lambda device, dtype: 1e9)
    rows = [labelled("sequence", 8, seed) for seed in range(9)]
    for k, batch in enumerate(rows):
        batch["input_ids"][0, 0] = 42 if k == 5 else 5
    (ours, log, _), (theirs, wanted, _) = runs_of("sequence", {"steps": 9, "log_every": 1, "precision": "fp16", **EXACT}, Listed(rows), tmp_path, faked, objective=Huge())
    scales = [json.loads((tmp_path / str(graphs) / "last/train_state.json").read_text())["scaler"]["scale"] for graphs in (True, False)]
    assert same(ours, theirs) and log == wanted and scales == [64.0, 64.0] and log[5]["grad_norm"] is None
    assert all(p.isfinite().all() for p in ours.values())


def test_what_no_graph_can_hold_is_refused(tok, monkeypatch):
    (model, objective, _), replaced = made(ENCODER, tok), bert().set_head("replaced")
    with pytest.raises(ValueError, match="graphs=True on cpu; CUDA graphs are an NVIDIA GPU's: leave graphs out"):
        check_capture(model, objective)
    with pytest.raises(ValueError, match=r"graphs=True with strategy 'ulmfit'.*: leave graphs out"):
        tune(tuned("sequence"), Listed([]), supervised, settings(graphs=True), strategy("ulmfit"), beside=mt.Model.save_pretrained, data={})
    monkeypatch.setattr(mt.Model, "device", torch.device("cuda"))
    check_capture(model, objective)
    with pytest.raises(ValueError, match=r'graphs=True for a Model with head="masked" and function; .*: leave graphs out'):
        check_capture(model, lambda model, batch, generator: objective(model, batch, generator))
    with pytest.raises(ValueError, match='with head="replaced" and Supervised'):
        check_capture(replaced, supervised)
    for name, value, back in (("attention", "tiled", "auto"), ("checkpointing", True, False)):
        setattr(model, name, value)
        with pytest.raises(ValueError, match=f"graphs=True with {name}.*: leave one of the two out"):
            check_capture(model, objective)
        setattr(model, name, back)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_replays_are_steps(config, tok):
    """Replayed, the same seeds give the same sums, gradients and weights as a step that was not captured, and other seeds others; batches add up."""
    model, objective, batch = made(config, tok)
    model, batch = model.to("cuda"), {name: t.to("cuda") for name, t in batch.items()}
    start, found = {name: t.clone() for name, t in model.state_dict().items()}, []
    for kind in (Step, Captured):
        model.load_state_dict(start)
        model.zero_grad(set_to_none=True)
        step, sums = captured_of(model, objective, kind, "bf16"), []
        for seed in (1, 1, 1, 2, 2):                                             # with graphs the first two are launched, the third is captured
            torch.cuda.manual_seed(seed)
            loss, count = step(batch, torch.Generator("cuda").manual_seed(seed))
            sums.append((float(loss), int(count)))
        numbers = step.update(loss, torch.as_tensor(count)).tolist()
        found.append([*sums, numbers, [float(p.detach().double().norm()) for p in model.parameters()]])
        assert sums[0] != sums[3] and sums[1] == sums[2] and sums[3] == sums[4]
    for plain, replayed in zip(*found, strict=True):
        torch.testing.assert_close(torch.tensor(replayed), torch.tensor(plain), rtol=2e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["sequence", "regression", "token", "span", "embedding"])
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_run_with_graphs_is_one_without(kind, name, monkeypatch):
    stream, replay, replays, found = Listed([labelled(kind, T, seed, 8) for seed, T in enumerate([9, 13, 11, 8])]), captured.Graph.replay, [], []
    monkeypatch.setattr(captured.Graph, "replay", lambda self: (replays.append(1), replay(self)))
    for graphs in (True, False):
        model = tuned(kind).to("cuda")
        result = train(model, stream, supervised, settings(30, precision=name, lr=1e-3, graphs=graphs, log_every=7))
        found.append([[one["step"], one["loss"], one["targets"], one["tokens"]] for one in result.history])
        assert all(p.isfinite().all() for p in model.parameters())
    assert len(replays) == 2 * 30 - 4
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=2e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_packed_run_with_graphs_is_one_without_and_a_padded_one(name, monkeypatch):
    """Texts of 1 to 128 tokens; every length of the packed row is below that of the batch."""
    stream, replay, replays, found, seen = Listed([labelled("token", 128, seed, 24, V=8192) for seed in range(4)]), captured.Graph.replay, [], [], []
    monkeypatch.setattr(captured.Graph, "replay", lambda self: (replays.append(1), replay(self)))
    for batch in stream.batches:
        batch["attention_mask"][0, 1:], batch["labels"][0, 1:] = 0, -100
    for graphs, packs in ((True, None), (False, None), (False, False)):
        model = bert(dropout=0.0, mlp_dropout=0.0, n_layers=2, d_model=64, n_heads=4, vocab_size=8192, max_len=128).set_head("token", LABELS).to("cuda")
        model.packs = packs
        model.blocks[1].register_forward_hook(lambda module, given, made: seen.append(made[0].shape[:2].numel()))
        result = train(model, stream, supervised, settings(30, precision=name, lr=1e-3, graphs=graphs, log_every=7))
        found.append(torch.tensor([[one["step"], one["loss"], one["targets"], one["tokens"]] for one in result.history]))
    assert len(replays) >= 2 * 30 - 6 and all(n % 256 == 0 and n < 24 * 128 for n in seen[:2]) and seen[-1] == 24 * 128
    for plain in found[1:]:
        torch.testing.assert_close(found[0], plain, rtol=1e-3 if name == "fp32" else 2e-2, atol=1e-3)
