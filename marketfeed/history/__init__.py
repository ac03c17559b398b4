"""Older candles and settled funding rates: plan, backfill, audit, comparison."""
