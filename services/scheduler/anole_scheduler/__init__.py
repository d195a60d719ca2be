"""Decides which request runs, where, and when."""
