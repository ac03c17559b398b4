"""Where settings come from: the environment and credential files (`settings_yaml` reads config.yaml).

Each source is read into a `Reading`: nested data for validation, the origin of every value, and the
mistakes that can be told without knowing what a value means. No mistake repeats a value.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pydantic_settings
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    SecretsSettingsSource,
)

from marketfeed.settings.values import FromText, decode_json

PREFIX: Final = "MARKETFEED_"
DELIMITER: Final = "__"
CONFIG_VARIABLE: Final = "MARKETFEED_CONFIG"
SECRETS_DIR_VARIABLE: Final = "MARKETFEED_SECRETS_DIR"

FOREIGN_VARIABLES: Final = frozenset(
    {
        CONFIG_VARIABLE,
        SECRETS_DIR_VARIABLE,
        "MARKETFEED_URL",
        "MARKETFEED_TOKEN",
        "MARKETFEED_TOKEN_FILE",
        "MARKETFEED_BUCKET",
        "MARKETFEED_MISSING",
        "MARKETFEED_FREQTRADE",
    }
)
"""Variables that are no settings of the collector: where they are, the reader's, the feeder's."""
TEST_PREFIX: Final = "MARKETFEED_TEST_"

MAX_CREDENTIAL_BYTES: Final = 64 * 1024

KeyPath = tuple[str | int, ...]
"""Where a value stands: section, key, keys below it, index in a list."""

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
"""What a key may look like to be shown."""
_SECRET = re.compile(r"token|passw|passphrase|secret|api[_-]?key|credential", re.IGNORECASE)


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
            text += "." * bool(text) + (part if NAME.fullmatch(part) else "(not a name)")
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
class Mistake:
    """One thing that is wrong: `what` about the key at `where`, read from `origin`."""

    where: str
    what: str
    origin: Origin | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.origin.text})" if self.origin else "")


@dataclass(slots=True)
class Reading:
    """What one source says. `complete` is false when there may be more in it than could be read."""

    data: dict[str, object] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    complete: bool = True


def kind_of(value: object) -> str:
    """What sort of thing a value is, without showing it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "nothing" if value is None else "a single value"


# --- the keys of a model --------------------------------------------------------------------------


def submodel(info: FieldInfo) -> type[BaseModel] | None:
    """The model that a field holds, if it holds one."""
    annotation = info.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all keys of a settings model that hold a value, in their order."""
    for name, info in model.model_fields.items():
        below = submodel(info)
        if below is None:
            yield (*above, name)
        else:
            yield from keys(below, (*above, name))


def model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model whose keys stand below `path`, or None if there is none."""
    found: type[BaseModel] | None = model
    for part in path:
        info = found.model_fields.get(str(part)) if found else None
        found = submodel(info) if info else None
    return found


def did_you_mean(name: str, known: Mapping[str, str]) -> str:
    """A question to end a mistake with, or nothing if no name is near. `known`: name -> how to show it."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {known[near[0]]}?" if near else ""


# --- the environment and credential files ---------------------------------------------------------


class _Texts(EnvSettingsSource):
    """Text by name, such as `marketfeed_exchange__pairs`, nested by pydantic-settings."""

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        """Decode by the field's own `FromText`. Never raises: wrong text is validation's business."""
        for mark in field.metadata if field else ():
            if isinstance(mark, FromText):
                return mark.decode(value)
        return decode_json(value) if field and submodel(field) else value


class _CredentialFiles(_Texts, NestedSecretsSettingsSource):
    """Credential files. Reads those named like a setting: what else lies there is not ours."""

    @classmethod
    def load_secrets(cls, path: Path) -> dict[str, str]:
        """Text by file name, without the line end that editors leave."""
        return {
            file.name: file.read_text(encoding="utf-8").strip() for file in _credential_files(path)
        }


def read_environment(model: type[BaseSettings], environ: Mapping[str, str]) -> Reading:
    """Read `MARKETFEED_SECTION__KEY` variables, in capital or small letters.

    An empty variable counts as absent, as Docker and systemd users expect; `null` means none. Any
    variable with our prefix that sets nothing is a mistake.
    """
    reading = Reading()
    known = _names(model, PREFIX)
    texts: dict[str, str | None] = {}
    for name in sorted(environ):
        upper = name.upper()
        if (
            not upper.startswith(PREFIX)
            or upper in FOREIGN_VARIABLES
            or upper.startswith(TEST_PREFIX)
        ):
            continue
        path = known.get(name.lower())
        if path is None:
            reading.mistakes.append(_unknown_variable(model, name, known))
        elif value := environ[name].strip():
            _note(reading, path, Origin(f"environment variable {name}"))
            texts[name.lower()] = None if value == "null" else value
    source = _Texts(model, env_prefix=PREFIX, env_nested_delimiter=DELIMITER, case_sensitive=False)
    source.env_vars = texts
    reading.data = source()
    return reading


def _unknown_variable(
    model: type[BaseModel], name: str, known: Mapping[str, tuple[str, ...]]
) -> Mistake:
    section = name.lower().removeprefix(PREFIX.lower())
    shown = name if name.isascii() and name.isprintable() else ascii(name)
    if below := model_at(model, (section,)):
        example = variable((section, next(iter(below.model_fields))))
        return Mistake(shown, f"a section is not set as a whole; set its keys, such as {example}")
    # Without the prefix, which would make every name look near.
    near = did_you_mean(
        section, {other.removeprefix(PREFIX.lower()): other.upper() for other in known}
    )
    path = dotted(tuple(section.split(DELIMITER))) if DELIMITER in section else shown
    return Mistake(path, f"unknown key{near}", Origin(f"environment variable {shown}"))


def read_credentials(model: type[BaseSettings], directory: Path) -> Reading:
    """Read credential files named `section__key`, in capital or small letters, from `directory`.

    Files without the two underscores are not looked at: systemd and Docker put other things there.
    Links are followed. pydantic-settings refuses a directory that holds more than 16 MiB in all.
    """
    reading = Reading()
    known = _names(model, "")
    try:
        files = _credential_files(directory)
    except OSError as error:
        what = f"credential directory cannot be read: {error.strerror}"
        reading.mistakes.append(Mistake(str(directory), what))
        reading.complete = False
        return reading
    for file in files:
        path, origin = known.get(file.name.lower()), Origin(f"credential file {file}", secret=True)
        if path is None:
            near = did_you_mean(file.name.lower(), {name: name for name in known})
            reading.mistakes.append(
                Mistake(dotted(tuple(file.name.split(DELIMITER))), f"unknown key{near}", origin)
            )
        elif problem := _credential_problem(file):
            reading.mistakes.append(Mistake(dotted(path), problem, origin))
            reading.complete = False
        else:
            _note(reading, path, origin)
    if not reading.complete:
        return reading
    problem = ""
    try:
        source = _CredentialFiles(
            SecretsSettingsSource(model),
            secrets_dir=directory,
            secrets_dir_missing="error",
            secrets_prefix="",
            secrets_nested_delimiter=DELIMITER,
            secrets_case_sensitive=False,
        )
        source.env_vars = {k: text for k, text in sorted(source.env_vars.items()) if k in known}
        reading.data = source()
    except pydantic_settings.SettingsError as error:
        problem = str(error)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"changed while it was read ({type(error).__name__})"
    if problem:
        reading.mistakes.append(Mistake(str(directory), f"credential directory: {problem}"))
        reading.complete = False
    return reading


def _credential_files(directory: Path) -> list[Path]:
    return sorted(
        file
        for file in directory.iterdir()
        if DELIMITER in file.name and not file.name.startswith(".")
    )


def _credential_problem(file: Path) -> str:
    try:
        if not file.is_file():
            return "expected a file"
        if file.stat().st_size > MAX_CREDENTIAL_BYTES:
            return f"expected a file of at most {MAX_CREDENTIAL_BYTES} bytes"
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return "the file is not UTF-8 text"
    return "" if text.strip() else "the file is empty"


def _names(model: type[BaseModel], prefix: str) -> dict[str, tuple[str, ...]]:
    """Name in small letters -> path of every key, and of every mapping inside a section."""
    paths = [path[:depth] for path in keys(model) for depth in range(2, len(path) + 1)]
    return {(prefix + DELIMITER.join(path)).lower(): path for path in paths}


def _note(reading: Reading, path: KeyPath, origin: Origin) -> None:
    if path in reading.origins:
        both = f"is there twice, in capital and small letters; also as {reading.origins[path].text}"
        reading.mistakes.append(Mistake(dotted(path), both, origin))
    reading.origins[path] = origin
