"""What is measured: always two things in one run, as a ratio, with the physical limit beside it."""
