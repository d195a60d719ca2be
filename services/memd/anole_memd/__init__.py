"""Owns a host's memory regions and leases them out over a unix socket."""
