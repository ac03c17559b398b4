"""The collector: its wiring, its upkeep, and what it reports of itself."""
