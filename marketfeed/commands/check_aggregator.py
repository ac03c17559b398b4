"""`marketfeed check`, as far as the aggregator is concerned."""

import aiohttp

from marketfeed.aggregator.bot_config import unsuited
from marketfeed.aggregator.freqtrade_bot import Bot
from marketfeed.aggregator.from_settings import require_complete
from marketfeed.aggregator.ledger_schema import KIND
from marketfeed.aggregator.ledger_tables import BotName
from marketfeed.commands.check import check_file
from marketfeed.commands.finding import Finding
from marketfeed.errors import SettingsError
from marketfeed.service.freqtrade_api import BotError
from marketfeed.settings.aggregator import BotSettings
from marketfeed.settings.model import AggregatorSettings, Settings


def is_configured(settings: AggregatorSettings) -> bool:
    """Whether somebody has set up an aggregator at all."""
    bots = settings.bots
    return bool(
        settings.accounts
        or settings.feeders != AggregatorSettings().feeders
        or bots.long.url
        or bots.short.url
    )


def _is_begun(settings: AggregatorSettings) -> bool:
    """Whether it has an account or a bot's password: the shipped example has neither."""
    bots = (settings.bots.long, settings.bots.short, settings.bots.meta)
    return bool(settings.accounts) or any(bot.password or bot.password_file for bot in bots)


async def check_aggregator(settings: Settings, session: aiohttp.ClientSession) -> list[Finding]:
    """Look at settings, ledger and bots. A bot that is down is a warning: decisions wait for it a while."""
    aggregator = settings.aggregator
    if not _is_begun(aggregator):
        # The collector alone is checked most often: what it does not need must not make it look bad.
        text = "not set up: no account, no bot's password. Only `marketfeed aggregate` needs them"
        return [Finding("aggregator", "warning", text)]
    try:
        require_complete(aggregator)
    except SettingsError as error:
        return [Finding("aggregator", "bad", line) for line in _mistakes(error)]
    feeders = aggregator.feeders
    text = (
        f"{len(feeders.long)} long and {len(feeders.short)} short feeders, "
        f"{aggregator.min_agreements} decide; {len(aggregator.accounts)} accounts"
    )
    findings = [Finding("aggregator", "good", text)]
    for value, default in (
        ("confidence", aggregator.missing_confidence),
        ("feeder", aggregator.missing_feeder),
    ):
        if default != "reject":
            text = f"signals without a {value} are taken with {value} {default}"
            findings.append(Finding("aggregator", "warning", text))
    quote = settings.exchange.quote
    findings.append(check_file(KIND, aggregator.ledger.path)[0])
    findings.append(await _check_bot("long", aggregator.bots.long, quote, session))
    findings.append(await _check_bot("short", aggregator.bots.short, quote, session))
    if aggregator.bots.meta.url:
        findings.append(await _check_bot("meta", aggregator.bots.meta, quote, session))
    return findings


def _mistakes(error: SettingsError) -> list[str]:
    return [line.strip() for line in str(error).splitlines()[1:]]


async def _check_bot(
    side: BotName, settings: BotSettings, quote: str, session: aiohttp.ClientSession
) -> Finding:
    subject = f"bot {side}"
    if settings.url is None:
        text = f"aggregator.bots.{side}.url is null: decisions of this side are not forwarded"
        return Finding(subject, "warning", text)
    bot = Bot(settings, session)
    try:
        # Unlike /ping it needs the password, as an order does.
        config = await bot.config()
    except BotError as error:
        return Finding(subject, "warning", f"{bot.url}: {error}")
    bad = unsuited(config, side, quote)
    if config.force_entry_enable is False:
        bad.insert(0, "it refuses every order: set force_entry_enable to true in its config")
    if bad:
        return Finding(subject, "bad", f"{bot.url}: {'; '.join(bad)}")
    if config.not_running:
        text = f"{bot.url} takes no orders: {config.not_running}"
        return Finding(subject, "warning", text)
    return Finding(subject, "good", f"{bot.url} answers, and knows user and password")
