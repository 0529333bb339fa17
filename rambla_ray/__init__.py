"""rambla_ray: how far a language model can be relied on as a biomedical assistant, measured at cluster scale."""

__version__ = "0.1.0"
