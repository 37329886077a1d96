"""The notebooks run from top to bottom, and the built files are their sources, clean of the machine that built them."""
from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(path for path in FOLDER.glob("*.py") if re.match(r"\d\d_", path.name))
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
COLAB = '''import sys

if "google.colab" in sys.modules:       # there, a fresh machine; elsewhere nothing happens
    import subprocess
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "minitransfer[notebooks]"], check=True)'''
PLANTED = '# %% [markdown]\n# # A title\n\n# %%\nprint("one")\n\n# %%\nprint(6 * 7)\n'


def load_build():
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


def run_build(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(folder / "build.py"), *arguments], capture_output=True, text=True, timeout=1200)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder of its own with build.py and one small notebook."""
    shutil.copy(FOLDER / "build.py", tmp_path)
    (tmp_path / "01_small.py").write_text(PLANTED, encoding="utf-8")
    return tmp_path


# ---- the notebooks -------------------------------------------------------------------------------------------------------------------------------

def test_readme_lists_every_notebook():
    listed = re.findall(r"^\| `(\w+)` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert listed == [path.stem for path in SOURCES] and len(listed) >= 2


@each
def test_built_file_is_its_source(source):
    assert build.stale(source) is None


@each
def test_built_file_is_whole(source):
    """Executed once from top to bottom, without an error or a word on stderr; every exercise is open (`test_course.py` has the solutions)."""
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    verdicts = re.findall(r"^(\w+): (not solved yet|right|wrong)", "\n".join(output.get("data", {}).get("text/plain", "") for output in outputs), re.M)
    assert len(verdicts) >= 3 and {word for _, word in verdicts} == {"not solved yet"}


@each
def test_built_file_is_clean(source):
    """Nothing of the machine or the moment: no paths, no widget state, no times of execution, no versions."""
    raw = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert set(raw["metadata"]) == {"kernelspec", "language_info"} and set(raw["metadata"]["language_info"]) == {"name"}
    assert {key for cell in raw["cells"] for key in cell["metadata"]} <= {"jupyter", "tags"}
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert [found[0] for text in build.texts(notebook) if (found := build.ABSOLUTE_PATH.search(text))] == []
    assert build.WIDGET not in source.with_suffix(".ipynb").read_text(encoding="utf-8")


@each
def test_a_notebook_installs_itself_on_colab_and_ends_with_the_other_library(source):
    code = [cell.source for cell in build.read_source(source).cells if cell.cell_type == "code"]
    assert code[0] == COLAB and code[-1].startswith("# The same in ") and "find_spec(" in code[-1] and re.search(r"assert |compare\(", code[-1])


def test_ci_executes_every_notebook():
    """Each in a process of its own, as it stands; cells with the tag "compare" have to say what the built file says."""
    script = (FOLDER.parent / ".ci/run").read_text(encoding="utf-8")
    assert "ls notebooks/[0-9]*.py | xargs -P " in script and "python notebooks/build.py --check" in script
    assert all(sum("compare" in cell.metadata.get("tags", ()) for cell in build.read_source(source).cells) >= 2 for source in SOURCES if source.stem > "04")


# ---- build.py sees what is wrong -----------------------------------------------------------------------------------------------------------------

def test_cleaning_removes_what_is_of_the_machine(tmp_path):
    shown = nbformat.v4.new_output("display_data", {"text/plain": f"{tmp_path}/runs and {FOLDER.parent}/x.py", build.WIDGET: {"model_id": "1"}})
    stream = nbformat.v4.new_output("stream", text=f"{sys.prefix}/lib/a.py {Path.home()}/b\n")
    cell = nbformat.v4.new_code_cell("1", outputs=[shown, stream], metadata={"execution": {"iopub.execute_input": "now"}, "tags": ["kept"]})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}, "language_info": {"name": "python", "version": "3.11.4"}})
    build.clean(notebook, tmp_path)
    assert set(notebook.metadata) == {"language_info"} and notebook.metadata.language_info == {"name": "python"}
    assert notebook.cells[0].metadata == {"tags": ["kept"]}
    assert notebook.cells[0].outputs[0].data == {"text/plain": "./runs and minitransfer/x.py"}
    assert notebook.cells[0].outputs[1].text == "python/lib/a.py ~/b\n"


@pytest.mark.parametrize("text, path", [("see /home/ann/x.txt,", "/home/ann/x.txt,"), ('File "/usr/lib/a.py"', "/usr/lib/a.py"),
                                        ("C:\\Users", "C:\\Users"), ("runs/home/x", None), ("https://site.org/usr/x", None),
                                        ("a / tmp/ b", None), ("<b>1</b>", None)])
def test_a_path_is_told_from_other_slashes(text, path):
    found = build.ABSOLUTE_PATH.search(text)
    assert (found and found[0]) == path


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"no notebook is called '03_none'; there are 01_first_run, .*: give one of these"):
        build.sources(["03_none"])


@pytest.mark.slow
def test_build_then_check_then_faults(planted):
    """One small notebook: built, checked, changed, broken, and one that prints a path."""
    assert run_build(planted).returncode == 0
    made = nbformat.read(planted / "01_small.ipynb", as_version=4)
    assert [cell.cell_type for cell in made.cells] == ["markdown", "code", "code"] and made.cells[2].outputs[0].text == "42\n"
    again = (planted / "01_small.ipynb").read_bytes()
    assert run_build(planted).returncode == 0 and (planted / "01_small.ipynb").read_bytes() == again

    (planted / "01_small.py").write_text(PLANTED.replace("6 * 7", "7 * 7"), encoding="utf-8")
    changed = run_build(planted, "--check")
    assert changed.returncode == 1 and "cell 2 is not the one of 01_small.py" in changed.stderr and (planted / "01_small.ipynb").read_bytes() == again

    marked = PLANTED.replace('# %%\nprint("one")', '# %% tags=["compare"]\nimport time\nprint(int(time.time() * 1e6) // {each})')
    (planted / "01_small.py").write_text(marked.replace("{each}", "10**12"), encoding="utf-8")
    assert run_build(planted).returncode == 0 and run_build(planted, "--check").returncode == 0
    (planted / "01_small.py").write_text(marked.replace("{each}", "1"), encoding="utf-8")
    assert run_build(planted).returncode == 0
    moved = run_build(planted, "--check")
    assert moved.returncode == 1 and "01_small.ipynb: cell 1 is marked to be compared, and says now" in moved.stderr

    again = (planted / "01_small.ipynb").read_bytes()
    (planted / "01_small.py").write_text(PLANTED.replace("6 * 7", "1 / 0"), encoding="utf-8")
    broken = run_build(planted)
    assert broken.returncode == 1 and "ZeroDivisionError" in broken.stderr and (planted / "01_small.ipynb").read_bytes() == again

    (planted / "01_small.py").write_text(PLANTED.replace("6 * 7", "'/srv/x /opt/elsewhere/file'"), encoding="utf-8")
    telling = run_build(planted)
    assert telling.returncode == 1 and "paths of this machine are in the notebook (/opt/elsewhere/file)" in telling.stderr
