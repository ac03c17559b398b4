"""From what the sources say to settings, or to a list of everything that is wrong with them.

pydantic's own messages are never used: they print the value. What stands there is shown unless its key
is named like a secret or it came from a credential file; of a URL everything up to its last @ and after
its ? is left out; of lists and mappings only that they are some.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from marketfeed.settings import values
from marketfeed.settings.sources import (
    KeyPath,
    Mistake,
    Origin,
    Reading,
    did_you_mean,
    dotted,
    is_secret,
    keys,
    kind_of,
    model_at,
    submodel,
)

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], readings: Sequence[Reading]) -> tuple[Model | None, list[Mistake]]:
    """Lay the readings over each other, from the lowest precedence to the highest, and validate.

    Returns the settings, or None and every mistake with the origin of the value that won.
    """
    data: object = {}
    origins: dict[KeyPath, Origin] = {}
    for reading in readings:
        data = _merge(model, data, reading.data)
        set_here = set(reading.origins)
        origins = {
            path: origin
            for path, origin in origins.items()
            if not any(path[:depth] in set_here for depth in range(2, len(path) + 1))
        } | reading.origins
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    return None, [mistake for detail in details for mistake in _mistakes(model, detail, origins)]


def _merge(model: type[BaseModel], low: object, high: object) -> object:
    """Lay `high` over `low`, key by key where the model has keys.

    A value of the wrong shape stays as it is, for validation to report.
    """
    if low is None or not isinstance(high, dict):
        return high
    if not isinstance(low, dict):
        return low
    merged = dict(low)
    for key, value in high.items():
        info = model.model_fields.get(key)
        below = submodel(info) if info else None
        merged[key] = _merge(below, merged.get(key), value) if below else value
    return merged


def _mistakes(
    model: type[BaseModel], detail: ErrorDetails, origins: Mapping[KeyPath, Origin]
) -> list[Mistake]:
    path, value = detail["loc"], detail["input"]
    origin = _origin(path, origins)
    if detail["type"] == "extra_forbidden":
        return [Mistake(dotted(path), f"unknown key{_nearest(model, path)}", origin)]
    if below := model_at(model, path):
        names = ", ".join(below.model_fields)
        what = f"expected a mapping with keys of {names}; found {kind_of(value)}"
        return [Mistake(dotted(path), what, origin)]
    context = detail.get("ctx", {}) if detail["type"] == values.MISTAKE else {}
    if "items" in context and isinstance(value, list | tuple):
        return [
            _wrong((*path, index), what, value[index], origins) for index, what in context["items"]
        ]
    return [_wrong(path, context.get("expected", "another value"), value, origins)]


def _wrong(path: KeyPath, what: str, value: object, origins: Mapping[KeyPath, Origin]) -> Mistake:
    origin = _origin(path, origins)
    return Mistake(dotted(path), f"expected {what}; found {_shown(path, value, origin)}", origin)


def _origin(path: KeyPath, origins: Mapping[KeyPath, Origin]) -> Origin | None:
    """Where the value at `path` was read, or what is around it if it was not set at all."""
    above = (path[:depth] for depth in range(len(path), 0, -1))
    return next((origins[part] for part in above if part in origins), None)


def _nearest(model: type[BaseModel], path: KeyPath) -> str:
    """Ask for the key that an unknown one may stand for, elsewhere or here, or say which there are."""
    section = model_at(model, path[:-1]) or model
    name = str(path[-1])
    elsewhere = [key for key in keys(model) if key[-1] == name]
    if elsewhere:
        return f", did you mean {dotted(elsewhere[0])}?"
    return did_you_mean(
        name, {key: key for key in section.model_fields}
    ) or ", known are " + ", ".join(section.model_fields)


def _shown(path: KeyPath, value: object, origin: Origin | None) -> str:
    """What stands there, without secrets, lists' contents or anything long."""
    if value is None or not isinstance(value, str | int):
        return kind_of(value)
    if origin and origin.secret:
        return "***"
    if any(is_secret(part) for part in path):
        is_file = str(path[-1]).endswith("_file") and _is_surely_a_path(value)
        return repr(value) if is_file else "***"
    text = str(value)
    if "@" in text:
        # A password in a URL, whichever characters it holds: up to the last @ nothing is shown.
        scheme = re.match(r"[A-Za-z]*://|", text)
        text = (scheme[0] if scheme else "") + "***" + text[text.rindex("@") :]
    for mark in "?#":
        head, found, _ = text.partition(mark)
        text = head + found + "***" * bool(found)
    return repr(text if len(text) <= 80 else text[:80] + "…")


def _is_surely_a_path(value: object) -> bool:
    """Whether text under a key such as token_file is a path, not a token that was put there by mistake."""
    path = Path(str(value))
    try:
        return path.is_absolute() and path.parent != Path("/") and path.parent.is_dir()
    except (OSError, ValueError):
        return False
