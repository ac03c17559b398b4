"""Where settings come from: the environment and credential files (`yaml` reads config.yaml).

The sources are read into one `Reading`, the lowest precedence first: nested data for validation, the
origin of every value, and the mistakes that can be found without knowing what a value means. No mistake
repeats a value.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from marketfeed.settings.values import FromText, decode_json

PREFIX: Final = "MARKETFEED_"
DELIMITER: Final = "__"
CONFIG_VARIABLE: Final = "MARKETFEED_CONFIG"
SECRETS_DIR_VARIABLE: Final = "MARKETFEED_SECRETS_DIR"

_OTHERS = ("URL", "TOKEN", "TOKEN_FILE", "CA_FILE", "BUCKET", "MISSING", "FREQTRADE")
FOREIGN_VARIABLES: Final = frozenset(
    {CONFIG_VARIABLE, SECRETS_DIR_VARIABLE, *(PREFIX + name for name in _OTHERS)}
)
"""Variables that are no settings of the collector: where they are, the reader's, the feeder's."""
TEST_PREFIX: Final = "MARKETFEED_TEST_"

MAX_CREDENTIAL_BYTES: Final = 64 * 1024
MAX_DIRECTORY_BYTES: Final = 16 * 1024 * 1024
"""A directory that holds more is none of credentials."""

KeyPath = tuple[str | int, ...]
"""Where a value stands: section, key, keys below it, index in a list."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
"""What a key may look like to be shown."""
_SECRET: Final = re.compile(r"token|passw|passphrase|secret|api[_-]?key|credential", re.IGNORECASE)


def is_secret(key: object) -> bool:
    """Whether a key is named like one whose value must not be shown (`token_file` is one of them)."""
    return isinstance(key, str) and _SECRET.search(key) is not None


def is_secret_itself(key: str) -> bool:
    """Whether a key's value is a secret, and not the path of a file that holds one."""
    return is_secret(key) and not key.lower().endswith("_file")


def dotted(path: KeyPath) -> str:
    """Write a path for people: `exchange.pairs[2]`. What is no name is left out: it may be a secret."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if _NAME.fullmatch(part) else "(not a name)")
    return text


def variable(path: KeyPath) -> str:
    """Name of the environment variable that sets the key at `path`."""
    return PREFIX + DELIMITER.join(str(part) for part in path).upper()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was read. `secret`: it came from a credential file and is not shown."""

    text: str
    secret: bool = False


@dataclass(frozen=True, slots=True)
class SettingsMistake:
    """One thing that is wrong: `what` about the key at `where`, read from `origin`."""

    where: str
    what: str
    origin: Origin | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.origin.text})" if self.origin else "")


@dataclass(slots=True)
class Reading:
    """What the sources hold. `complete` is false when there may be more in one than could be read."""

    data: dict[str, object] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    mistakes: list[SettingsMistake] = field(default_factory=list)
    complete: bool = True

    def wrong(self, where: str, what: str, origin: Origin | None = None) -> None:
        """Note a mistake."""
        self.mistakes.append(SettingsMistake(where, what, origin))


_Text = tuple[KeyPath, str | None, Origin]
"""A key, its text and its place in one source."""


def kind_of(value: object) -> str:
    """What sort of thing a value is, without showing it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "nothing" if value is None else "a single value"


# --- the keys of a model --------------------------------------------------------------------------


def section_of(info: FieldInfo | None) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    annotation = info.annotation if info else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def field_at(model: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    """The field at `path`, also of an item in a list or a mapping; None if there is no such key."""
    info: FieldInfo | None = FieldInfo.from_annotation(model)
    for part in path:
        if isinstance(part, int):
            items = get_args(info.annotation) if info else ()
            info = FieldInfo.from_annotation(items[0]) if items else None
        else:
            section = section_of(info)
            if section is None and info and get_origin(info.annotation) is dict:
                info = FieldInfo.from_annotation(get_args(info.annotation)[1])
                continue
            info = section.model_fields.get(part) if section else None
    return info


def keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all keys of a settings model that hold a value, in their order."""
    for name, info in model.model_fields.items():
        if section := section_of(info):
            yield from keys(section, (*above, name))
        else:
            yield (*above, name)


def did_you_mean(name: str, known: Mapping[str, str]) -> str:
    """A question to end a mistake with, or nothing if no name is near. `known`: name -> how to show it."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {known[near[0]]}?" if near else ""


# --- the environment and credential files ---------------------------------------------------------


def read_environment(model: type[BaseModel], environ: Mapping[str, str], reading: Reading) -> None:
    """Read `MARKETFEED_SECTION__KEY` variables, in capital or small letters.

    An empty variable counts as absent, as Docker and systemd users expect; `null` means none. Any
    variable with our prefix that sets nothing is a mistake.
    """
    known = _names(model)
    texts: list[_Text] = []
    for name in sorted(environ):
        upper = name.upper()
        foreign = upper in FOREIGN_VARIABLES or upper.startswith(TEST_PREFIX)
        if foreign or not upper.startswith(PREFIX):
            continue
        # Without the prefix, which would make every name look near.
        key, value = name[len(PREFIX) :].lower(), environ[name].strip()
        shown = name if name.isascii() and name.isprintable() else ascii(name)
        origin = Origin(f"environment variable {shown}")
        if path := known.get(key):
            if value:
                texts.append((path, None if value == "null" else value, origin))
        elif section := section_of(field_at(model, (key,))):
            example = variable((key, next(iter(section.model_fields))))
            what = f"a section is not set as a whole; set its keys, such as {example}"
            reading.wrong(shown, what)
        else:
            near = did_you_mean(key, {other: variable(path) for other, path in known.items()})
            where = dotted(tuple(key.split(DELIMITER))) if DELIMITER in key else shown
            reading.wrong(where, f"unknown key{near}", origin)
    _put_all(model, texts, reading)


def read_credentials(model: type[BaseModel], directory: Path, reading: Reading) -> None:
    """Read credential files named `section__key`, in capital or small letters, from `directory`.

    Files without the two underscores are not looked at: systemd and Docker put other things there.
    Links are followed.
    """
    known = _names(model)
    texts: list[_Text] = []
    try:
        files = sorted(directory.iterdir())
        size = sum(file.stat().st_size for file in files if file.is_file())
    except OSError as error:
        files, size = [], 0
        reading.complete = False
        reading.wrong(str(directory), f"credential directory cannot be read: {error.strerror}")
    if size > MAX_DIRECTORY_BYTES:
        reading.complete = False
        what = f"expected a directory of at most {MAX_DIRECTORY_BYTES} bytes of credentials"
        reading.wrong(str(directory), what)
    for file in files:
        if DELIMITER not in file.name or file.name.startswith("."):
            continue
        name, origin = file.name.lower(), Origin(f"credential file {file}", secret=True)
        if name not in known:
            near = did_you_mean(name, {other: other for other in known})
            reading.wrong(dotted(tuple(file.name.split(DELIMITER))), f"unknown key{near}", origin)
            continue
        try:
            texts.append((known[name], _text_in(file), origin))
        except ValueError as error:
            reading.complete = False
            reading.wrong(dotted(known[name]), str(error), origin)
    _put_all(model, texts, reading)


def _text_in(file: Path) -> str:
    """The text of a credential file, without the line end that editors leave. Raises ValueError."""
    try:
        if not file.is_file():
            raise ValueError("expected a file")
        if file.stat().st_size > MAX_CREDENTIAL_BYTES:
            raise ValueError(f"expected a file of at most {MAX_CREDENTIAL_BYTES} bytes")
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8 text") from None
    if not text:
        raise ValueError("the file is empty")
    return text


def _names(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Name in small letters -> path of every key, and of every mapping inside a section."""
    paths = [path[:depth] for path in keys(model) for depth in range(2, len(path) + 1)]
    return {DELIMITER.join(path).lower(): path for path in paths}


def _put_all(model: type[BaseModel], texts: Iterable[_Text], reading: Reading) -> None:
    """Lay one source's values over what was read before; a mapping as a whole goes before its keys."""
    seen: dict[KeyPath, Origin] = {}
    for path, text, origin in sorted(texts, key=lambda item: len(item[0])):
        if path in seen:
            both = f"is there twice, in capital and small letters; also as {seen[path].text}"
            reading.wrong(dotted(path), both, origin)
        seen[path] = origin
        info = field_at(model, path)
        marks = [mark for mark in info.metadata if isinstance(mark, FromText)] if info else []
        decode = marks[0].decode if marks else decode_json if section_of(info) else str
        _put(model, path, text and decode(text), origin, reading)


def _put(
    model: type[BaseModel], path: KeyPath, value: object, origin: Origin, reading: Reading
) -> None:
    """Lay a value over what is there; what has the wrong shape stays, for validation to report."""
    if isinstance(value, dict) and section_of(field_at(model, path)):
        for key, inner in value.items():
            _put(model, (*path, key), inner, origin, reading)
        return
    within: Any = reading.data
    for key in path[:-1]:
        within = within.setdefault(key, {})
        if not isinstance(within, dict):
            return
    within[path[-1]] = value
    others = {key: at for key, at in reading.origins.items() if key[: len(path)] != path}
    reading.origins = {**others, path: origin}
