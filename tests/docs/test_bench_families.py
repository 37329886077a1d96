"""The table of families is what was measured and what the pages say."""
import json

import pytest

from minitransfer.bench import families
from minitransfer.cli import main
from minitransfer.families import bert, gpt2


def test_pages_are_described_by_themselves():
    assert families.facts(bert)["papers"] == ["Devlin et al. 2019"] and families.facts(gpt2)["papers"] == ["Radford et al. 2019"]
    assert families.facts(bert)["heads"] == ["masked", "masked+next", "sequence", "choice", "token", "span"] and not families.facts(bert)["generation"]
    assert families.facts(gpt2)["generation"] and families.facts(gpt2)["lora_targets"] == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    assert all(families.facts(page)["papers"] for page in families.PAGES)
    assert families.papers("Howard & Ruder 2018, Sennrich et al. 2016; again Sennrich et al. 2016.") == ["Howard & Ruder 2018", "Sennrich et al. 2016"]


def test_a_quick_run_measures_one_class_of_each_case(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(families, "TABLE", tmp_path / "families.json")
    assert main(["bench", "families", "--rows", "gpt2", "--quick"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["page"], line["case"], line["class"], line["holds"]) == ("gpt2", "gpt2", "GPT2Model", True) and 0 < line["error"] <= 1e-5
    (tmp_path / "families.json").write_text('{"bert": {"kept": true}}')
    families.write([line, line | {"class": "GPT2LMHeadModel", "error": 2e-6}])
    table = json.loads((tmp_path / "families.json").read_text())
    assert table["bert"] == {"kept": True} and table["gpt2"]["error"] == max(line["error"], 2e-6) and table["gpt2"]["classes"] == 2
    rows = families.markdown({"gpt2": table["gpt2"]}).splitlines()
    assert len(rows) == 3 and rows[2].startswith("| GPT-2 (gpt2) | Radford et al. 2019 | 2.0e-06 | 2 | causal, sequence, token, span | yes | `c_attn`,")


@pytest.mark.parametrize("words, message", [("bench families --rows brt", "no family page 'brt'"), ("bench families --quick --save", "a quick run, to be saved")])
def test_mistakes(words, message, capsys):
    assert main(words.split()) == 1 and message in capsys.readouterr().err


def test_an_installed_package_says_that_it_has_no_cases(monkeypatch, tmp_path):
    monkeypatch.setattr(families, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="run this in a checkout"):
        families.run()
