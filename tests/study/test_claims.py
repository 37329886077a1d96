"""Claims: what arithmetic says is what models have; verdicts follow the results; the verb prints and runs them."""
import json
import math
from importlib import import_module
from pathlib import Path

import pytest

from minitransfer.cli import main
from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.study import CLAIMS, claims, run_claim
from minitransfer.study.claims import arithmetic, base, measured
from minitransfer.study.claims.base import Finding, over_seeds
from minitransfer.study.claims.measured import verdict
from minitransfer.transfer import add_lora


def test_the_sizes_are_those_of_models():
    for pooler, types in ((True, 2), (False, 0)):
        model = Model(ModelConfig(101, 28, 3, 4, 53, 37, pooler=pooler, n_token_types=types))
        counted = sum(p.numel() for name, p in model.named_parameters() if pooler or not name.startswith("pooler"))
        assert arithmetic.bert_numbers(3, 28, 53, 101, 37, types, False) + (28 * 28 + 28) * (model.pooler is not None) == counted
    assert arithmetic.bert_numbers(12, 768, 3072, 30_522) == 109_482_240


def test_the_numbers_of_lora_are_those_it_adds():
    model = Model(ModelConfig(101, 28, 3, 4, 53, 37))
    before = sum(p.numel() for p in model.parameters())
    add_lora(model, r=5, targets="q,v,up_proj")
    assert sum(p.numel() for p in model.parameters()) - before == arithmetic.lora_numbers([(28, 28), (28, 28), (28, 53)], 5, 3)
    assert arithmetic.lora_numbers([(768, 768)] * 2, 8, 12) == 294_912 and "1,622,016" in arithmetic.gpt2_targets().found


def test_verdicts():
    assert [verdict(*holds) for holds in ((True, True), (True, False), (False, False))] == ["reproduced", "partly", "not as stated"]
    with pytest.raises(ValueError, match="verdict"):
        Finding("proved", "", "")


def test_three_seeds_have_a_wide_interval():
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) * math.sqrt(7 / 3 / 3)                    # of two degrees of freedom the quantile has a closed form, and of one
    assert over_seeds([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half), rel=1e-3)
    assert over_seeds([0.0, 2.0]).high - 1 == pytest.approx(math.tan(0.475 * math.pi), rel=1e-3)


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A folder in the place of the committed results."""
    def put(name: str, told: dict) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
        base.result.cache_clear()
    monkeypatch.setattr(base, "RESULTS", tmp_path)
    monkeypatch.setattr(import_module("minitransfer.study.claims"), "RESULTS", tmp_path)        # the name in the package is the function
    base.result.cache_clear()
    yield put
    base.result.cache_clear()


def test_a_verdict_follows_the_result(results):
    def sst2(*lora):
        return {"sets": {"sst2": {"ours": {"full": {"values": [80.0, 81.0, 82.0]}, "lora": {"values": list(lora)}}}}}
    results("transfer_cpu", sst2(80.2, 81.1, 82.3))
    assert claims(["lora-gap"]).rows[0].finding.verdict == "reproduced"
    results("transfer_cpu", sst2(70.2, 71.1, 72.3))
    found = claims(["lora-gap"]).rows[0].finding
    assert found.verdict == "not as stated" and found.interval.value == pytest.approx(-9.8)


def test_fewer_labels_are_read_from_the_grid(results):
    def grid(bounds):
        pairs = {pair: {"worth": ["?"] * 2, "bounds": bounds} for pair in ("full - random", "full - logistic")}
        return {"sizes": [16, 64], "seeds": [0], "gain": pairs}
    low, never = [2.0, 1.0, 3.0], [None, None, None]
    for bounds, expected in (([[20.0, 11.0, None], low], "reproduced"), ([[20.0, 9.0, None], low], "not as stated"), ([never, never], "reproduced")):
        results("transfer_gain", grid(bounds))
        assert measured.fewer_labels().verdict == expected


def test_the_best_layer_is_read_by_its_depth(results):
    def study(*best):
        return {name: {"layers": [{"layer": i, "score": [0.9 - abs(i - k) / 100, 0.8, 1.0]} for i in range(13)]}
                for name, k in zip(("pos-minilm", "pos-mini-bert"), best, strict=True)}
    for best, expected in (((3, 6), "reproduced"), ((2, 5), "partly"), ((9, 0), "not as stated")):
        results("study", study(*best))
        assert measured.pos_layers().verdict == expected
    assert "layer 9 of 12" in measured.pos_layers().found


def test_without_results_nothing_is_claimed(results):
    found = claims()
    by_id = {one.claim.id: one.finding for one in found.rows}
    assert by_id["lora-gap"].verdict == "not tested" and "transfer_cpu.json has not been measured yet" in by_id["lora-gap"].reason
    assert by_id["gpt3-flops"].verdict == "not as stated" and len(by_id) == len(CLAIMS) == len(found.rows)
    assert sum(found.counts.values()) == len(CLAIMS)


def test_the_committed_results_decide_every_claim_that_reads_them():
    found = {one.claim.id: one.finding.verdict for one in claims().rows if "transfer_cpu" in one.claim.evidence or one.claim.evidence == "arithmetic"}
    assert len(found) > 15 and "not tested" not in found.values()


def test_the_page_is_what_the_results_say():
    """docs/claims.md ends with `minitransfer claims --markdown`."""
    page = Path(__file__).parents[2] / "docs" / "claims.md"
    assert page.read_text(encoding="utf-8").endswith(f"\n\n{claims().markdown()}\n")


def test_an_experiment_runs_and_is_kept(results, monkeypatch):
    from minitransfer.study.claims import experiments
    told = Finding("partly", "a half", "one of two", base.Interval(0.5, 0.4, 0.6))
    assert run_claim("imdb-2000").rows[0].finding.verdict == "not as stated"
    assert "not been measured yet" in claims(["zero-shot"]).rows[0].finding.reason
    monkeypatch.setitem(CLAIMS, "zero-shot", experiments.experiment("zero-shot", "S3", "so much", lambda: told))
    run_claim("zero-shot")
    assert claims(["zero-shot"]).rows[0].finding.verdict == "not tested"
    run_claim("zero-shot", save=True)
    assert claims(["zero-shot"]).rows[0].finding == told
    assert "not run yet: minitransfer claims --run many-from-scratch --save" in claims(["many-from-scratch"]).rows[0].finding.reason


def test_the_code_as_printed_has_one_label():
    assert "rows of 1 label" in run_claim("imdb-2000").rows[0].finding.found


def test_the_verb(capsys):
    assert main(["claims", "gpt3-flops", "lora-7b"]) == 0
    assert "gpt3-flops (S0): GPT-3 took about 3.64e23 FLOPs.\n    not as stated: " in (out := capsys.readouterr().out) and "2 claims: 1 partly, 1 not as stated" in out
    assert main(["claims", "gpt3-flops", "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[1].count("---") == 7
    assert main(["claims", "--json", "pos-probe"]) == 0
    assert json.loads(capsys.readouterr().out)["pos-probe"]["interval"][0] == pytest.approx(13 / 14, abs=1e-4)
    assert main(["claims", "--run", "imdb-2000"]) == 0 and "1 claim: 1 not as stated" in capsys.readouterr().out
    for words, code, message in ((["gpt-flops"], 1, "did you mean 'gpt3-flops'?"), (["--run", "lora-7b"], 1, "has no experiment, it is decided by arithmetic"),
                                 (["--save"], 2, "--save without --run"), (["lora-7b", "--run", "imdb-2000"], 2, "it runs one claim")):
        assert main(["claims", *words]) == code and message in capsys.readouterr().err


def test_the_figure_counts_verdicts():
    axes = claims(["gpt3-flops", "lora-7b"]).draw()
    assert [bar.get_width() for bar in axes.patches] == [0, 1, 1, 0]
