"""Ray clusters: the only module that imports Ray, and only inside functions. The driver connects, workers are actors."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_study.engine.places import PlaceLost
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report.markup import counted
from relu_study.runner.cluster_address import Address, check_cluster, check_connection
from relu_study.runner.cluster_backend import MemoryLost, Node
from relu_study.runner.cluster_watch import ClusterWatch
from relu_study.runner.devices import use_cpu
from relu_study.runner.prepare import check_study, stored_digest
from relu_study.runner.remote_place import SLOTS
from relu_study.runner.remote_places import RemotePlaces
from relu_study.runner.worker import Answer, Report, Worker
from relu_study.study.draw_study import DrawStudy
from relu_study.study.study import Study
from relu_study.study.travelling_sources import TravellingSources, travelling_sources

CALLS = 4  # threads of an actor besides those of tiles: reports and evictions
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision")  # of the driver, which change bits
VARIABLES = ("XLA_FLAGS",)
CLOSE_SECONDS = 1.0  # for all workers to remove their files before they are ended
_started: list[Address] = []  # the cluster that `_ray` has connected to
UNAVAILABLE_SECONDS, UNAVAILABLE_POLL = 30.0, 0.5  # until an actor that cannot be reached is given up; between calls of it
WAKE_SECONDS = 5.0  # between looks of a waiting call for the end of the head


@contextlib.contextmanager
def connected(
    text: str,
    study: Study | DrawStudy,
    workers: int | None,
    on_message: Callable[[str], None],
    folder: Path | None = None,
    measure_config: MeasureConfig = MeasureConfig(),
) -> Iterator[RemotePlaces]:
    """Connect to a cluster, and give the places of its workers, which have loaded the study's own sources.

    The study is checked before, which calls its entries: they open their data files. The driver uses only its CPU. At the end
    the workers are ended, and the connection is closed.
    Workers with the digest of the results in `folder` are preferred, since it is continued by no others.

    Raises:
        UserError: the study is invalid, the cluster cannot be reached, or no worker can compute the study.
    """
    address = check_cluster(text)
    if address.local and workers is not None and workers > _cores():
        raise UserError(f"ray:local has {counted(_cores(), 'core')} for {workers} workers. Give --workers {_cores()} or fewer.")
    use_cpu()
    check_study(study, folder, measure_config)
    from relu_study.components.registry import function_of
    from relu_study.runner.machine import package_digest, precision, software
    from relu_study.runner.own_entries import own_entries, packed_entries
    from relu_study.runner.provenance import sources

    entries = own_entries(study)
    own, shipped = sources(entries), travelling_sources({name: function_of(entry) for name, entry in entries.items()}, study.name)
    with _ray(address):
        backend = RayBackend(shipped, packed_entries(entries))
        platform = "cpu" if address.local and os.environ.get("JAX_PLATFORMS") == "cpu" else None
        if address.local and workers is not None:
            backend.divide(workers, platform)
        places = RemotePlaces(backend, ({**software(), **precision()}, package_digest()), own, on_message, workers)
        try:
            places.start(platform, stored_digest(folder))
            yield places
        finally:
            places.close()


@contextlib.contextmanager
def _ray(address: Address) -> Iterator[None]:
    """A connection to a cluster, or a cluster on this machine that listens on the loopback device only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        if _started != [address]:  # not by this function, around this call
            check_connection(address, ray.get_runtime_context().gcs_address, ray.util.get_node_ip_address())
        yield  # the caller's connection stays
        return
    options: dict[str, Any] = {"include_dashboard": False} if address.local else {"address": f"{address.host}:{address.port}"}
    if address.local:
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let workers wait for all other programs
        options |= {"address": "local", "num_cpus": _cores(), "_node_ip_address": "127.0.0.1"}
    listens_wide = ray_constants.ENABLE_RAY_CLUSTER
    if address.local or address.host in ("localhost", "127.0.0.1"):
        ray_constants.ENABLE_RAY_CLUSTER = False  # as Ray does on macOS: every listener is on the loopback device
    with _own_signals(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)  # the child starts another program
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **options)
        except Exception as error:  # Ray raises a plain Exception if one of its processes does not start
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            where = "started on this machine" if address.local else f"used at {address.host}:{address.port}"
            raise UserError(f"a Ray cluster cannot be {where}: {line}") from error
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = listens_wide
    _started.append(address)
    try:
        yield
    finally:
        _started.clear()
        ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Install the signal handlers of this process again if Ray has replaced them, as it does with that of SIGTERM.

    A first signal may have installed handlers for a second one, which stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            if str(getattr(signal.getsignal(number), "__module__", "")).partition(".")[0] == "ray":
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    try:
        yield
    except SystemExit:  # of Ray's handler, if the signal arrives while Ray connects
        restore()
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        restore()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(eq=False)
class RayWorker:
    """An actor and its node."""

    actor: Any
    report: Sequence[Any] = ()  # references of its report and of its node
    requested: str = ""  # id of the requested node
    node: str = ""  # id of its node in the cluster, after its report


class RayBackend:
    """Workers as actors. They never restart: a lost worker is replaced by a new one."""

    split = 0  # number of workers that share the cores of this machine

    def __init__(self, sources: TravellingSources | None, packed: Mapping[str, bytes]) -> None:
        """`sources` and `packed` entries are sent once to each node."""
        import jax
        import ray

        self.ray = ray
        self.own = [None if one is None else ray.put(one) for one in (sources, packed or None)]
        self.settings = {name: getattr(jax.config, name) for name in SETTINGS}
        self.environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        here = ray.get_runtime_context()
        self.watch = ClusterWatch(here.gcs_address, _raylet(ray.nodes(), here.get_node_id()))

    def answers(self) -> bool:
        """Whether the head of the cluster answers: calls of Ray about nodes would wait for it. Raises UserError."""
        return self.watch.answers()

    def nodes(self) -> Sequence[Node]:
        """The nodes that are alive."""
        nodes = [_node(entry) for entry in self.ray.nodes() if entry["Alive"]]
        if not self.split or not nodes:
            return nodes
        cpus = max(1, nodes[0].cpus // self.split)  # one machine for several workers
        return [nodes[0]._replace(id=f"{nodes[0].id}/{i}", cpus=cpus) for i in range(self.split)]

    def divide(self, workers: int, platform: str | None) -> None:
        """Divide the cores of this machine among workers. If it has accelerators, each worker takes one of them instead.

        Raises:
            UserError: it has fewer accelerators than workers.
        """
        node = self.nodes()[0]
        platform = platform or next((name for name in ("gpu", "tpu") if node.count(name)), "cpu")
        if platform == "cpu":
            self.split = workers
        elif workers > (most := node.count(platform)):
            raise UserError(
                f"ray:local has {counted(most, platform.upper())} for {workers} workers. Give --workers {most} or fewer."
            )

    def start(self, node: Node | None, platform: str, places: int, own: Sequence[str], without: Sequence[str]) -> RayWorker:
        """Ask for an actor on a node, or on a later one."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {"num_cpus": places} if platform == "cpu" else {"num_cpus": 1, "num_gpus": 1}
        if platform == "tpu":
            options = {"num_cpus": 1, "resources": {"TPU": 1}}
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(_node_id(node.id), soft=False)
        elif without:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted({_node_id(name) for name in without}))})"}
        prepared = self.ray.remote(Worker).options(
            max_restarts=0, max_task_retries=0, max_concurrency=SLOTS * places + CALLS, **options
        )
        actor: Any = prepared.remote(platform, places, self.settings, self.environment, *self.own)
        report = actor.machine.remote(own), actor.__ray_call__.remote(_node_of_actor)
        return RayWorker(actor, report, node.id if node is not None else "")

    def report(self, handle: RayWorker) -> tuple[str, Report] | None:
        """The node and the machine of an actor; None while it starts."""
        references = list(handle.report)
        ready, _ = self.ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        if len(ready) < len(references):
            return None
        try:
            report, handle.node = self.ray.get(references)
        except self.ray.exceptions.RayTaskError as error:
            raise _as_user_error(error) from error
        except self.ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise _as_user_error(error) from error
            raise self._lost(handle, error) from error
        return handle.requested or handle.node, report

    def call(self, handle: RayWorker, method: str, *arguments: Any) -> Answer:
        """Call a method of an actor and wait for its answer."""
        try:
            return self._get(getattr(handle.actor, method).remote(*arguments))
        except self.ray.exceptions.OutOfMemoryError as error:
            raise MemoryLost("out of memory: Ray has ended a worker because the memory of its node ran low") from error
        except self.ray.exceptions.RayTaskError as error:
            raise _as_user_error(error) from error
        except self.ray.exceptions.RayError as error:
            raise self._lost(handle, error) from error

    def send(self, handle: RayWorker, method: str, *arguments: Any) -> None:
        """Call a method of an actor without waiting."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            getattr(handle.actor, method).remote(*arguments)

    def kill(self, *handles: RayWorker) -> None:
        """End actors at once, after they have removed their copies of the study's sources."""
        closing = []
        for handle in handles:
            if self.own[0] is not None and handle.node and not self.watch.gone:
                with contextlib.suppress(self.ray.exceptions.RayError, ValueError):
                    closing.append(handle.actor.close.remote())
        with contextlib.suppress(self.ray.exceptions.RayError, ValueError):
            if closing:
                self.ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for handle in handles:
            with contextlib.suppress(self.ray.exceptions.RayError, ValueError):
                self.ray.kill(handle.actor)

    def _get(self, reference: Any) -> Answer:
        while not self.watch.gone:
            with contextlib.suppress(self.ray.exceptions.GetTimeoutError):
                answer: Answer = self.ray.get(reference, timeout=WAKE_SECONDS)
                return answer
        raise PlaceLost("the head of its cluster has ended", counted=False)

    def _lost(self, handle: RayWorker, error: Any) -> PlaceLost:
        """The loss of an actor. The end of its node and a preemption are no fault of a tile."""
        error = self._settled(handle, error)
        if self.watch.gone:
            return PlaceLost("the head of its cluster has ended", counted=False)
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        line = next((line for line in reversed(lines) if not line.startswith(("class_name", "actor_id", "pid"))), "")
        node = handle.node or _node_id(handle.requested)
        if getattr(error, "preempted", False):
            return PlaceLost("its node was preempted", counted=False)
        if not isinstance(error, self.ray.exceptions.RayActorError):
            return PlaceLost(f"its result is lost: {type(error).__name__}", counted=False)
        if isinstance(error, self.ray.exceptions.ActorUnavailableError):
            return PlaceLost("it cannot be reached", counted=False)
        if "node has died" in str(error) or not any(entry["Alive"] and entry["NodeID"] == node for entry in self.ray.nodes()):
            return PlaceLost("its node has ended", counted=False)
        return PlaceLost(line.partition(" Some common causes")[0] or type(error).__name__)

    def _settled(self, handle: RayWorker, error: Any) -> Any:
        """The last error of an actor. At first Ray knows only that it is unavailable, then whether its process or node ended."""
        limit = time.monotonic() + UNAVAILABLE_SECONDS
        while isinstance(error, self.ray.exceptions.ActorUnavailableError) and time.monotonic() < limit and not self.watch.gone:
            time.sleep(UNAVAILABLE_POLL)
            try:
                self.ray.get(handle.actor.__ray_ready__.remote(), timeout=WAKE_SECONDS)
                return error
            except self.ray.exceptions.GetTimeoutError:
                continue
            except self.ray.exceptions.RayError as later:
                error = later
        return error


def _as_user_error(error: Any) -> UserError:
    """An exception of an actor's constructor or method, with its last line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return UserError(str(cause))
    last = str(error).strip().splitlines()[-1].strip()
    return UserError(last.removeprefix("relu_study.errors.UserError: "))


def _node_of_actor(_: Worker) -> str:
    """Called in an actor: the id of its node."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _node_id(name: str) -> str:
    """The id of a node in the cluster, without the part that `split` adds."""
    return name.partition("/")[0]


def _node(entry: Mapping[str, Any]) -> Node:
    resources = entry["Resources"]
    counts = (int(resources.get(name, 0)) for name in ("CPU", "GPU", "TPU"))
    return Node(entry["NodeID"], entry["NodeManagerHostname"], *counts)


def _raylet(nodes: Sequence[Mapping[str, Any]], node: str) -> str:
    """The address of Ray's process on a node."""
    return next(f"{entry['NodeManagerAddress']}:{entry['NodeManagerPort']}" for entry in nodes if entry["NodeID"] == node)
