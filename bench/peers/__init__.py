"""Anole beside other servers of LoRA adapters: same machine, prompts, adapters and load."""
