"""Models behind Ray Serve: each config a deployment whose replicas hold one model each.

Ray Serve keeps the replicas alive, scales them and spreads the requests. The requests come to it from the gateway
through handles, not through its own HTTP proxies, which cost more than twice as much per request.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.schema import DeploymentStatus

from rambla_ray.actors.model import Model, RunContext, hide_gpus
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.sections import Pool
from rambla_ray.config.served import ServeConfig
from rambla_ray.config.workload import ENDLESS
from rambla_ray.display import print_error
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.run.cluster import configure_logging, connected_cluster
from rambla_ray.run.node_groups import STRATEGY
from rambla_ray.run.placement import Cluster, PooledModel, waiting_reason
from rambla_ray.run.pool_resources import bundles_of, describe_resources
from rambla_ray.schema import Request, Response

MOST_WAITING = 1024  # So many requests may wait for a replica of one model; more are turned away.
LOAD = 0.5  # Replicas are added when more than this share of their max_concurrency is in flight on average.
RAISED = f"{CallError.__module__}.{CallError.__qualname__}: "  # The line of a traceback with a CallError begins so.
HEALTH_CHECK_S = 2.0  # A replica whose engine has died is found so soon.
LAST_WORDS_S = 5.0  # A replica that is being stopped has so long for what it is still doing.


class Replica:
    """A model, or several on one base, in an actor of Ray Serve. A call that has no answer returns its error: one that
    is raised would be logged by Ray at length.

    Args:
        name: of the deployment.
        configs: by model, with their pool settled; they differ in their params alone.
    """

    def __init__(self, name: str, configs: Mapping[str, ModelConfig]) -> None:
        first = next(iter(configs.values()))
        hide_gpus(first.pool)
        first.hide()
        params = {model: config.params for model, config in configs.items()}
        self._models: Mapping[str, Model] = first.kind.several(params, first.pool, first.rate)
        for model in self._models.values():
            if not first.params.is_local:  # Credit is topped up, and rights are given, while it is served.
                model.attach(RunContext(stops=False))
            model.open()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica whose check raises."""
        for model in self._models.values():
            model.check_health()

    def __del__(self) -> None:
        """Called by Ray Serve where a replica ends in order."""
        for model in getattr(self, "_models", {}).values():
            model.close()

    async def answer(self, model: str, requests: Sequence[Request]) -> list[Response] | CallError:
        """Answer some requests together, by the model of a name; the first error is the answer to all of them."""
        calls = [asyncio.ensure_future(self._models[model].generate(request)) for request in requests]
        try:
            return await asyncio.gather(*calls)
        except Exception as error:  # noqa: BLE001 - the boundary: a library's fault must not look like Serve's
            return _as_call_error(error)
        finally:
            for call in calls:
                call.cancel()

    async def stream(self, model: str, request: Request) -> AsyncGenerator[str | Response | CallError, None]:
        """The answer's text as it is made, then the response, or the error."""
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        call = asyncio.ensure_future(self._models[model].generate(request, pieces.put_nowait))
        call.add_done_callback(lambda _: pieces.put_nowait(None))
        sent = False
        try:
            while (piece := await pieces.get()) is not None:
                sent = True
                yield piece
            response = await call
            if response.text and not sent:
                yield response.text
            yield response
        except Exception as error:  # noqa: BLE001 - as above
            yield _as_call_error(error)
        finally:
            call.cancel()


def _as_call_error(error: Exception) -> CallError:
    return error if isinstance(error, CallError) else CallError(ErrorKind.INTERNAL, type(error).__name__)


class ServedModel:
    """A deployed model, as `gateway.Served`.

    Args:
        name: of the model.
        config: the model's.
        handle: of its deployment, which may hold others, too.
    """

    def __init__(self, name: str, config: ModelConfig, handle: Any) -> None:
        self._name = name
        self.generates = config.params.produces == "text"
        self.embeds = config.params.embeds
        self.created = int(time.time())
        self._answer = handle.answer
        self._stream = handle.options(stream=True).stream

    async def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Answer some requests together, in one replica. Raises CallError."""
        with _calling(self._answer, self._name, requests) as call:
            answer = await call
            if isinstance(answer, CallError):
                raise answer
            responses: list[Response] = answer
            return responses

    async def stream(self, request: Request) -> AsyncGenerator[str | Response, None]:
        """The answer's text piece by piece, then the response. Raises CallError."""
        with _calling(self._stream, self._name, request) as call:
            async for item in call:
                if isinstance(item, CallError):
                    raise item
                yield item


@contextlib.contextmanager
def _calling(method: Any, *arguments: object) -> Iterator[Any]:
    """A call of a replica, which is cancelled when nobody waits for its end."""
    call = method.remote(*arguments)
    try:
        yield call
    except BackPressureError:
        raise CallError(ErrorKind.RATE_LIMITED, f"{MOST_WAITING} requests already wait for this model") from None
    except (RayError, RayServeException) as error:
        raise CallError(ErrorKind.DIED, f"the model's process is gone ({type(error).__name__})") from None
    except (asyncio.CancelledError, GeneratorExit):
        call.cancel()
        raise


def preflight(config: ServeConfig, *, same_machine: bool) -> None:
    """Check what can be checked before anything starts. Raises UserError."""
    for name, model in config.models.items():
        if model.params.produces != "text" and not model.params.embeds:
            raise UserError(f"model {name} compares two texts, for which the OpenAI API has no endpoint; drop it")
        try:
            model.params.preflight(same_machine=same_machine)
        except UserError as error:
            raise UserError(f"model {name}: {error}") from None
    for model in config.models.values():
        for remark in model.params.remarks:
            print_error(remark, "note")


@contextlib.contextmanager
def deployed(config: ServeConfig, port: int, notify: Callable[[str], None]) -> Iterator[dict[str, ServedModel]]:
    """Deploy the models on the connected cluster, for as long as the context lasts.

    Args:
        config: what to serve.
        port: of the gateway, which tells its models from those of others on the same cluster.
        notify: takes a line for the user.

    Raises:
        UserError: a model has no place, or cannot be loaded.
    """
    cluster = connected_cluster()
    models = settle_together(pools_of(config), cluster)
    for model in models:
        if waiting := waiting_reason(model, cluster):
            notify(waiting)
    names = {model.name: f"{model.name}-{port}" for model in models}
    has_others = bool(serve.status().applications)
    serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False})
    configure_logging(verbose=config.options.verbose)
    try:
        held = config.deployments
        handles = _run(
            [
                serve.RunTarget(_application(model, held[model.name]), names[model.name], route_prefix=None)
                for model in models
            ]
        )
        yield {
            name: ServedModel(name, own, handle)
            for model, handle in zip(models, handles, strict=True)
            for name, own in held[model.name].items()
        }
    finally:
        if has_others:
            for name in names.values():
                serve.delete(name)
        else:
            serve.shutdown()


def _run(targets: Sequence[serve.RunTarget]) -> list[Any]:
    """The applications' handles, once their models are loaded. Raises UserError when one cannot be."""
    try:
        return list(serve.run_many(targets))
    except RuntimeError as error:
        applications = serve.status().applications
        failed = [
            (name, deployment.message)
            for target in targets
            if target.name in applications
            for name, deployment in applications[target.name].deployments.items()
            if deployment.status == DeploymentStatus.DEPLOY_FAILED
        ]
        name, message = failed[0] if failed else ("", str(error))
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith(RAISED)), lines[-1])
        raise UserError(f"model {name} cannot be loaded: {reason.removeprefix(RAISED)}") from None


def pools_of(config: ServeConfig) -> dict[str, ModelConfig]:
    """By deployment, a config with its pool: that of any of the models that it holds."""
    return {name: next(iter(held.values())) for name, held in config.deployments.items()}


def settle_together(configs: Mapping[str, ModelConfig], cluster: Cluster) -> list[PooledModel]:
    """The models with their pools settled, so that the cluster holds all of them at their smallest.

    Raises:
        UserError: it cannot.
    """
    models = [PooledModel(name, config) for name, config in configs.items()]
    alone = [model.settled(cluster) for model in models]
    if cluster.grows or cluster.holds([model.pool for model in alone]):
        return alone
    local = [model for model in alone if model.pool.num_cpus]
    share = max(1, int(cluster.cpus) // sum(model.pool.min_size for model in local)) if local else 1
    fair = [
        settled.with_pool(settled.pool.model_copy(update={"num_cpus": float(share)}))
        if model.pool.num_cpus is None and settled.pool.num_cpus
        else settled
        for model, settled in zip(models, alone, strict=True)
    ]
    if not cluster.holds([model.pool for model in fair]):
        asked = ", ".join(f"{model.name} {model.pool.min_size} × {describe_resources(model.pool)}" for model in fair)
        raise UserError(
            f"the models do not fit the cluster together ({asked}; it has {cluster.cpus:g} CPUs and "
            f"{cluster.gpus:g} GPUs); set pool.num_cpus or pool.num_gpus, serve fewer, or add nodes"
        )
    return fair


def _application(model: PooledModel, held: Mapping[str, ModelConfig]) -> Any:
    """A deployment, whose pool is settled, for Ray Serve to run: of some models."""
    pool = model.pool
    size: dict[str, Any] = {"num_replicas": pool.min_size}
    if pool.largest > pool.min_size:
        limits = {"min_replicas": pool.min_size, "max_replicas": pool.largest}
        size = {"autoscaling_config": {**limits, "target_ongoing_requests": max(1.0, LOAD * pool.max_concurrency)}}
    deployment = serve.deployment(Replica).options(
        name=model.name,
        **_placed(pool),
        max_ongoing_requests=pool.max_concurrency,
        max_queued_requests=MOST_WAITING,
        max_constructor_retry_count=1,  # A model that cannot be loaded now cannot be loaded a moment later.
        graceful_shutdown_timeout_s=LAST_WORDS_S,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=HEALTH_CHECK_S,
        logging_config={"enable_access_log": False},
        **size,
    )
    settled = {
        name: own.with_params(own.params.planned(lambda: None, lambda: ENDLESS)).model_copy(update={"pool": pool})
        for name, own in held.items()
    }
    return deployment.bind(model.name, settled)


def _placed(pool: Pool) -> dict[str, Any]:
    """Ray Serve's options for where the replicas of a settled pool run."""
    if pool.node_count == 1:
        return {"ray_actor_options": {"num_cpus": pool.num_cpus or 0.0, "num_gpus": pool.num_gpus or 0.0}}
    return {
        "ray_actor_options": {"num_cpus": 0.0, "num_gpus": 0.0},  # What a replica takes is its group's.
        "placement_group_bundles": bundles_of(pool),
        "placement_group_strategy": STRATEGY,
    }
