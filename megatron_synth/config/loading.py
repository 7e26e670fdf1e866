"""Read a config: YAML, then overrides, then validation with messages for people."""

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from megatron_synth.config.errors import ConfigError

ConfigType = TypeVar("ConfigType", bound=BaseModel)


def load_config(path: Path, schema: type[ConfigType], overrides: Sequence[str] = ()) -> ConfigType:
    """Read `path` as YAML, apply `a.b=c` overrides in order, and validate against `schema`.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, or a value
            does not fit the schema. All wrong keys are named in one message.
    """
    return parse_config(apply_overrides(read_yaml(path), overrides), schema, where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: No such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        nearby = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(
            "no such file" if not path.is_dir() else "is a folder, not a YAML file",
            where=path,
            fix=f"YAML files there: {', '.join(nearby[:8])}" if nearby else "Check the path.",
        )
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {error}", where=path) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=path) from error
    if not isinstance(loaded, dict):
        raise ConfigError("the top level must be a mapping of keys to values", where=path)
    return loaded


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `tree` with each `a.b=c` set; `c` is read as YAML (`1e-3` as a number).

    Raises:
        ConfigError: An override has no `=`, or walks through a value that is no mapping.
    """
    result = _copy(tree)
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(
                f"{override!r} is not an override", fix="Write key.subkey=value, without spaces."
            )
        try:
            value = _read_scalar(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value is not YAML: {error}", where=override) from error
        _set(result, parts, value, where=override)
    return result


def with_values(
    tree: Mapping[str, Any], values: Mapping[str, Any], *, where: str
) -> dict[str, Any]:
    """Return a copy of `tree` with each of `values` set; keys may be written with dots.

    Raises:
        ConfigError: A key walks through a value that is no mapping.
    """
    result = _copy(tree)
    for key, value in values.items():
        _set(result, str(key).split("."), value, where=f"{where}: {key}")
    return result


def _set(tree: dict[str, Any], parts: Sequence[str], value: Any, *, where: str) -> None:
    """Set the value at `parts`; a number among them counts the items of a list, from 0."""
    node: Any = tree
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise ConfigError(
                    f"{'.'.join(parts[:depth])} is a list of {len(node)}, which has no {part!r}",
                    where=where,
                    fix="Items of a list are counted from 0.",
                )
            key: Any = int(part)
        elif isinstance(node, dict):
            key = part
            if not last and node.get(key) is None:  # absent, or nothing after its colon
                node[key] = {}
        else:
            raise ConfigError(
                f"{'.'.join(parts[:depth])} is {node!r}, which has no keys of its own", where=where
            )
        if last:
            node[key] = value
        else:
            node = node[key]


def parse_config(tree: Mapping[str, Any], schema: type[ConfigType], *, where: str) -> ConfigType:
    """Validate `tree` against `schema`.

    Raises:
        ConfigError: Names every wrong key, and the nearest valid one for each unknown key.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item, schema) for item in error.errors(include_url=False)]
        raise ConfigError("; ".join(lines), where=where) from None


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy_value(value) for key, value in tree.items()}


def _copy_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _copy(value)
    return [_copy_value(item) for item in value] if isinstance(value, list) else value


def _read_scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(item: Any, schema: type[BaseModel]) -> str:
    location: tuple[Any, ...] = item["loc"]
    key = ".".join(str(part) for part in location)
    kind = item["type"]
    if kind == "extra_forbidden":
        parent = _schema_at(schema, location[:-1])
        names = sorted(parent.model_fields) if parent else []
        near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    if kind == "missing":
        return f"{key!r} must be set"
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return str(message)
    return f"{key!r}: {message[0].lower()}{message[1:]}, got {item['input']!r}"


def _schema_at(schema: type[BaseModel], location: Sequence[Any]) -> type[BaseModel] | None:
    """Follow `location` through nested models, lists, mappings, optionals and tagged unions."""
    candidates: list[Any] = [schema]
    for part in location:
        following: list[Any] = []
        for candidate in candidates:
            if _is_model(candidate):
                field = candidate.model_fields.get(str(part))
                if field is not None:
                    following.extend(_flatten(field.annotation))
                elif part in (candidate.__name__, _tag(candidate)):
                    following.append(candidate)
        candidates = following or candidates
    models = [c for c in candidates if _is_model(c)]
    return models[0] if models else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tag(model: type[BaseModel]) -> Any:
    return next((f.default for f in model.model_fields.values() if f.default is not None), None)


def _flatten(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, list, tuple, dict, typing.Annotated):
        return [leaf for arg in typing.get_args(annotation) for leaf in _flatten(arg)]
    return [annotation]
