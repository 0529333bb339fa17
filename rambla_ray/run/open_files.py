"""How many files and connections a process may have open here: too few, and Ray's own processes abort."""

from __future__ import annotations

import resource
from collections.abc import Iterable

from rambla_ray.config.model import ModelConfig
from rambla_ray.errors import UserError

LEAST = 128  # On two CPUs Ray's raylet has 73 open, and more with each process that it starts.
OF_AN_ACTOR = 64  # A model actor has 50 open beside its connections.
PLENTY = 4096  # Ray raises a process's own limit to its hard one up to here, and warns below.


def refuse_too_few(models: Iterable[ModelConfig]) -> None:
    """Check that a local cluster can start here, and that an actor of each model has its connections.

    Raises:
        UserError: the hard limit of this process, which those that it starts have, too, is too low.
    """
    calls = max((model.pool.max_concurrency for model in models if not model.params.is_local), default=0)
    needed = max(LEAST, OF_AN_ACTOR + calls)
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return
    way_out = f"raise it, with ulimit -n {PLENTY}"
    if limit >= LEAST:
        way_out += f", or set pool.max_concurrency to {limit - OF_AN_ACTOR} at most"
    raise UserError(
        f"a process may have {limit} files open here (ulimit -n), and a local run needs {needed}: {way_out}"
    )
