"""The stores that a reader reads from: SQLite and InfluxDB."""
