"""As vLLM lays it out."""
