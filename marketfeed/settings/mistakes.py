"""From what the sources hold to settings, or to a list of everything that is wrong with them.

pydantic's own messages are never used: they print the value. What stands there is shown unless its key
is named like a secret or it came from a credential file; of a URL everything up to its last @ and after
its ? is left out; of lists and mappings only that they are some, and of accounts nothing.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from marketfeed.settings import sources
from marketfeed.settings.sources import KeyPath, Origin, Reading, SettingsMistake, dotted, field_at
from marketfeed.settings.values import MISTAKE, Duration, words_for

Model = TypeVar("Model", bound=BaseModel)

_EXPECTED: Final[Mapping[object, str]] = {
    bool: "true or false",
    int: "a whole number from {ge} to {le}",
    float: "a number from {ge:g} to {le:g}",
    Duration: "a duration such as 90s, 5m, 2h or 400d, from {ge} to {le}",
}
"""What a key of a type without words of its own expects; `ge` and `le` are the key's bounds."""


def validate(model: type[Model], reading: Reading) -> tuple[Model | None, list[SettingsMistake]]:
    """The settings, or None and every mistake with the origin of the value that won."""
    try:
        return model.model_validate(reading.data), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    return None, [_mistake(model, detail, reading.origins) for detail in details]


def _mistake(
    model: type[BaseModel], detail: ErrorDetails, origins: Mapping[KeyPath, Origin]
) -> SettingsMistake:
    path, found = detail["loc"], detail["input"]
    # Where the value was read, or what is around it if it was not set at all.
    above = (path[:depth] for depth in range(len(path), 0, -1))
    origin = next((origins[part] for part in above if part in origins), None)
    if detail["type"] == "extra_forbidden":
        return SettingsMistake(dotted(path), f"unknown key{_nearest(model, path)}", origin)
    shown = _shown(path, found, origin)
    if detail["type"] == "missing":
        what, shown = _words(field_at(model, path)) or "a value", "nothing"
    elif detail["type"] == MISTAKE:
        what, shown = detail["ctx"]["expected"], detail["ctx"]["found"] or shown
    elif section := sources.section_of(field_at(model, path)):
        what = f"a mapping with keys of {', '.join(section.model_fields)}"
        shown = sources.kind_of(found)
    else:
        what = _expected(model, path)
    return SettingsMistake(dotted(path), f"expected {what}; found {shown}", origin)


def _words(info: FieldInfo | None) -> str:
    return next((words for mark in info.metadata if (words := words_for(mark))), "") if info else ""


def _expected(model: type[BaseModel], path: KeyPath) -> str:
    info = field_at(model, path)
    if info is None or get_origin(info.annotation) is Literal:
        return " or ".join(get_args(info.annotation)) if info else "another value"
    bounds = {
        name: getattr(mark, name)
        for mark in info.metadata
        for name in ("ge", "le")
        if hasattr(mark, name)
    }
    return _EXPECTED.get(info.annotation, "another value").format(**bounds)


def _nearest(model: type[BaseModel], path: KeyPath) -> str:
    """Suggest the key that an unknown one may stand for, elsewhere or here, or list those there are."""
    name = str(path[-1])
    if elsewhere := [key for key in sources.keys(model) if key[-1] == name]:
        return f", did you mean {dotted(elsewhere[0])}?"
    section = sources.section_of(field_at(model, path[:-1])) or model
    near = sources.did_you_mean(name, {key: key for key in section.model_fields})
    return near or ", known are " + ", ".join(section.model_fields)


def _shown(path: KeyPath, value: object, origin: Origin | None) -> str:
    """What stands there, without secrets, lists' contents or anything long."""
    if value is None or not isinstance(value, str | int):
        return sources.kind_of(value)
    if (origin and origin.secret) or "accounts" in path:
        return "***"
    if any(sources.is_secret(part) for part in path):
        is_file = str(path[-1]).endswith("_file") and _is_surely_a_path(value)
        return repr(value) if is_file else "***"
    text = str(value)
    if "@" in text:
        # A password in a URL, whichever characters it holds: up to the last @ nothing is shown.
        scheme = re.match(r"[A-Za-z]*://|", text)
        text = (scheme[0] if scheme else "") + "***" + text[text.rindex("@") :]
    text = re.sub(r"([?#]).*", r"\1***", text, count=1, flags=re.DOTALL)
    return repr(text if len(text) <= 80 else text[:80] + "…")


def _is_surely_a_path(value: object) -> bool:
    """Whether text under a key such as token_file is a path, not a token that was put there by mistake."""
    path = Path(str(value))
    try:
        return path.is_absolute() and path.parent != Path("/") and path.parent.is_dir()
    except (OSError, ValueError):
        return False
