"""The table of families: what each page computes, and how far it is from the reference library on tiny perturbed models of every class it has a head for."""
from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..checks.verify import verify
from ..families import FAMILIES, PAGES
from ..weights.files import read_json
from .compare import RESULTS, chosen, kept

ROOT = Path(__file__).parent.parent.parent
CASES = "tests/families/cases"
TABLE = RESULTS / "families.json"
GENERATES = {"causal", "seq2seq"}                   # heads that `generate` continues


@contextmanager
def in_checkout() -> Iterator[None]:
    """The project's tests can be imported. Raises: ValueError in an installed package, which has none."""
    if not (ROOT / CASES).is_dir():
        raise ValueError(f"families are measured on the models of {CASES}, and an installed package has no tests: run this in a checkout of the project")
    sys.path.insert(0, str(ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT))


def cases(names: Sequence[str] | None) -> list[Any]:
    """The tiny models of the tests, all or those of these pages.

    Raises: ValueError in an installed package, which has no tests; KeyError for a page that does not exist.
    """
    wanted = chosen(names, map(name_of, PAGES), "family page")
    with in_checkout():
        found = importlib.import_module(CASES.replace("/", ".")).CASES
    return [case for case in found if page_of(case) in wanted]


def name_of(page: Any) -> str:
    return page.__name__.split(".")[-1]


def page_of(case: Any) -> str:
    return name_of(FAMILIES[case.model_type].page)


def papers(doc: str) -> list[str]:
    """The works that a page's docstring names, as "Devlin et al. 2019"."""
    return list(dict.fromkeys(re.findall(r"[A-Z][\w-]+ (?:et al\.|(?:& [A-Z][\w-]+ )?)\s?\d{4}", " ".join(doc.split()))))


def facts(page: Any) -> dict[str, Any]:
    heads = list(dict.fromkeys(head for head in page.HEADS.values() if head != "none"))
    return {"title": page.__doc__.split(":")[0], "model_types": list(page.MODEL_TYPES), "papers": papers(page.__doc__), "heads": heads,
            "generation": not GENERATES.isdisjoint(heads), "lora_targets": list(page.LORA_TARGETS)}


def measure(case: Any, class_name: str) -> dict[str, Any]:
    """One class of one case: the largest relative error over modules, states, attention, outputs, loss and gradients."""
    with TemporaryDirectory() as folder:
        case.reference(class_name).save_pretrained(folder)
        found = verify(folder, lengths=case.lengths, bar=case.bar, repeats=0)
    return {"page": page_of(case), "case": case.name, "class": class_name, "head": found.head, "error": found.error, "bar": case.bar, "holds": found.holds, "first": found.first,
            "versions": found.versions}


def run(names: Sequence[str] | None = None, quick: bool = False, save: bool = False) -> list[dict[str, Any]]:
    """Verify every class of every case and print a JSON line each.

    Args:    names: pages, default all; quick: one class of each case; save: also write bench/results/families.json (pages not measured now stay).
    Returns: the lines.
    Raises:  as `cases`; ValueError without transformers, and for saving a quick run.
    """
    if quick and save:
        raise ValueError("a quick run, to be saved; it looks at one class of each case: run without quick, or do not save")
    lines = []
    for case in cases(names):
        for class_name in list(case.classes)[: 1 if quick else None]:
            lines.append(measure(case, class_name))
            print(json.dumps(lines[-1]), flush=True)
    if save:
        print(f"written: {write(lines)}", file=sys.stderr)
    return lines


def write(lines: list[dict[str, Any]]) -> Path:
    found = {}
    for page in PAGES:
        if mine := [line for line in lines if line["page"] == name_of(page)]:
            found[name_of(page)] = facts(page) | {
                "error": max(line["error"] for line in mine), "holds": all(line["holds"] for line in mine), "classes": len({line["class"] for line in mine}),
                "cases": sorted({line["case"] for line in mine}), "versions": mine[0]["versions"]}
    return kept(TABLE, found)


def markdown(table: dict[str, Any] | None = None) -> str:
    """The saved table for a page, in the order of the pages."""
    table = read_json(TABLE) if table is None else table
    rows = ["| family | paper | largest error | classes checked | heads | generates | LoRA targets |", "|---|---|---|---|---|---|---|"]
    for one in [table[name] for name in map(name_of, PAGES) if name in table]:
        rows.append(f"| {one['title']} ({', '.join(one['model_types'])}) | {'; '.join(one['papers'])} | {one['error']:.1e} | {one['classes']} | {', '.join(one['heads'])} | "
                    f"{'yes' if one['generation'] else 'no'} | {', '.join(f'`{target}`' for target in one['lora_targets'])} |")
    return "\n".join(rows)
