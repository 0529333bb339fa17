"""Serve models behind an OpenAI-compatible endpoint: python jobs/serve.py [model=NAME[,NAME]] [key=value ...]

  model=a,b            model configs, from conf/model; the field `model` of a request picks (default: smollm2)
  host=HOST            where to listen (default: 127.0.0.1, for this machine alone)
  port=N               (default: 8000; 0 for any that is free)
  address=auto|local|HOST:PORT   the Ray cluster (default: the one that RAY_ADDRESS names, else a local one)
  conf_dir=PATH        a folder with your own model/, searched before conf/
  verbose=true         let Ray's own log lines through
  model.params.KEY=V  pool.KEY=V  rate.KEY=V   override a key of the configs

SERVE_API_KEY in the environment is the key that clients must send, as `Authorization: Bearer KEY`. Without one only
this machine can be let in.

Ctrl-C, or SIGTERM, ends it once what is being answered is answered. Exit status: 0 ended so, 1 could not start,
130 interrupted before it was ready.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

KEY_VARIABLE = "SERVE_API_KEY"
LONGEST_REASON = 500  # characters of why it could not start
ENDED, REFUSED, INTERRUPTED = 0, 1, 130


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    if any(word in ("-h", "--help", "help") for word in words):
        print(__doc__)
        return ENDED
    try:
        from rambla_ray.display import one_line
        from rambla_ray.errors import UserError
    except ModuleNotFoundError as error:
        print(f"error: {sys.executable} has no module {error.name}; activate the environment", file=sys.stderr)
        return REFUSED
    try:
        return _serve(words)
    except UserError as error:
        print(f"error: {one_line(str(error), LONGEST_REASON)}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted before it was ready", file=sys.stderr)
        return INTERRUPTED


def _serve(words: Sequence[str]) -> int:
    from rambla_ray.config import load as configs
    from rambla_ray.config.run import cluster_address
    from rambla_ray.errors import UserError
    from rambla_ray.run.job import SubmittedJob

    config = configs.load_served(words)
    if job := SubmittedJob.current():
        job.refuse_secrets({KEY_VARIABLE})
    key = os.environ.pop(KEY_VARIABLE, None)  # what is started from here on need not know it
    if key is not None and not key.strip():
        raise UserError(f"{KEY_VARIABLE} is set and empty; put a key into it, or unset it")
    try:
        from rambla_ray.serving import gateway
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}: pip install 'rambla_ray[serve]' -c constraints.txt") from None
    options = config.options
    if key is None and not gateway.is_loopback(options.host):
        raise UserError(
            f"host={options.host} lets other machines in, and there is no key: set {KEY_VARIABLE}, or leave host out"
        )
    own_cluster = job is None and cluster_address(options.address) == "local"
    with gateway.bind(options.host, options.port) as socket:  # before a model is loaded in vain
        return _run(config, gateway, socket, key and key.strip(), own_cluster=own_cluster)


def _run(config: Any, gateway: Any, socket: Any, key: str | None, *, own_cluster: bool) -> int:
    import uvloop

    from rambla_ray.run.cluster import connect

    host, port = socket.getsockname()[:2]
    from rambla_ray.serving import deployment as serving

    serving.preflight(config, same_machine=own_cluster)
    connect(config.options.address, verbose=config.options.verbose)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serving.deployed(config, port, lambda line: print(line, file=sys.stderr, flush=True)) as served:
        server = gateway.server(gateway.Gateway(served, key).app, socket)
        shown = f"[{host}]" if ":" in host else host
        guarded = f"with the key in {KEY_VARIABLE}" if key else "without a key"
        print(f"serving {', '.join(served)} at http://{shown}:{port}/v1, {guarded}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(server.serve([socket]))
    print("ended")
    return ENDED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
