"""Records of the executor bots: every closed trade of each, for good."""
