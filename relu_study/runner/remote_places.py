"""Places of a cluster: its workers, their agreement on bits, their deaths, and a summary. It knows no cluster software."""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import replace
from typing import Any, TypeVar

from relu_study.engine.deaths import DEATHS
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.places import Place, PlaceLost
from relu_study.engine.plan import Plan
from relu_study.engine.state import MeasureConfig
from relu_study.engine.work import Work
from relu_study.errors import UserError
from relu_study.report.markup import counted
from relu_study.runner.agreement import agreed, difference, unlike, unusable
from relu_study.runner.cluster_backend import Backend, MemoryLost, Node
from relu_study.runner.machine import Machine
from relu_study.runner.remote_place import Member, RemotePlace, forecast
from relu_study.runner.worker import Answer, numbers_of
from relu_study.runner.worker_account import Accounts

NODES_EVERY = 10.0  # seconds between looks for new nodes
GRACE = 30.0  # seconds that the first worker waits for the others of the start
WAITING_EVERY = 30.0  # seconds between lines about a wait
NO_WORKER_SECONDS, NO_WORKER_POLL = 600.0, 1.0  # without a worker that measures a width, until the run ends; between looks
START_FAILURES = 3  # of the workers of one node, until the node is left out
R = TypeVar("R")
LATER = ""  # instead of a node, for workers that wait for a later one


class RemotePlaces:
    """The places of all usable workers of a cluster, for `scheduler.finished`."""

    changing = True

    def __init__(
        self,
        backend: Backend,
        here: tuple[dict[str, Any], str],
        own: Mapping[str, Any],
        on_message: Callable[[str], None],
        workers: int | None = None,
    ) -> None:
        """Prepare without starting a worker.

        Args:
            backend: The cluster software.
            here: Versions and precision of the driver, and the hash of its package.
            own: The fingerprints of the study's own entries in the driver.
            on_message: Receives lines for the user.
            workers: Number of workers to ask for (None: one a CPU node or GPU, also of later nodes).
        """
        self.backend, self.here, self.own, self.wanted = backend, here, own, workers
        self.on_message = on_message
        self.members: list[Member] = []  # starting or usable
        self.left_out: dict[str, str] = {}  # node -> reason
        self.accounts = Accounts()
        self.machine: Machine | None = None
        self.request: Callable[[Any, int], tuple[Any, ...]] = lambda tile, index: ()  # a tile and a place -> a call of `Worker`
        self.platform, self.closed = "cpu", False
        self._failures: Counter[str] = Counter()
        self._named: Counter[str] = Counter()
        self._numbers: list[int] = []  # free numbers of places
        self._next_number, self._looked = 0, float("-inf")
        self._calling: threading.Thread | None = None  # starts the workers, or measures a tile width
        self._lock = threading.RLock()

    @property
    def exact(self) -> bool:
        """Whether all places give the same bits: CPUs do."""
        return self.platform == "cpu"

    # ----------------------------------------------------------------------------------- start

    def start(self, platform: str | None = None, digest: str | None = None) -> Machine:
        """Ask for workers, wait for the first ones, and return the machine that they agree on.

        Workers with the `digest` of a folder that is continued are preferred.

        Raises:
            UserError: no worker can be used, or no majority has equal versions and arithmetic.
        """
        return self._in_thread(lambda: self._start(platform, digest))

    def _start(self, platform: str | None, digest: str | None) -> Machine:
        nodes = self.backend.nodes()
        self.platform = platform or next((name for name in ("gpu", "tpu") if any(n.count(name) for n in nodes)), "cpu")
        self._look(force=True)
        reports = self._wait_for_first()
        first = agreed({member.name: member.report for member in reports if member.report is not None}, digest)
        places = sum(member.report.devices for member in reports if member.report and member.report.bits == first.bits)
        about = first.platform, first.kind, places, first.host, first.processor, first.memory
        self.machine = Machine(*about, lambda: first.digest)
        for member in reports:
            self._admit(member)
        return self.machine

    def _wait_for_first(self) -> list[Member]:
        """Wait until a worker is ready, and then at most `GRACE` seconds for the others."""
        began = told = time.monotonic()
        first = None
        while not self.closed:
            starting = [member for member in list(self.members) if member.report is None]
            for member in starting:
                self._poll(member)
            ready = [member for member in self.members if member.report is not None]
            starting = [member for member in self.members if member.report is None]
            now = time.monotonic()
            if ready:
                first = first or now
                if not starting or now - first > GRACE:
                    return ready
            elif not starting:
                self._look(force=True)
                if self.left_out and not self.members:
                    raise unusable(list(self.left_out.values()))
            if not ready and now - told > WAITING_EVERY:
                told = now
                self.on_message(
                    f"waiting for a worker since {now - began:.0f} s: its {self.platform.upper()}s are in use or starting"
                )
            time.sleep(0.05 if self.members else 1.0)
        raise UserError("the start of the workers is interrupted.")

    def _look(self, force: bool = False) -> None:
        """Ask for workers on the nodes that have none."""
        if not force and time.monotonic() - self._looked < NODES_EVERY:
            return
        self._looked = time.monotonic()
        per_node = Counter(member.node.id for member in self.members if member.node is not None)
        requested = len(self.members)
        usable = [node for node in self.backend.nodes() if node.count(self.platform)]
        nodes = [node for node in usable if node.id not in self.left_out]
        for node in nodes:
            for _ in range(self._workers(node) - per_node[node.id]):
                if self.wanted is None or requested < self.wanted:
                    self._request(node)
                    requested += 1
        requested += sum(self._workers(node) for node in usable if node.id in self.left_out)
        for _ in range(requested, self.wanted or 0):  # on nodes that come later
            if self._failures[LATER] < START_FAILURES:
                self._request(None, max((node.cpus for node in nodes), default=1))

    def _workers(self, node: Node) -> int:
        """The number of workers of a node."""
        return 1 if self.platform == "cpu" else node.count(self.platform)

    def _request(self, node: Node | None, cpus: int = 1) -> None:
        places = (node.cpus if node is not None else cpus) if self.platform == "cpu" else 1
        handle = self.backend.start(node, self.platform, places, sorted(self.own), sorted(self.left_out))
        self.members.append(Member(handle, node))

    def _poll(self, member: Member) -> None:
        """Take the report of a starting worker. A worker that cannot start, or differs from the driver, is left out."""
        try:
            found = self.backend.report(member.handle)
        except (PlaceLost, UserError) as error:
            if member.dead:
                return  # the run has ended
            self._drop(member)
            node = member.node
            if node is not None:
                self._failures[node.id] += 1
                if isinstance(error, UserError) or self._failures[node.id] >= START_FAILURES:
                    self._leave_out(node, f"a worker on {node.host} does not start ({error})")
            else:
                self._failures[LATER] += 1
                self.on_message(f"a worker does not start ({error})")
            return
        if found is None:
            return
        node_id, report = found
        if member.node is None or member.node.id != node_id:
            nodes = {node.id: node for node in self.backend.nodes()}
            member.node = nodes.get(node_id, Node(node_id, node_id[:8], report.devices, 0, 0))
        self._named[member.node.host] += 1
        member.name = f"{member.node.host}-{self._named[member.node.host]}"
        member.report = report
        if reason := difference(report, self.here, self.platform, self.own):
            self._leave_out(member.node, f"worker {member.name} {reason}")
            self._drop(member)

    def _admit(self, member: Member) -> None:
        """Make the places of a worker usable if it agrees with the others."""
        report, machine = member.report, self.machine
        assert report is not None and machine is not None and member.node is not None
        if reason := unlike(report, machine):
            self._leave_out(member.node, f"worker {member.name} does not give the bits of the others ({reason})")
            self._drop(member)
            return
        with self._lock:
            if member.dead:
                return
            self.accounts.open(member.name, report.devices)
            for index in range(report.devices):
                if self._numbers:
                    number = heapq.heappop(self._numbers)
                else:
                    number, self._next_number = self._next_number, self._next_number + 1
                member.places.append(RemotePlace(number, index, member, self))

    def _leave_out(self, node: Node, reason: str) -> None:
        if node.id not in self.left_out:
            self.left_out[node.id] = reason
            self.on_message(f"{reason}: it is left out")

    def _drop(self, *members: Member) -> None:
        """Forget workers, and end them."""
        with self._lock:
            ended = [member for member in members if member in self.members]
            for member in ended:
                self.members.remove(member)
                member.dead = True
                for place in member.places:
                    heapq.heappush(self._numbers, place.number)
        if ended:
            self.backend.kill(*(member.handle for member in ended))

    # ------------------------------------------------------------------------------------- run

    def current(self) -> Sequence[RemotePlace]:
        """The places of the usable workers. Looks for new nodes and started workers."""
        try:
            answers = not self.closed and self.backend.answers()
        except UserError:
            self.closed = True  # no line for each worker
            raise
        with self._lock:
            if self.closed:
                return []
            if answers:
                self._look()
            starting = [member for member in self.members if member.report is None and answers]
        for member in starting:
            self._poll(member)  # without the lock: it waits for a worker that cannot be reached
            if member.report is not None and not member.dead:
                self._admit(member)
            if member.places:
                self.on_message(f"worker {member.name} has joined with {counted(len(member.places), 'place')}")
        with self._lock:
            return [place for member in self.members for place in member.places]

    def call(self, member: Member, method: str, *arguments: Any) -> Answer:
        """Call a worker. Raises PlaceLost at its end, after a line for the user.

        If it ended because memory ran low, one of its calls is answered with a lack of memory.
        """
        if member.dead or self.closed:
            raise PlaceLost(f"worker {member.name} has ended", counted=False)
        try:
            return self.backend.call(member.handle, method, *arguments)
        except PlaceLost as lost:
            with self._lock:
                first, self._looked = not member.dead and not self.closed, float("-inf")
                if first:
                    self.accounts.end(member.name)
            self._drop(member)
            if first:
                self.on_message(f"worker {member.name} has ended ({lost.reason}): its tiles go to other places")
                if isinstance(lost, MemoryLost):
                    return Answer("lacking", lost.reason)
            raise

    def work(self, work: Work[Any, Any], measure_config: MeasureConfig, keep_params: bool) -> Work[Any, Any]:
        """The work of a plan at these places: a worker evicts the programs of a finished cohort itself."""

        def request(tile: Any, index: int) -> tuple[Any, ...]:
            return ("draw", tile, index) if isinstance(tile, Block) else ("train", tile, index, measure_config, keep_params)

        self.request = request
        return replace(work, required_programs=lambda tile: {(tile.cohort,)}, evict=lambda key: self.forget(*key))

    def forget(self, cohort: str) -> None:
        """Let all workers evict the programs of a finished cohort."""
        with self._lock:
            usable = [member for member in self.members if member.places]
        for member in usable:
            self.backend.send(member.handle, "forget", cohort)

    def rate(self, tile: Any, measure_config: MeasureConfig) -> float:
        """The training steps per second of a tile, measured by a worker; by another one if it is lost.

        Raises:
            UserError: no worker is left, or several ended.
        """
        return self._in_thread(lambda: self._measured_rate(tile, measure_config))

    def _in_thread(self, function: Callable[[], R]) -> R:
        """Call a function of the cluster in a thread. A signal then reaches this one, and it sees the end of the cluster."""
        result: futures.Future[R] = futures.Future()

        def call() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self._calling = threading.Thread(target=call, daemon=True)
        self._calling.start()
        while not futures.wait([result], NO_WORKER_POLL).done:
            self.backend.answers()
        return result.result()

    def _measured_rate(self, tile: Any, measure_config: MeasureConfig) -> float:
        ended, waiting = 0, time.monotonic()
        while time.monotonic() - waiting < NO_WORKER_SECONDS and not self.closed:
            if not (current := self.current()):
                time.sleep(NO_WORKER_POLL)
                continue
            member = current[0].member
            try:
                return float(numbers_of(self.call(member, "rate", tile, measure_config), member.name)["steps_per_second"])
            except PlaceLost as lost:
                ended, waiting = ended + lost.counted, time.monotonic()
                if ended >= DEATHS:
                    raise UserError(f"the first tile of cohort {tile.cohort} ended {ended} workers ({lost.reason}).") from lost
        raise UserError("no worker is left to measure a tile width. Stored results are kept; run the same command again.")

    def kill(self, place: Place, reason: str) -> None:
        """End the worker of a place."""
        with self._lock:
            member = next((one for one in self.members if place in one.places), None)
        if member is not None and not member.killed:
            member.killed = True
            self.on_message(f"worker {member.name} is ended: {reason}")
            self.backend.kill(member.handle)

    def close(self) -> None:
        """End all workers, and with them all waiting calls."""
        with self._lock:
            self.closed, members = True, list(self.members)
        self._drop(*members)
        if self._calling is not None:
            self._calling.join()

    def forecast(self, plan: Plan | DrawPlan) -> list[str]:
        """One line a worker: its places, device and processor, and the cohorts that it may compile."""
        return forecast(self.members, plan)
