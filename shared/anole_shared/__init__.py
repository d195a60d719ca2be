"""What every service shares: messages, bus, store, settings, telemetry, errors, clock."""
