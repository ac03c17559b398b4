"""A durable SQLite file: opening, one writing thread, acknowledged ranges, backup."""
