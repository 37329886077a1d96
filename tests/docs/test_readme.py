"""What the README and the pages beside it say is run: their Python in one go, the commands against the CI script, its figures against the committed results."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minitransfer.bench import families
from minitransfer.bench.transfer.table import summaries, table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    """Block after block as it stands, but for two steps of training where two epochs are written."""
    blocks = re.findall(r"```python\n(.*?)```", "\n".join([README, *PAGES.values()]), re.S)
    assert len(blocks) >= 4 and sum(block.count("epochs=3") for block in blocks) == 1
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks).replace("epochs=3", "steps=2")], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy" in done.stdout and "positive" in done.stdout + done.stderr


def test_ci_runs_the_two_commands_of_the_readme():
    commands = re.findall(r"```bash\n(.*?)```", README, re.S)
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert [c.strip() for c in commands] == ['pip install -e ".[dev]" && minitransfer demo', 'pip install -e ".[dev]" && pytest']
    pip = script.replace("pip install -q -e", "pip install -e")
    assert all(command.strip() in pip for command in commands)


def test_every_path_of_the_tree_exists():
    tree = re.search(r"```\nminitransfer/\n(.*?)```", README, re.S)[1]
    names = [name for line in tree.splitlines() for name in re.findall(r"[\w.]+(?:/|\.py)", line.split("  a ")[0][:60])]
    assert len(names) > 15
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "minitransfer" / name).exists(), name


def test_every_speed_is_a_committed_measurement():
    """Each row of the README's table of speeds repeats the ratio of a line in bench/results/."""
    lines = {}
    for file in sorted((ROOT / "minitransfer/bench/results").glob("*.json")):
        lines |= json.loads(file.read_text(encoding="utf-8"))
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([\d.]+)x \|", README, re.M)
    assert rows, "the README has no table of speeds"
    for name, ratio in rows:
        assert f"{lines[name]['ratio']:.2f}" == ratio, name


def test_every_figure_of_tuning_is_a_committed_measurement():
    """The tables are those that `bench transfer` makes of its committed lines."""
    found = json.loads((ROOT / "minitransfer/bench/results/transfer_cpu.json").read_text(encoding="utf-8"))
    made = table(found | {"sets": summaries(found["lines"])})
    assert made.count("\n") > 20 and made in PAGES["results"] and set(re.findall(r"^\| \w+ \| \w+ \| [\d.]+ \(.*$", README, re.M)) < set(made.splitlines())


def test_every_error_of_a_family_is_a_committed_measurement():
    """The table of families is the one that `bench families` makes of its committed lines, and every page but those with a suite of their own is in it."""
    measured = json.loads((ROOT / "minitransfer/bench/results/families.json").read_text(encoding="utf-8"))
    assert families.markdown(measured) in PAGES["families"] and all(one["holds"] for one in measured.values())
    assert set(map(families.name_of, families.PAGES)) - set(measured) == {"clip", "recurrent"}
