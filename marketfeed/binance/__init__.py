"""Binance USD-M futures: the feed, its frames, its symbols and its REST API."""
