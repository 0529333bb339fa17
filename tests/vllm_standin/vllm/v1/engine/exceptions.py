"""How an engine ends."""


class EngineDeadError(Exception):
    """Its process has gone."""
