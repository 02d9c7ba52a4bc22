"""Watch of a Ray cluster: whether its head and Ray on this machine still answer. It imports no Ray."""

from __future__ import annotations

import socket
import time

from relu_study.errors import UserError

HEAD_SECONDS = 30.0  # until a silent head ends the run. Ray ends the process after 60
TIMEOUT = 2.0  # of one connection
AGAIN = "Stored results are kept; start the cluster and run the same command again."


class ClusterWatch:
    """The addresses of a cluster's processes, HOST:PORT. `gone` is True after their end."""

    def __init__(self, head: str, raylet: str) -> None:
        """`head` is the address of the cluster, `raylet` that of Ray's process on this machine."""
        self.head, self.raylet = head, raylet
        self.gone, self._answered = False, time.monotonic()

    def answers(self) -> bool:
        """Whether the head answers.

        Raises:
            UserError: it has not answered for 30 seconds, or Ray on this machine has ended: Ray would end this process.
        """
        if isinstance(_error_of(self.raylet), ConnectionRefusedError):
            self.gone = True
            raise UserError(f"the processes of Ray on this machine have ended. {AGAIN}")
        if _error_of(self.head) is None:
            self._answered = time.monotonic()
            return True
        if time.monotonic() - self._answered > HEAD_SECONDS:
            self.gone = True
            raise UserError(f"the head of the Ray cluster at {self.head} has not answered for {HEAD_SECONDS:.0f} s. {AGAIN}")
        return False


def _error_of(address: str) -> OSError | None:
    """The error of a connection."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except OSError as error:
        return error
    return None
