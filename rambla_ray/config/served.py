"""The whole configuration of what is served, resolved."""

from __future__ import annotations

from pydantic import Field

from rambla_ray.config.families import Families, by_config
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.run import Names, key_variables_of
from rambla_ray.tasks.closed import Closed


class ServeOptions(Closed):
    """The root keys of `jobs/serve.py`."""

    model: Names = Field(description="model configs to serve, separated by commas")
    host: str = Field("127.0.0.1", description="where to listen; another than this machine's own needs a key")
    port: int = Field(8000, ge=0, lt=2**16, description="0 for any that is free")
    address: str | None = Field(None, description="auto | local | host:port, as for a run")
    request_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="how long the body of a request may take to come, and a client may take nothing of its reply",
    )
    verbose: bool = Field(False, description="let Ray's own log lines through")


class ServeConfig(Closed):
    """Everything that is served, resolved."""

    options: ServeOptions
    models: dict[str, ModelConfig]
    families: Families = Field(
        default_factory=dict,
        exclude=True,
        description="by model that is one adapter of several, where it comes from",
    )

    @property
    def deployments(self) -> dict[str, dict[str, ModelConfig]]:
        """By the name of a config, the models that its actors hold."""
        groups = by_config(self.models, self.families)
        return {name: {model: self.models[model] for model in group} for name, group in groups.items()}

    @property
    def key_variables(self) -> frozenset[str]:
        """The environment variables that hold the keys of the served models."""
        return key_variables_of(self.models.values())
