"""Tasks: their stages, prompts and mutations."""
