"""A Ray cluster of this machine alone: on loopback, with fixed ports, ended with the process that started it.

Run as a program it starts the cluster and ends it when its standard input closes, which happens however the process
at the other end dies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack

from uso_core.settings import ROOT

HOST = "127.0.0.1"
START_SECONDS = 90.0  # about 4 on an idle machine
# Given explicitly, since Ray waits at most 30 s for ports that its agents choose, too little on a busy machine.
PORTS = ("port", "node-manager-port", "object-manager-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
         "metrics-export-port", "runtime-env-agent-port")  # fmt: skip


class Loopback:
    """A running cluster of this machine; `address` is its head's. Raises `TimeoutError` if it does not start."""

    def __init__(self) -> None:
        ports = free_ports(len(PORTS))
        self.address = f"{HOST}:{ports[0]}"
        command = [sys.executable, "-m", "uso_core.runtime.executors.loopback", *map(str, ports)]
        # A session of its own: Ctrl+C in a terminal would end the cluster before the program has stopped its requests.
        self._keeper = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)
        until = time.monotonic() + START_SECONDS
        while not _answers(ports[0]):
            if self._keeper.poll() is not None or time.monotonic() > until:
                self.close()
                raise TimeoutError(f"no answer from {self.address}")
            time.sleep(0.1)

    def close(self) -> None:
        """Ends the cluster."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(5)


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False


def keep(ports: list[str]) -> None:
    """Runs the cluster until the standard input closes, then ends all its processes and deletes their files."""
    folder = tempfile.mkdtemp(prefix="ray-uso-")  # short: sockets lie in it, whose paths may have 107 characters
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address", HOST,
               "--include-dashboard", "false", "--disable-usage-stats", "--temp-dir", folder,
               "--min-worker-port", "0", "--max-worker-port", "0"]  # fmt: skip
    for name, port in zip(PORTS, ports, strict=True):
        command += [f"--{name}", port]
    try:
        with tempfile.TemporaryFile() as output:
            cluster = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            threading.Thread(target=_end_with, args=(cluster,), daemon=True).start()
            if cluster.wait() > 0:
                output.seek(0)
                sys.stderr.write(output.read().decode(errors="replace")[-2000:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(AttributeError, OSError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(os.getpgid(0), signal.SIGKILL)  # workers of the cluster are in this group, too


def _end_with(cluster: subprocess.Popen[bytes]) -> None:
    sys.stdin.buffer.read()
    cluster.kill()


if __name__ == "__main__":
    keep(sys.argv[1:])
