"""The pure ledger of regions and leases."""
