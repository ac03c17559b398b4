"""config.yaml: its text, with the line of every value.

Every scalar stays the text that was written there, so nothing is turned into something else on the way
(YAML itself would read 3:00 as 180 and no as false), and text means the same here and in the environment.
Mistakes name lines, never contents: a secret may have strayed into the file.
"""

import re
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel

from marketfeed.settings import sources
from marketfeed.settings.sources import KeyPath, Origin, Reading

MAX_CONFIG_BYTES: Final = 1024 * 1024

_PLAIN_TAGS: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


_WRONG: Final = object()
"""Stands for a value about which a mistake has been noted already."""


def read_config(model: type[BaseModel], path: Path) -> Reading:
    """Read config.yaml. An empty file is no mistake: it leaves every key at its default."""
    reading = Reading()
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise ValueError
        node = yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.BaseLoader)
        data = {} if node is None else _YamlReader(model, path, reading).plain(node, ())
    except (OSError, yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reading.wrong(*_problem(path, error))
        reading.complete = False
        return reading
    if isinstance(data, dict):
        reading.data = data
    elif data is not None:
        reading.complete = False
        if data is not _WRONG:
            what = (
                f"expected sections such as exchange: and journal:; found {sources.kind_of(data)}"
            )
            reading.wrong(str(path), what)
    return reading


def _problem(path: Path, error: Exception) -> tuple[str, str]:
    """Where and what kept the file from being read, without a word of what is in it."""
    where = str(path)
    match error:
        case FileNotFoundError():
            what = (
                f"no such file; pass the path of one with --config or in {sources.CONFIG_VARIABLE}"
            )
        case OSError():
            what = f"cannot be read: {error.strerror}"
        case UnicodeDecodeError():
            what = f"is not UTF-8 text (byte {error.start})"
        case yaml.MarkedYAMLError():
            mark = error.problem_mark or error.context_mark
            if mark:
                where += f" line {mark.line + 1}, column {mark.column + 1}"
            # Single characters and token names such as '<block end>' may be repeated; anything longer
            # that is quoted comes from the file (an anchor, an alias, a tag) and may be a secret.
            text = ", ".join(part for part in (error.context, error.problem) if part)
            quoted = r"""'(?!<[a-z ]+>'|\\?.')[^']*'|"[^"]{2,}\""""
            what = "not valid YAML: " + re.sub(quoted, "…", text)
        case yaml.reader.ReaderError():
            what = f"a character that YAML does not allow (position {error.position})"
        case RecursionError():
            what = "is nested too deeply"
        case _:
            what = f"is not valid YAML, or larger than {MAX_CONFIG_BYTES} bytes"
    return where, what


class _YamlReader:
    """Turns YAML nodes into dicts, lists, text and None, noting each one's line."""

    def __init__(self, model: type[BaseModel], path: Path, reading: Reading) -> None:
        self._model = model
        self._path = path
        self._reading = reading
        self._seen: set[int] = set()

    def plain(self, node: yaml.Node, path: KeyPath) -> object:
        """The value of a node. What is wrong with it is noted, and gives `_WRONG`."""
        if id(node) in self._seen:
            # Also what keeps an alias to itself, or a thousand of them, from being followed.
            what = "aliases (*name) are not used here; write the value out"
            return self._wrong(node, path, what)
        self._seen.add(id(node))
        if node.tag not in _PLAIN_TAGS:
            return self._wrong(node, path, "YAML tags (!name) are not used here")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return self._list(node, path)
        return None if _is_null(node) else node.value

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or _is_null(key_node):
                self._wrong(key_node, path, "a key must be a name")
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            here = (*path, key)
            if key in lines:
                self._wrong(key_node, here, f"is there twice, on lines {lines[key]} and {line}")
                continue
            lines[key] = line
            if sources.is_secret_itself(key):
                self._wrong(key_node, here, self._where_secrets_go(path))
                continue
            self._reading.origins[here] = self._origin(key_node)
            value = self.plain(value_node, here)
            # A section with nothing in it leaves all of its keys at their defaults.
            if value is not _WRONG and not (
                value is None and sources.section_of(sources.field_at(self._model, here))
            ):
                result[key] = value
        return result

    def _list(self, node: yaml.SequenceNode, path: KeyPath) -> object:
        items: list[object] = []
        for index, item in enumerate(node.value):
            self._reading.origins[*path, index] = self._origin(item)
            items.append(self.plain(item, (*path, index)))
        return _WRONG if _WRONG in items else items

    def _where_secrets_go(self, section: KeyPath) -> str:
        text = "a secret does not belong in this file; it goes into the environment or a credential file"
        for path in sources.keys(self._model):
            if path[:-1] == section and sources.is_secret_itself(path[-1]):
                text += f", as {sources.variable(path)} or {sources.DELIMITER.join(path)}"
        return text

    def _origin(self, node: yaml.Node) -> Origin:
        return Origin(f"{self._path} line {node.start_mark.line + 1}")

    def _wrong(self, node: yaml.Node, path: KeyPath, what: str) -> object:
        self._reading.wrong(sources.dotted(path) or "the top level", what, self._origin(node))
        return _WRONG


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS
