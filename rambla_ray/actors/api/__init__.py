"""The machinery of models behind endpoints."""
