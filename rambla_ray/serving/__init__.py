"""Serving models behind an OpenAI-compatible endpoint."""
