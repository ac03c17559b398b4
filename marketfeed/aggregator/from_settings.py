"""What the settings say to the aggregator: whether it can do its work with them, and how it decides."""

from typing import Final
from urllib.parse import urlsplit

from marketfeed.aggregator.ballots import Rules
from marketfeed.aggregator.ledger_tables import META, BotName
from marketfeed.aggregator.passed import kept_ms
from marketfeed.aggregator.signals import SIDES, Electorate
from marketfeed.aggregator.start import Spans
from marketfeed.aggregator.timing import DEFAULT_PACE
from marketfeed.errors import SettingsError
from marketfeed.settings.aggregator import AggregatorSettings

_THIS_HOST: Final = ("localhost", "127.0.0.1", "::1")
"""What one bot on this host may be called."""


def require_complete(
    settings: AggregatorSettings, searched_s: float = DEFAULT_PACE.searched_s
) -> None:
    """Raise SettingsError, with every mistake, when the aggregator could not do its work with these.

    `searched_s`: so long after a bot's time-out the trade of an order is looked for (`Pace`).
    """
    mistakes = []
    if not settings.accounts:
        mistakes.append(
            "aggregator.accounts: expected at least one, or nobody may post (`marketfeed hash-password` "
            "makes its hash); found none"
        )
    if not settings.feeders.long and not settings.feeders.short:
        mistakes.append("aggregator.feeders: expected feeders of at least one side; found none")
    bots = {"long": settings.bots.long, "short": settings.bots.short}
    if not any(bot.url for bot in bots.values()):
        mistakes.append("aggregator.bots: expected the url of at least one bot; found none")
    meta = settings.bots.meta
    if meta.url and _place(meta.url) in [_place(bot.url) for bot in bots.values() if bot.url]:
        mistakes.append(
            "aggregator.bots.meta.url: expected a third bot, as one of the two would get its orders twice; "
            f"found {meta.url}"
        )
    for side, bot in (bots | {"meta": meta}).items():
        if bot.url and bot.password is None and bot.password_file is None:
            mistakes.append(
                f"aggregator.bots.{side}: expected a password, as a file in password_file or in "
                f"MARKETFEED_AGGREGATOR__BOTS__{side.upper()}__PASSWORD; found none"
            )
    for side, bot in (bots | {"meta": meta}).items():
        least_s = bot.timeout_s + searched_s
        if bot.url and settings.unconfirmed_s < least_s:
            # Else an order is lost, and alarms, before its answer is due or its trade can be found.
            mistakes.append(
                f"aggregator.unconfirmed_s: expected at least {least_s:g}, which is "
                f"aggregator.bots.{side}.timeout_s ({bot.timeout_s:g}) and {searched_s:g} s to look for the "
                f"trade; found {settings.unconfirmed_s:g}"
            )
    if len(places := [_place(bot.url) for bot in bots.values() if bot.url]) > len(set(places)):
        mistakes.append(
            "aggregator.bots.long.url, aggregator.bots.short.url: expected two bots, as one would get the "
            f"orders of both sides at once; found {settings.bots.short.url} for both"
        )
    if mistakes:
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "a mistake"
        raise SettingsError(f"{count} in the settings:\n" + "\n".join(f"  {m}" for m in mistakes))


def _place(url: str) -> tuple[str | None, int | None, str]:
    """What two spellings of one bot's address have in common."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    host = "localhost" if parts.hostname in _THIS_HOST else parts.hostname
    return host, port, parts.path.removesuffix("/api/v1")


def rules_of(settings: AggregatorSettings) -> Rules:
    """How is decided, by the settings."""
    feeders, bots = settings.feeders, settings.bots
    return Rules(
        window_ms=round(settings.window_s * 1000),
        min_agreements=settings.min_agreements,
        min_confidence=settings.min_confidence,
        on_conflict=settings.on_conflict,
        cooldown_ms=round(settings.cooldown_s * 1000),
        expire_ms=round(settings.expire_s * 1000),
        default_leverage=settings.default_leverage,
        max_leverage=settings.max_leverage,
        ordertypes=settings.ordertypes,
        early_grace_ms=None
        if settings.early_grace_s is None
        else round(settings.early_grace_s * 1000),
        electorate=Electorate.of(feeders.long, feeders.short, feeders.aliases),
        bots=tuple(
            side for side, bot in zip(SIDES, (bots.long, bots.short), strict=True) if bot.url
        ),
        copies=bots.meta.url is not None,
    )


def without_bot(rules: Rules) -> set[BotName]:
    """The sides that have no bot, and the meta bot if there is none."""
    found: set[BotName] = {side for side in SIDES if side not in rules.bots}
    return found if rules.copies else {*found, META}


def spans_of(settings: AggregatorSettings) -> Spans:
    """How long what was before a start matters.

    After `quiet_ms` no order can be under way, and after `clock_quiet_ms` no conflict and no cool-down of
    before can reach a later decision, whatever its times say.
    """
    rules = rules_of(settings)
    return Spans(
        quiet_ms=round(max(settings.unconfirmed_s, 2 * settings.window_s) * 1000),
        clock_quiet_ms=max(rules.cooldown_ms, kept_ms(rules)),
        asked_ms=max(rules.cooldown_ms, 2 * rules.window_ms),
    )
