"""The machinery of models that run on the cluster itself."""
