"""Settings: file, environment and credential files as one frozen object."""
