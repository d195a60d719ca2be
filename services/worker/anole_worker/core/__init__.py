"""What a step runs, and who owns which block and adapter: pure, no torch."""
