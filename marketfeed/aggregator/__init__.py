"""The service between the feeders and the executor bots: collects signals, votes, forwards at most once."""
