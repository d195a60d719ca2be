"""The tensors: model, KV cache, adapters, sampling. Only this package imports torch."""
