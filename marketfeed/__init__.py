"""Marketfeed: one collector of Binance USD-M futures market data for a whole fleet of bots."""

__version__ = "0.2.0"
__all__ = ["__version__"]
