"""A Binance on loopback: for demos, tests and benchmarks."""
