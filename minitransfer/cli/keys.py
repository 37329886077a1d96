"""Settings by name, from a YAML file and from `key=value` words. Names, types, defaults and explanations come from the settings' own dataclass."""
from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..training.settings import nearest as nearest_setting

WORD = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
COMMENT = re.compile(r"^ +(\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)
KIND_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "list[str]": "names with commas between", "None": "none"}


@dataclass(frozen=True)
class Key:
    """A setting: its type as an annotation is written, its default, and what it means."""

    kind: str = "str | None"
    default: Any = None
    about: str = ""


def keys_of(settings: type) -> dict[str, Key]:
    """The fields of a dataclass as keys; the comment beside a field explains it."""
    try:
        comments = dict(COMMENT.findall(inspect.getsource(settings)))
    except OSError:                     # no source files are installed
        comments = {}
    types = get_type_hints(settings)
    return {f.name: Key(kind_of(types[f.name]), None if f.default is MISSING else f.default, comments.get(f.name, "")) for f in fields(settings)}


def kind_of(annotation: Any) -> str:
    """`int | None` and the like, as an annotation is written; names given to unions are resolved."""
    union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return " | ".join("None" if one is NoneType else one.__name__ if isinstance(one, type) else str(one) for one in union)


def whole(value: str) -> int:
    number = float(value) if re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d+", value) else int(value)       # 2e5 is a usual way to write a number of steps
    if number != int(number):
        raise ValueError
    return int(number)


def switch(value: str) -> bool:
    return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}[value.lower()]


def several(value: str | list) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [one.strip() for one in value.split(",") if one.strip()]


READ: dict[str, Callable] = {"int": whole, "float": float, "bool": switch, "str": str, "list[str]": several}


def typed(name: str, value: str | list, kind: str) -> Any:
    """`value` as the first of the types of `kind` that fits. Raises: ValueError that says what would fit."""
    kinds = kind.split(" | ")
    if "None" in kinds and isinstance(value, str) and value.lower() in ("none", "null", ""):
        return None
    for one in kinds:
        if one == "None" or (isinstance(value, list) and one != "list[str]"):
            continue
        try:
            return READ[one](value)
        except (ValueError, KeyError, OverflowError):        # 1e400 is infinite, no whole number
            continue
    given = value if isinstance(value, str) else ",".join(map(str, value))
    wanted = " or ".join(KIND_WORDS.get(one, "a word") for one in kinds if one != "int" or "float" not in kinds)
    raise ValueError(f"{name}={given}; needed is {wanted}: correct it")


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` if a known name is near."""
    near = nearest_setting(name, known)
    return f" (did you mean {near}?)" if near else ""


def checked(values: dict[str, Any], keys: dict[str, Key], where: str) -> dict[str, Any]:
    """`values` by their types. Raises: KeyError for a name that is no key, with the nearest; ValueError for a value of another type."""
    for name in values:
        if name not in keys:
            near = nearest(name, keys) or f"; there are {', '.join(sorted(keys))}"
            raise KeyError(f"{where} sets {name!r}, and no setting has this name{near}: correct or remove it")
    return {name: typed(name, value, keys[name].kind) for name, value in values.items()}


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file, values as they are written there.

    Raises: FileNotFoundError; ValueError for a file that is not YAML, is not a table, or has tables inside it.
    """
    import yaml
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; --config needs a YAML file with lines like `lr: 0.001`: check the path (we are in {Path.cwd()})")
    try:
        # all values stay texts, their types are those of the settings: YAML's own guesses would make `no` a truth value and 1e-4 a word
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not YAML ({' '.join(str(e).split())}); needed are lines like `lr: 0.001`: correct the line") from None
    if not found:
        return {}
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        raise ValueError(f"{path} is not one flat table; needed are lines like `lr: 0.001`, one setting each and nothing nested: rewrite it that way")
    return found


def gather(words: list[str], places: tuple[str, ...], options: dict[str, Any], config: str | None, keys: dict[str, Key]) -> dict[str, Any]:
    """Everything the user set: the file, over it words and options of the command line.

    Args:   words: `key=value`, and others that fill `places` in order; options: those that were given are not None.
    Raises: KeyError and ValueError as `checked` does; ValueError for a word too many or a setting given twice.
    """
    given: dict[str, Any] = {}
    loose = [word for word in words if not WORD.fullmatch(word)]
    if len(loose) > len(places):
        before = " and ".join(map(str.upper, places))
        raise ValueError(f"{loose[len(places)]!r} has no meaning here; settings are written key=value, after {before}: remove it or add its key")
    pairs = [*zip(places, loose, strict=False), *((m["name"], m["value"]) for word in words if (m := WORD.fullmatch(word))),
             *((name, value) for name, value in options.items() if value is not None)]
    for name, value in pairs:
        if name in given:
            raise ValueError(f"{name} is given twice ({given[name]} and {value}); one value counts: remove the other")
        given[name] = value
    from_file = {} if config is None else checked(read_config(config), keys, f"the file {config}")
    return from_file | checked(given, keys, "the command line")


def describe(title: str, keys: dict[str, Key]) -> str:
    """The part of a help text that explains settings."""
    def default(key: Key) -> str:
        return "" if key.default is None else f" [{str(key.default).lower() if isinstance(key.default, bool) else key.default}]"

    width = max(len(name) for name in keys)
    return f"{title}:\n" + "\n".join(f"  {name:<{width}}  {key.about}{default(key)}".rstrip() for name, key in keys.items())
