"""YAML and plain mappings to dataclasses and back, strict both ways.

A dataclass is its own schema: its fields are the keys, its annotations the types, its defaults the
defaults. A field whose annotation is the base class of a registry takes a name, or a mapping whose
``kind`` is the name and whose other keys are the fields of that class. Without ``kind`` the mapping
changes fields of the default.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from expunge.errors import ConfigError, did_you_mean
from expunge.registry import Registry, registry_of

T = TypeVar("T")


def build(registry: Registry[T], value: object, path: str = "") -> T:
    """An object of a registry from a name, a mapping with ``kind``, or an object of that kind.

    Raises:
        ConfigError: an unknown name or key, a missing key, or a value of the wrong type or range.
    """
    if isinstance(value, registry.base):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a name or a mapping for the {registry.noun}, got {_short(value)}.", path)
    fields = dict(value)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str):
        raise ConfigError(f"'kind' is missing: name one of the {registry.noun}s {registry.names()}.", path)
    try:
        cls = registry.get(kind)
    except ConfigError as error:
        raise error.under(path) from None
    return parse(cls, fields, path)


def parse(cls: type[T], value: object, path: str = "") -> T:
    """A dataclass from a mapping; every key must be a field and every value of the field's type."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a mapping, got {_short(value)}.", path)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, item in value.items():
        if key not in fields:
            known = did_you_mean(str(key), fields) or f" {cls.__name__} has no fields."
            raise ConfigError(f"unknown key '{key}'.{known}", path)
        place = f"{path}.{key}" if path else str(key)
        arguments[key] = _convert(hints[key], _completed(item, fields[key]), place)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ConfigError(f"'{name}' is missing.", path)
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise error.under(path) from None


def _completed(value: object, field: dataclasses.Field[Any]) -> object:
    """A mapping without ``kind`` changes some fields of the default: ``{lr: 0.1}`` for an optimiser."""
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if isinstance(value, Mapping) and "kind" not in value and _kind(default):
        return {**dump(default), **value}
    return value


LATER = "later"


def later(default: T) -> T:
    """The default of a dataclass's field that was added after results had been kept: see ``identity``."""
    found: T = dataclasses.field(default=default, metadata={LATER: True})
    return found


def identity(value: object) -> Any:
    """``dump`` for keys of what is kept: without fields that came later and have their default.

    What was kept before there was such a field is found as long as nobody sets it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.init]
        known = [f for f in fields if not f.metadata.get(LATER) or getattr(value, f.name) != f.default]
        kind = _kind(value)
        return {
            **({"kind": kind} if kind else {}),
            **{f.name: identity(getattr(value, f.name)) for f in known},
        }
    return dump(value)


def dump(value: object) -> Any:
    """The mapping that ``build`` and ``parse`` turn back into an equal object; JSON-serialisable."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        kind = _kind(value)
        return {"kind": kind, **fields} if kind else fields
    if isinstance(value, Mapping):
        return {str(key): dump(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{type(value).__name__} cannot be written to a configuration file.")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"cannot read '{path}': {reason}. Give the path of a YAML file.") from None
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = str(getattr(error, "problem", None) or error).replace("\n", " ")
        raise ConfigError(f"'{path}'{line} is not valid YAML: {problem}.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"'{path}' holds {_short(value)}; expected a mapping of settings.")
    return value


def write_yaml(value: object, path: Path) -> None:
    """Writes a dataclass or mapping as YAML, in the order of its fields."""
    path.write_text(yaml.safe_dump(dump(value), sort_keys=False), encoding="utf-8")


def override(value: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of a mapping with ``a.b.c=value`` assignments applied; the values are read as YAML."""
    result = copy.deepcopy(value)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"'{assignment}' is not an override. Write key=value, for example seed=1.")
        try:
            item = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            raise ConfigError(f"the value of '{assignment}' is not valid YAML.") from None
        *parents, last = key.strip().split(".")
        node: Any = result
        for parent in parents:
            at = _place(node, parent, assignment)
            held = node.get(at) if isinstance(node, dict) else node[at]
            if held is None:
                node[at] = {}
            elif isinstance(held, str):
                node[at] = {"kind": held}  # "salun" and {kind: salun} mean the same
            node = node[at]
        node[_place(node, last, assignment)] = item
    return result


def _place(node: Any, key: str, assignment: str) -> Any:
    """Where ``key`` is, or would be, in a mapping or a list."""
    if isinstance(node, dict):
        return key
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return int(key)
    raise ConfigError(f"'{assignment}': there is no '{key}' to set; it is not a mapping or list that has it.")


def _convert(hint: Any, value: Any, path: str) -> Any:
    registry = registry_of(hint)
    if registry is not None:
        return build(registry, value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else parse(hint, value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) and _holds_objects(hint):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if _holds_objects(a)), value, path)
    if origin is tuple and arguments[-1:] == (Ellipsis,) and _holds_objects(arguments[0]):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"expected a list, got {_short(value)}.", path)
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) and _holds_objects(arguments[1]):
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected a mapping, got {_short(value)}.", path)
        return {str(key): _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    return _leaf(hint, value, path)


def _leaf(hint: Any, value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"expected a finite number, got {value}.", path)
    try:
        # JSON mode: strict about types, yet a list is a tuple and a string is a path.
        return pydantic.TypeAdapter(hint).validate_json(json.dumps(dump(value)), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        inner = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        said = first["msg"][0].lower() + first["msg"][1:]
        raise ConfigError(f"{said}, got {_short(value)}.", path + inner) from None
    except (TypeError, ConfigError):
        raise ConfigError(f"{_short(value)} is not a value of type {hint}.", path) from None


def _holds_objects(hint: Any) -> bool:
    if registry_of(hint) is not None or dataclasses.is_dataclass(hint):
        return True
    return any(_holds_objects(argument) for argument in typing.get_args(hint))


def _kind(value: object) -> str | None:
    for cls in type(value).__mro__:
        registry = registry_of(cls)
        if registry is not None:
            return registry.name_of(value)
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-3`` as a string; everybody who writes it means a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping in which every key stands once; YAML itself would keep the last of equal ones."""
    seen = set()
    for key, _ in node.value:
        if key.value in seen and key.value != "<<":
            raise yaml.MarkedYAMLError(
                problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
            )
        seen.add(key.value)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
