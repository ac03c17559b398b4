"""The prose: its size, its sentences, and whether every link and command that it names exists."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import typer.main

from marketfeed.cli import app

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
PAGES: Final = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "PROOFS.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "grafana" / "README.md",
]
NAMES: Final = [page.relative_to(ROOT).as_posix() for page in PAGES]

MAX_BYTES: Final = 6 * 1024
MAX_LINES: Final = 120
MAX_WORDS: Final = 25
DECISION: Final = ("Context", "Choice", "Measured cost", "When it may be dropped")

_FENCED: Final = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```[ ]*$", re.MULTILINE | re.DOTALL)
_SPAN: Final = re.compile(r"`([^`]+)`")
_LINK: Final = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_PROMPT: Final = re.compile(r"^\s*[$#] (.*)")
_HEADING: Final = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_TEST: Final = re.compile(r"\btests/[\w/]+(?:\.py)?")
_TARGET: Final = re.compile(r"^([a-z][\w-]*):(?!=)", re.MULTILINE)


class Named(NamedTuple):
    """A command that a page names, as words."""

    page: str
    words: tuple[str, ...]


# --- what stands on a page ------------------------------------------------------------------------


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCED.sub("\n", text_of(page))


def anchors_of(page: Path) -> set[str]:
    """What a link to a heading of the page may name, as GitHub makes it."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose_of(page)):
        words = _LINK.sub(r"\1", heading).strip().lower()
        anchor = name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        again = 0
        while anchor in found:
            again += 1
            anchor = f"{name}-{again}"
        found.add(anchor)
    return found


def sentences_of(page: Path) -> Iterator[str]:
    """The sentences of a page's prose: of paragraphs, list items, headings and cells of tables."""
    # What stands in backticks is one word, whatever is in it.
    text = _SPAN.sub("code", _LINK.sub(r"\1", prose_of(page)))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#>|]|\d+\.) ?)|\|", text):
        yield from re.split(r"(?<=[.!?])[*_)]*\s+", " ".join(block.split()))


def lines_of(page: Path) -> Iterator[str]:
    """The lines of a page that a shell would take, and what stands in backticks."""
    for language, block in _FENCED.findall(text_of(page)):
        if language == "console":
            joined = re.sub(r"\\\n\s*", " ", block)
            yield from (found[1] for line in joined.splitlines() if (found := _PROMPT.match(line)))
    for span in _SPAN.findall(prose_of(page)):
        yield " ".join(span.split())


def commands_of(page: Path) -> Iterator[Named]:
    name = page.relative_to(ROOT).as_posix()
    for line in lines_of(page):
        try:
            words = shlex.split(line.replace("…", " "), comments=True)
        except ValueError:
            continue  # no command: an apostrophe, say
        command: list[str] = []
        for word in [*words, ";"]:
            if word in {"&&", "||", "|", ";"}:
                if command:
                    yield Named(name, tuple(command))
                command = []
            elif command or "=" not in word:
                command.append(word)


NAMED: Final = [named for page in PAGES for named in commands_of(page)]


def shown(named: Named) -> str:
    return f"{named.page}: {' '.join(named.words)}"


# --- size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_the_first_pages_are_short(name: str) -> None:
    assert len((ROOT / name).read_bytes()) <= MAX_BYTES


def test_the_readme_has_few_lines() -> None:
    assert len(text_of(README).splitlines()) <= MAX_LINES


def test_no_sentence_of_the_readme_is_long() -> None:
    long = [one for one in sentences_of(README) if len(one.split()) > MAX_WORDS]
    assert long == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")))
def test_a_decision_says_what_it_costs_and_when_it_may_go(page: Path) -> None:
    title, *parts = _HEADING.findall(text_of(page))
    assert title.startswith(page.name[:3] + ". ")
    assert tuple(parts) == DECISION
    assert f"]({page.name})" in text_of(page.with_name("README.md"))


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for _, link in _LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.exists() and target.is_relative_to(ROOT)
        if there and anchor:
            there = target.suffix == ".md" and anchor in anchors_of(target)
        if not there:
            broken.append(link)
    assert broken == []


# --- commands -------------------------------------------------------------------------------------


def test_every_command_of_marketfeed_exists_with_its_options() -> None:
    group = typer.main.get_command(app)
    commands = getattr(group, "commands")  # noqa: B009 - typer calls a group a Command
    unknown, known = [], 0
    for named in NAMED:
        program, *words = named.words
        if program in commands and any(word.startswith("--") for word in words):
            words = [program, *words]  # in prose a command may stand without `marketfeed`
        elif Path(program).name != "marketfeed" or not words:
            continue
        known += 1
        command = group
        if not words[0].startswith("-") and words[0] != "COMMAND":
            command = commands.get(words.pop(0))
        if command is None:
            unknown.append(shown(named))
            continue
        options = {"--help"}
        for parameter in command.params:
            options.update(parameter.opts, parameter.secondary_opts)
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        unknown.extend(f"{shown(named)}: {option}" for option in given - options)
    assert unknown == []
    assert known > 50


def test_every_target_of_make_exists() -> None:
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    given = [
        (shown(named), word)
        for named in NAMED
        if named.words[0] == "make"
        for word in named.words[1:]
        if "=" not in word
    ]
    assert [text for text, target in given if target not in targets] == []
    assert len(given) > 10


def test_every_module_and_script_of_python_exists() -> None:
    unknown, known = [], 0
    for named in NAMED:
        program, *words = named.words
        if not re.fullmatch(r"python[0-9.]*", Path(program).name) or not words:
            continue
        known += 1
        if words[0] != "-m":
            there = (ROOT / words[0]).exists()
        else:
            there = len(words) > 1 and importlib.util.find_spec(words[1]) is not None
        if not there:
            unknown.append(shown(named))
    assert unknown == []
    assert known > 5


def test_every_test_and_script_of_a_proof_exists() -> None:
    # What was moved would show as a proof that failed, an hour later.
    proofs = (ROOT / "PROOFS.md", *sorted((ROOT / "tests" / "proofs").glob("*.py")))
    named = {path for page in proofs for path in _TEST.findall(page.read_text(encoding="utf-8"))}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert len(named) > 5
