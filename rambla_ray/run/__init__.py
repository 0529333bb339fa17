"""A run: its plan, its place on the cluster, its stream and its end."""
