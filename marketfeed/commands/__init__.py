"""The commands, one module each, and how they are shown."""
