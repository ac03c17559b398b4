"""Which pairs are collected: listing, selection, roster, lifecycle, catalog, lives."""
