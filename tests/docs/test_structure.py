"""The shape of the project: short files, one way of importing, no family's name in the body, nothing heavy at import, a ledger of skips."""
import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import minitransfer as mt
from minitransfer.families import FAMILIES

ROOT = Path(__file__).parent.parent.parent
LIBRARY = sorted((ROOT / "minitransfer").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_there_is_a_library():
    assert len(LIBRARY) > 40 and len(TESTS) > 10


def test_files_are_short():
    assert [f"{name(path)}: {n} lines" for path in LIBRARY if (n := len(path.read_text(encoding="utf-8").splitlines())) > 350] == []


def test_functions_are_short():
    assert [f"{name(path)}:{f.lineno} {f.name}: {n} lines" for path in LIBRARY for f in ast.walk(tree(path))
            if isinstance(f, FUNCTIONS) and (n := f.end_lineno - f.lineno + 1) > 80] == []


def test_modules_and_public_names_say_what_they_are():
    assert [name(path) for path in LIBRARY if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree(path))] == []
    assert [public for public in mt.__all__ if not getattr(mt, public).__doc__] == []


def test_public_names():
    promised = {"Tokenizer", "Model", "ModelConfig", "ModelOutput", "Cache", "generate", "fill", "embed", "pretrain", "adapt", "finetune", "predict",
                "layer_groups", "freeze", "freeze_to", "unfreeze", "trainable_report", "add_lora", "merge_lora", "unmerge_lora", "remove_adapters", "save_adapter", "load_adapter"}
    assert promised <= set(mt.__all__) and len(set(mt.__all__)) == len(mt.__all__)
    assert all(hasattr(mt, public) for public in mt.__all__)


# ---- the body knows no family -------------------------------------------------------------------------------------------------------------------------

def words_of_code(path: Path) -> set[str]:
    """Names and texts that code can act on: not docstrings, not comments."""
    module, found = tree(path), set()
    documented = [node for node in ast.walk(module) if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node) is not None]
    docstrings = {id(node.body[0].value) for node in documented}
    for node in ast.walk(module):
        texts = [getattr(node, field, None) for field in ("id", "attr", "arg", "name")]
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            texts.append(node.value)
        found |= {word.lower() for text in texts if isinstance(text, str) for word in re.findall(r"[A-Za-z_]+\d*", text)}
    return found


@pytest.mark.parametrize("room", ["nn", "ops"])
def test_the_body_names_no_family(room):
    """No architecture is asked for by name: what differs is a field of the config."""
    families = {*FAMILIES, "roberta", "distilbert", "electra", "albert", "deberta", "modernbert", "llama", "t5", "bart", "model_type", "families"}
    files = sorted((ROOT / "minitransfer" / room).glob("*.py"))
    assert len(files) > 2
    assert {name(path): found for path in files if (found := families & words_of_code(path))} == {}


# ---- imports ---------------------------------------------------------------------------------------------------------------------------------------------

def imported(path: Path) -> set[str]:
    """Top packages a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found


def test_the_rooms_import_one_way():
    """The contract of pyproject.toml."""
    code = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_the_libraries_we_are_compared_with_are_not_in_the_engine():
    allowed = ("minitransfer/bench/", "minitransfer/checks/")
    peers = {"transformers", "peft", "sentence_transformers", "accelerate", "evaluate"}
    assert {name(path): found for path in LIBRARY if not name(path).startswith(allowed) and (found := peers & imported(path))} == {}


def test_importing_and_building_is_light():
    """Nothing heavy is imported, no device touched, no random number drawn, no default changed and nothing printed."""
    heavy = ["transformers", "datasets", "matplotlib", "sklearn", "peft", "sentence_transformers", "pandas", "scipy", "sympy", "pyarrow", "IPython",
             "huggingface_hub.hf_api", "torch._dynamo"]
    code = ("import sys, torch; before, state = set(sys.modules), torch.get_rng_state()\n"
            "import minitransfer as mt; mt.Model(mt.ModelConfig(11, 6, 1, 2, 5, 7), 'masked')\n"
            f"print([name for name in {heavy} if name in set(sys.modules) - before], torch.cuda.is_initialized(),"
            " torch.equal(torch.get_rng_state(), state), torch.get_default_dtype())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[] False True torch.float32\n", "")


def test_pickles_are_not_opened():
    """torch.load only with weights_only=True, and no pickle.load: opening such a file runs what is in it."""
    calls = [(path, node) for path in LIBRARY for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    loads = [(name(path), ast.unparse(node)) for path, node in calls if ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads")]
    assert [row for row in loads if "weights_only=True" not in row[1]] == []


# ---- skips -------------------------------------------------------------------------------------------------------------------------------------------------

def skips() -> set[tuple[str, str]]:
    """(file, reason) of every place that may skip a test. The reason is the first text of the call."""
    found = set()
    for path in TESTS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("skip", "skipif", "importorskip", "xfail", "SkipTest", "skipUnless", "skipIf"):
                given = [k.value for k in node.keywords if k.arg in ("reason", "msg")] or node.args
                texts = [part.value for part in ast.walk(ast.Tuple(given)) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                found.add((name(path), texts[0] if texts else "no reason"))
    return found


def ledger() -> list[list[str]]:
    lines = (ROOT / "tests" / "SKIPS.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]                                              # without the head and its rule


def test_every_skip_is_in_the_ledger_and_every_row_is_a_skip():
    rows = ledger()
    assert all(len(row) == 4 and all(row) for row in rows), "each row: file, reason, what it means, what un-skips it"
    listed = [(row[0].strip("`"), row[1]) for row in rows]
    assert len(set(listed)) == len(listed)
    assert sorted(skips() - set(listed)) == [], "skips without a row in tests/SKIPS.md"
    assert sorted(set(listed) - skips()) == [], "rows of tests/SKIPS.md without a skip"


def test_no_expected_failure_may_pass_unseen():
    """xfail only with strict=True; no reruns."""
    calls = [(name(path), ast.unparse(node)) for path in TESTS for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert [call for call in calls if re.match(r"pytest\.(mark\.)?xfail\(", call[1]) and "strict=True" not in call[1]] == []
    assert [call for call in calls if re.match(r"pytest\.mark\.(flaky|repeat|rerun)", call[1])] == []


def test_markers_say_what_the_quick_tier_leaves_out():
    """A marker that pyproject.toml does not know would select nothing: pytest refuses it with --strict-markers."""
    options = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "--strict-markers" in options and all(f'"{marker}: ' in options for marker in ("slow", "gpu", "network"))
