"""Real servers on loopback for tests: two S3 servers, and a TCP proxy that can fail on purpose.

Each is a context manager on a free port that ends only the process it started.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ACCESS_KEY = "testkey-AKIAEXAMPLE"
SECRET_KEY = "testsecret-wJalrXUtnFEMI"

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) \S+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server. ``env`` is what a process needs in its environment to reach it."""

    endpoint: str
    port: int
    pid: int

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        """Creates the bucket and returns its URL."""
        import botocore.session

        client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        client.create_bucket(Bucket=name)
        return f"s3://{name}"


def free_port() -> int:
    """A TCP port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def moto_s3() -> Iterator[S3Server]:
    """``moto_server``: starts in half a second, keeps everything in memory, accepts any secret."""
    (port,) = _quiet_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port) as pid:
        yield S3Server(endpoint=f"http://127.0.0.1:{port}", port=port, pid=pid)


@contextlib.contextmanager
def seaweed_s3() -> Iterator[S3Server]:
    """SeaweedFS: about 4 s to start; checks secrets, as a production server does."""
    weed = Path(sys.executable).with_name("weed")
    folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    port, *other_ports = _quiet_ports(4)
    others = dict(zip(("master", "volume", "filer"), other_ports, strict=True))
    command = [
        str(weed), "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=50",
        "-master.telemetry=false", "-filer", "-s3", f"-s3.port={port}", f"-s3.config={config}",
        *(f"-{name}.port={number}" for name, number in others.items()),
    ]  # fmt: skip
    try:
        with _running(command, port, folder) as pid:
            yield S3Server(endpoint=f"http://127.0.0.1:{port}", port=port, pid=pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for number in (port, *others.values()):
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                socket_file.unlink(missing_ok=True)
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-grpc-{number + 10_000}.sock"):
                socket_file.unlink(missing_ok=True)


class FlakyProxy:
    """Forwards a loopback port to another one, and fails in the way that ``mode`` says.

    Modes: ``ok`` forwards; ``refuse`` closes each new connection at once; ``hang`` accepts and
    never answers. ``cut()`` breaks the connections that are open; ``cut_after_bytes`` breaks each
    connection once so many bytes of answers have passed, ``num_cuts_left`` times. ``requests`` has
    method and path of each request that was forwarded.
    """

    def __init__(self, target_port: int) -> None:
        self.mode = "ok"
        self.cut_after_bytes: int | None = None
        self.num_cuts_left = 0
        self.num_connections = 0
        self.requests: list[str] = []
        self._target_port = target_port
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for connection in list(self._open):
            self._drop(connection)

    def close(self) -> None:
        self._drop(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            if self.mode == "refuse":
                client.close()
                continue
            self._open.add(client)
            if self.mode == "ok":
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            self._drop(client)
            return
        self._open.add(server)
        threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
        self._pump(server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        num_bytes = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                num_bytes += len(data)
                if not is_answer and (found := _REQUEST.match(data)):
                    self.requests.append(found[0].decode())
                limit = self.cut_after_bytes
                if is_answer and limit is not None and num_bytes > limit and self.num_cuts_left:
                    self.num_cuts_left -= 1
                    break
                sink.sendall(data)
        self._drop(source)
        self._drop(sink)

    def _drop(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


@contextlib.contextmanager
def flaky_proxy(target_port: int) -> Iterator[FlakyProxy]:
    """A ``FlakyProxy`` in front of ``target_port`` for the length of a test."""
    proxy = FlakyProxy(target_port)
    try:
        yield proxy
    finally:
        proxy.close()


def _quiet_ports(num_ports: int) -> list[int]:
    """Free ports whose number plus 10,000, where SeaweedFS puts its gRPC, is free as well.

    All lie below the range from which the system serves ``bind(0)`` and outgoing connections
    (32,768 and up), so that nothing else takes one between this look and the server's start.
    """
    candidates = random.SystemRandom().sample(range(11_000, 22_000), 200)
    found = [port for port in candidates if _is_free(port) and _is_free(port + 10_000)]
    return found[:num_ports]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _running(command: list[str], port: int, log_folder: Path | None = None) -> Iterator[int]:
    """Runs ``command`` until the block ends; enters it once HTTP on ``port`` answers."""
    with tempfile.TemporaryFile(dir=log_folder) as log:
        # SeaweedFS takes AWS credentials of its environment for an identity of its own.
        env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            _wait_until_it_answers(server, port, log)
            yield server.pid
        finally:
            # SIGTERM makes SeaweedFS tidy up for half a minute; its folder is thrown away anyway.
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGKILL)
            server.wait()


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int, log: object) -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # a refusal is an answer
        except OSError:
            time.sleep(0.1)
    os.lseek(log.fileno(), 0, os.SEEK_SET)  # type: ignore[attr-defined]
    text = os.read(log.fileno(), 1 << 16).decode(errors="replace")  # type: ignore[attr-defined]
    raise RuntimeError(f"{server.args!r} did not answer on port {port}:\n{text[-2000:]}")
