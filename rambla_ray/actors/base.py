"""What an author of a model class imports: the classes to extend, and what they are given."""

from rambla_ray.actors.api.engine import BaseAPIModel
from rambla_ray.actors.local.checkpoint import BaseHuggingFaceModel
from rambla_ray.actors.model import Emit, Model, RunContext
from rambla_ray.config.keyed_params import KeyedParams
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate

__all__ = [
    "BaseAPIModel",
    "BaseHuggingFaceModel",
    "Emit",
    "KeyedParams",
    "Model",
    "ModelParams",
    "Pool",
    "Rate",
    "RunContext",
]
