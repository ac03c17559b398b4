"""Who may import what: the rooms of the house, as ARCHITECTURE.md draws them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "marketfeed").rglob("*.py"), *(ROOT / "reader").rglob("*.py")])

COMMANDS = {
    "marketfeed/commands/options.py",
    *(
        f"marketfeed/commands/{name}_commands.py"
        for name in ("aggregator", "collector", "history", "simulator")
    ),
}
ONLY_IN = {
    "cryptofeed": {"marketfeed/binance/feed.py"},
    "sqlite3": {
        "marketfeed/storage/backup.py",
        "marketfeed/storage/damage.py",
        "marketfeed/storage/database.py",
        "marketfeed/journal/journal.py",
        "marketfeed/journal/refused_lines.py",
        "marketfeed/journal/view.py",
        "marketfeed/influxdb/outbox.py",
        "marketfeed/aggregator/ledger.py",
        "marketfeed/storage/acknowledged.py",
        "reader/stores/sqlite.py",
    },
    "sdnotify": {"marketfeed/service/systemd.py"},
    "pandas": {path.relative_to(ROOT).as_posix() for path in (ROOT / "reader").rglob("*.py")},
    "typer": {"marketfeed/cli.py", *COMMANDS},
    "rich": {
        *COMMANDS,
        "marketfeed/commands/render.py",
        "marketfeed/commands/render_history.py",
    },
}
PURE = {
    "marketfeed/__init__.py",
    "marketfeed/aggregator/signals.py",
    "marketfeed/aggregator/votes.py",
    "marketfeed/influxdb/answers.py",
    "marketfeed/journal/batch.py",
    "marketfeed/binance/budget.py",
    "marketfeed/binance/decode.py",
    "marketfeed/binance/odd_rows.py",
    "marketfeed/binance/symbols.py",
    "marketfeed/influxdb/unanswered.py",
    "marketfeed/errors.py",
    "marketfeed/influxdb/line_protocol.py",
    "marketfeed/storage/ranges.py",
    "marketfeed/records.py",
    "marketfeed/journal/rows.py",
    "marketfeed/schema.py",
    "marketfeed/grid.py",
    "marketfeed/history/plan.py",
    "marketfeed/history/comparison.py",
    "marketfeed/binance/archive_rows.py",
    "marketfeed/binance/backoff.py",
    "marketfeed/gaps/deadlines.py",
    "marketfeed/binance/rollover.py",
    "marketfeed/pairs/roster.py",
    *(
        f"marketfeed/simulator/{name}.py"
        for name in (
            "book",
            "catalogue",
            "frames",
            "funding",
            "history",
            "instrument",
            "limits",
            "listings",
            "market",
            "pair",
            "published",
            "trades",
            "venue",
        )
    ),
    "marketfeed/journal/tables.py",
    "marketfeed/collector/pair_states.py",
    "reader/arguments.py",
    "reader/errors.py",
    "reader/frames.py",
    "reader/latest.py",
    "reader/rows.py",
    "reader/values.py",
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
    "random",
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
READER_MAY_NEED = {"marketfeed", "reader", "pandas", "numpy", "msgspec", "urllib3"}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever it stands."""
    package = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.split(".", 1)[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_stay_in_their_rooms(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    modules = set(imported(path))
    tops = {top(module) for module in modules}
    for library, rooms in ONLY_IN.items():
        assert library not in tops or name in rooms, f"{library} may not be imported in {name}"
    if name in PURE:
        # Jitter and invented markets; a seeded Random is a function of its seed.
        allowed = {"random"}
        assert not tops & TOUCHES_THE_WORLD - allowed, f"{name} is pure"
        inner = {m for m in modules if top(m) in ("marketfeed", "reader") and m.count(".")}
        files = {m.replace(".", "/") + ".py" for m in inner}
        assert {f for f in files if (ROOT / f).exists()} <= PURE
    if name.startswith("reader/"):
        ours = {m for m in modules if top(m) == "marketfeed"}
        assert ours <= {"marketfeed", "marketfeed.schema"} or all(
            m.startswith("marketfeed.schema") for m in ours if m != "marketfeed"
        )
        foreign = {t for t in tops if t not in sys.stdlib_module_names}
        assert foreign <= READER_MAY_NEED | (
            {"freqtrade"} if name.endswith("freqtrade.py") else set()
        )
    if name == "marketfeed/schema.py":
        assert tops <= sys.stdlib_module_names
    if name == "marketfeed/__init__.py":
        assert not tops


def test_every_pure_module_exists() -> None:
    assert {name for name in PURE if not (ROOT / name).exists()} == set()


def test_import_reader_loads_nothing_of_the_collector() -> None:
    code = (
        "import sys, reader\n"
        "heavy = {'cryptofeed', 'aiohttp', 'uvloop', 'influxdb_client', 'pydantic', 'typer', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
