"""Runs batches that mix LoRA adapters over one base model."""
