"""The pure scheduler: events in, commands out; no clock, no I/O."""
