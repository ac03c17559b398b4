"""Shipping to InfluxDB: outbox, line protocol, delivery, what answers mean, administration."""
