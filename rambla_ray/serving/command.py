"""The command line of serving, as a function over its words.

Importing this module imports nothing of weight, so that help comes at once, also where packages are missing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rambla_ray.display import unfailing_output
from rambla_ray.run.command import HELP_WORDS, status_of
from rambla_ray.run.status import ExitStatus

if TYPE_CHECKING:
    from socket import socket

    from rambla_ray.config.served import ServeConfig
    from rambla_ray.run.interruption import Interruption

KEY_VARIABLE = "SERVE_API_KEY"

SERVE_HELP = """\
Serve models behind an OpenAI-compatible endpoint: {program} [model=NAME[,NAME]] [key=value ...]

  model=a,b            model configs, from conf/model; the field `model` of a request picks (default: smollm2)
  host=HOST            where to listen (default: 127.0.0.1, for this machine alone)
  port=N               (default: 8000; 0 for any that is free)
  address=auto|local|HOST:PORT   the Ray cluster (default: the one that RAY_ADDRESS names, else a local one)
  conf_dir=PATH        a folder with your own model/, searched before conf/
  request_timeout_s=N  how long the body of a request may take to come, and a client may take nothing of its reply
                       (default: 60)
  verbose=true         let Ray's own log lines through
  model.params.KEY=V  pool.KEY=V  rate.KEY=V   override a key of the configs

SERVE_API_KEY in the environment is the key that clients must send, as `Authorization: Bearer KEY`. Without one only
this machine can be let in.

Ctrl-C, or SIGTERM, ends it once what is being answered is answered. Exit status: 0 ended so, 1 could not start,
130 interrupted before it was ready.
"""


@unfailing_output()
def serve(words: Sequence[str], program: Sequence[str] = ("rambla-ray", "serve")) -> int:
    """Run the command line of serving; returns the exit status, which `SERVE_HELP` explains.

    Args:
        words: what stands behind the program's name: `key=value`, or a request for help.
        program: the words that start this command, for the help.
    """
    if any(word in HELP_WORDS for word in words):
        print(SERVE_HELP.format(program=" ".join(program)))
        return ExitStatus.DONE
    from rambla_ray.run.interruption import Interruption

    with Interruption("interrupted before it was ready") as interruption:
        return status_of(lambda: _bind_and_run(words, interruption), interruption)


def _take_key() -> str | None:
    """The key that clients must send, if there is one; it is not in the environment any more. Raises UserError."""
    from rambla_ray.errors import UserError

    key = os.environ.pop(KEY_VARIABLE, None)  # The processes that are started from here on need not know it.
    key = key and key.strip()
    if key == "":
        raise UserError(f"{KEY_VARIABLE} is set and empty; put a key into it, or unset it")
    if key and not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY_VARIABLE} has characters that no client can send in a header; put another key into it")
    return key


def _bind_and_run(words: Sequence[str], interruption: Interruption) -> int:
    from rambla_ray.config.load import load_served
    from rambla_ray.config.run import cluster_address
    from rambla_ray.errors import UserError
    from rambla_ray.run.job import SubmittedJob
    from rambla_ray.run.open_files import refuse_too_few

    config = load_served(words)
    if job := SubmittedJob.current():
        job.refuse_secrets({KEY_VARIABLE})
    key = _take_key()
    try:
        from rambla_ray.serving import gateway
        from rambla_ray.serving.access import is_loopback
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}: pip install 'rambla_ray[serve]' -c constraints.txt") from None
    options = config.options
    own_cluster = job is None and cluster_address(options.address) == "local"
    if own_cluster:
        refuse_too_few(config.models.values())
    with gateway.bind(options.host, options.port) as bound:  # A port that is taken ends it before a model is loaded.
        if key is None and not is_loopback(bound.getsockname()[0]):
            raise UserError(
                f"host={options.host} lets other machines in, and there is no key: set {KEY_VARIABLE}, "
                "or leave host out"
            )
        return _run(config, bound, key, interruption, own_cluster=own_cluster)


def _run(config: ServeConfig, bound: socket, key: str | None, interruption: Interruption, *, own_cluster: bool) -> int:
    """Deploy the models on the cluster and answer at the bound address until a signal ends it."""
    import uvloop

    from rambla_ray.run import cluster  # It sets what Ray reads when it is imported, and so comes first.
    from rambla_ray.serving import deployment, gateway
    from rambla_ray.serving.limits import Limits

    host, port = bound.getsockname()[:2]
    deployment.preflight(config, same_machine=own_cluster)
    if own_cluster:
        deployment.settle_together(deployment.pools_of(config), cluster.own_cluster())
    warnings = cluster.connect(config.options.address, verbose=config.options.verbose)
    interruption.hand_over()  # What is deployed on a cluster of others is to be withdrawn.
    with deployment.deployed(config, port, lambda line: print(line, file=sys.stderr, flush=True)) as served:
        limits = Limits(body_s=config.options.request_timeout_s)
        server = gateway.server(gateway.Gateway(served, key, limits).app, bound, limits)
        shown = f"[{host}]" if ":" in host else host
        guarded = f"with the key in {KEY_VARIABLE}" if key else "without a key"
        warned = "".join(f"; warning: {warning}" for warning in warnings)
        print(
            f"serving {', '.join(served)} at http://{shown}:{port}/v1, {guarded}; Ctrl-C ends it{warned}", flush=True
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(server.serve([bound]))
    print("ended")
    return ExitStatus.DONE
