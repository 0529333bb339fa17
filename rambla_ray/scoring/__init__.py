"""Scoring: from texts to answers, outcomes and numbers. Pure: no Ray, no files."""
