"""Who may import whom: the packages of the house, as ARCHITECTURE.md lists them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "marketfeed").rglob("*.py"), *(ROOT / "reader").rglob("*.py")])
NAMES = [path.relative_to(ROOT).as_posix() for path in MODULES]

AT_THE_ROOT = {"schema", "errors", "records", "clock", "grid", "counters"}
"""Modules that every package of `marketfeed` may import; the simulator `schema` and `errors` alone."""
MAY_IMPORT = {
    "settings": set[str](),
    "storage": set[str](),
    "journal": {"storage"},
    "binance": set[str](),
    "ingest": {"binance", "journal"},
    "gaps": {"binance", "ingest", "journal"},
    "history": {"binance", "gaps", "ingest", "journal", "settings"},
    "pairs": {"binance", "gaps", "ingest", "journal", "settings"},
    "influxdb": {"journal", "settings", "storage"},
    "service": {"settings"},
    "page": set[str](),
    "collector": {
        *("settings", "storage", "journal", "binance", "ingest", "gaps", "history", "pairs"),
        *("influxdb", "service", "page"),
    },
    "aggregator": {"influxdb", "page", "service", "settings", "storage"},
    "bots": {"aggregator", "influxdb", "page", "service", "settings", "storage"},
    "simulator": set[str](),
}
"""The packages whose modules a package may import, besides its own. `commands` and `cli` may all."""

COMMANDS = {name for name in NAMES if name.endswith("_commands.py")} | {
    "marketfeed/commands/options.py"
}
ONLY_IN = {
    "cryptofeed": {"marketfeed/binance/feed.py"},
    "sqlite3": {
        "marketfeed/aggregator/ledger_refused.py",
        "marketfeed/aggregator/ledger_schema.py",
        "marketfeed/influxdb/outbox.py",
        "marketfeed/journal/aside.py",
        "marketfeed/journal/documents.py",
        "marketfeed/journal/migrations.py",
        "marketfeed/journal/marks.py",
        "marketfeed/journal/quotes.py",
        "marketfeed/journal/reads.py",
        "marketfeed/journal/refused_lines.py",
        "marketfeed/journal/rejected.py",
        "marketfeed/journal/retention.py",
        "marketfeed/journal/slices.py",
        "marketfeed/journal/stamps.py",
        "marketfeed/journal/view.py",
        "marketfeed/storage/acknowledged.py",
        "marketfeed/storage/backup.py",
        "marketfeed/storage/damage.py",
        "marketfeed/storage/database.py",
        "marketfeed/storage/files.py",
        "marketfeed/storage/folding.py",
        "marketfeed/storage/numbered_file.py",
        "marketfeed/storage/opening.py",
        "marketfeed/storage/reading.py",
        "reader/stores/journal_connections.py",
        "reader/stores/sqlite.py",
        "reader/stores/sqlite_errors.py",
    },
    "sdnotify": {"marketfeed/service/systemd.py"},
    "pandas": {name for name in NAMES if name.startswith("reader/")},
    "freqtrade": {"reader/freqtrade.py"},
    "influxdb_client": {"marketfeed/influxdb/admin.py"},
    "typer": {"marketfeed/cli.py", *COMMANDS},
    "rich": {
        *COMMANDS,
        "marketfeed/commands/render.py",
        "marketfeed/commands/render_bots.py",
        "marketfeed/commands/render_demo.py",
        "marketfeed/commands/render_history.py",
        "marketfeed/commands/render_refused.py",
    },
}
TOUCHES_THE_WORLD = {
    "aiohttp",
    "asyncio",
    "fcntl",
    "http",
    "io",
    "logging",
    "os",
    "pathlib",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "urllib3",
    "uvloop",
    "websockets",
}
"""Not `random`: jitter and invented markets are functions of a seed."""
READER_MAY_NEED = {"marketfeed", "reader", "pandas", "numpy", "msgspec", "urllib3"}


def imported(source: str, name: str) -> Iterator[str]:
    """Every module that the source of the module at `name` imports, wherever the import stands."""
    package = name.rpartition("/")[0].split("/")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package[: len(package) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.split(".", 1)[0]


def of_house(modules: set[str]) -> set[str]:
    """The modules and packages of `marketfeed` among these names, without `marketfeed.` before them."""
    inner = {module.split(".", 1)[1] for module in modules if module.startswith("marketfeed.")}
    return {m for m in inner if (ROOT / "marketfeed" / m.split(".")[0]).is_dir() or is_module(m)}


def is_module(name: str) -> bool:
    return (ROOT / "marketfeed" / f"{name.split('.', maxsplit=1)[0]}.py").exists()


def is_pure(name: str) -> bool:
    """Whether a module has `PURE = True`: no I/O, no clock, `now` is passed in."""
    return "\nPURE = True\n" in (ROOT / name).read_text(encoding="utf-8")


def wrong_edges(name: str, source: str) -> list[str]:
    """What a module at `name` with this source imports and may not, as sentences."""
    modules = set(imported(source, name))
    tops = {top(module) for module in modules}
    found = [
        f"{name}: {library} may not be imported here"
        for library, rooms in ONLY_IN.items()
        if library in tops and name not in rooms
    ]
    folder, *inner = name.split("/")
    if folder == "marketfeed" and len(inner) > 1 and (package := inner[0]) != "commands":
        allowed = {package, *MAY_IMPORT[package], *AT_THE_ROOT}
        if package == "simulator":
            allowed -= AT_THE_ROOT - {"schema", "errors"}
        found += [
            f"{name}: {package} may not import {module}"
            for module in sorted(of_house(modules))
            if module.split(".")[0] not in allowed
        ]
    if folder == "marketfeed" and inner[-1] in {f"{module}.py" for module in AT_THE_ROOT}:
        found += [
            f"{name}: a module at the root may not import {module}"
            for module in sorted(of_house(modules))
            if len(inner) == 1 and module.split(".")[0] not in AT_THE_ROOT
        ]
    if is_pure(name):
        found += [f"{name} is pure: {library}" for library in sorted(tops & TOUCHES_THE_WORLD)]
        files = {m.replace(".", "/") + ".py" for m in modules if top(m) in ("marketfeed", "reader")}
        found += [
            f"{name} is pure, and {file} is not"
            for file in sorted(files)
            if (ROOT / file).is_file() and not is_pure(file)
        ]
    if folder == "reader":
        ours = {module for module in modules if module.startswith("marketfeed.")}
        found += [
            f"{name}: of marketfeed, reader may import schema alone, not {module}"
            for module in sorted(ours)
            if module.split(".")[1] != "schema"
        ]
        foreign = {library for library in tops if library not in sys.stdlib_module_names}
        # `ONLY_IN` says where freqtrade may be imported.
        foreign -= READER_MAY_NEED | {"freqtrade"}
        found += [f"{name}: {library} is no need of a reader" for library in sorted(foreign)]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_imports_stay_in_their_rooms(name: str) -> None:
    assert wrong_edges(name, (ROOT / name).read_text(encoding="utf-8")) == []


def test_every_package_has_its_row() -> None:
    packages = {path.parent.name for path in (ROOT / "marketfeed").glob("*/__init__.py")}
    assert packages == {*MAY_IMPORT, "commands"}
    at_the_root = {path.stem for path in (ROOT / "marketfeed").glob("*.py")}
    assert at_the_root == {*AT_THE_ROOT, "__init__", "__main__", "cli"}


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        ("marketfeed/aggregator/votes.py", "import time", "is pure: time"),
        ("marketfeed/aggregator/votes.py", "from marketfeed.clock import x", "clock.py is not"),
        (
            "marketfeed/aggregator/api.py",
            "from marketfeed.gaps import healer",
            "may not import gaps",
        ),
        ("marketfeed/aggregator/api.py", "import marketfeed.history", "may not import history"),
        ("marketfeed/journal/rows.py", "from ..settings import model", "may not import settings"),
        (
            "marketfeed/simulator/pair.py",
            "from marketfeed import records",
            "may not import records",
        ),
        ("marketfeed/records.py", "from marketfeed.journal import rows", "may not import journal"),
        ("marketfeed/gaps/healer.py", "import cryptofeed", "cryptofeed may not be imported"),
        ("reader/frames.py", "from marketfeed.records import Candle", "schema alone"),
        ("reader/frames.py", "import aiohttp", "aiohttp is no need of a reader"),
    ],
)
def test_a_wrong_edge_is_found(name: str, line: str, found: str) -> None:
    assert name in NAMES
    assert any(found in sentence for sentence in wrong_edges(name, line))


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_import_reader_loads_nothing_of_the_collector() -> None:
    heavy = {"cryptofeed", "aiohttp", "uvloop", "influxdb_client", "pydantic", "typer", "rich"}
    assert heavy & loaded_by("reader") == set()


def test_the_aggregator_loads_nothing_of_the_collector() -> None:
    loaded = loaded_by("marketfeed.aggregator.aggregator")
    assert "marketfeed.aggregator.aggregator" in loaded
    not_its_own = {"binance", "ingest", "gaps", "history", "pairs", "collector", "commands"}
    of_others = {f"marketfeed.{package}" for package in not_its_own}
    assert {"cryptofeed", "influxdb_client", *of_others} & loaded == set()


def test_commands_that_show_something_do_not_load_pandas() -> None:
    assert {"pandas", "reader"} & loaded_by("marketfeed.commands.render") == set()
