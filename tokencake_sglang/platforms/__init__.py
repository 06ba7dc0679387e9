"""Platforms for SGLang beside its own: so far, plain CPU torch."""
