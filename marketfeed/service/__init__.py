"""What every service shares: systemd, logs, listening, guard, status port."""
