"""New certificates under load: `python benchmarks/certificates.py`.

A server in a process of its own is asked by clients that keep their connections and by clients that make a
new one for each request, while its certificate is replaced and SIGHUP is sent, a hundred times. No request
may fail, and after each reload a new connection must be shown the new certificate. `openssl` makes the keys.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import processes
from machine import machine_facts

ROOT = Path(__file__).parents[1]
BODY = 65_536  # bytes, of each answer
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n"
APP = f"""\
BODY = bytes({BODY})
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [BODY]
"""


@dataclass
class Load:
    """What the clients have seen. Each list has one writer."""

    port: int
    context: ssl.SSLContext
    ended: threading.Event = field(default_factory=threading.Event)
    failures: list[str] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=lambda: {"keep-alive": [], "close": []})

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), 30)
        try:
            return self.context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        except BaseException:
            plain.close()
            raise

    def run(self, kind: str) -> None:
        """Ask until the load is ended."""
        client: ssl.SSLSocket | None = None
        while not self.ended.is_set():
            began = time.perf_counter()
            try:
                client = client or self.connect()
                client.sendall(REQUEST % kind.encode())
                read_answer(client)
                if kind == "close":
                    if client.recv(1):  # until TLS is ended
                        raise OSError("more than an answer")
                    client.close()
                    client = None
            except (OSError, ValueError) as error:
                self.failures.append(f"{kind}: {error!r}")
                if client is not None:
                    client.close()
                client = None
            else:
                self.times[kind].append(time.perf_counter() - began)
        if client is not None:
            client.close()


def read_answer(client: ssl.SSLSocket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(client)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"answered {head[:60]!r}")
    left = BODY - len(body)
    while left:
        left -= len(receive(client))


def receive(client: ssl.SSLSocket) -> bytes:
    data = client.recv(65_536)
    if not data:
        raise OSError("the answer is not whole")
    return data


def put_certificate(folder: Path, number: int) -> None:
    """A new one, and its key, in one file and in one step."""
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-keyout", folder / "key", "-out", folder / "certificate"]
    command = ["openssl", "req", "-x509", *kind, "-nodes", "-days", "1", "-subj", f"/CN=number {number}"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    (folder / "new").write_bytes((folder / "certificate").read_bytes() + (folder / "key").read_bytes())
    (folder / "new").replace(folder / "server.pem")


def shown(load: Load) -> bytes:
    """The certificate that a new connection is shown, in DER."""
    with load.connect() as client:
        return client.getpeercert(binary_form=True) or b""


def expected(folder: Path) -> bytes:
    text = (folder / "server.pem").read_text()
    end = "-----END CERTIFICATE-----\n"
    return ssl.PEM_cert_to_DER_cert(text.partition(end)[0] + end)


def start(folder: Path, loop: str) -> tuple[subprocess.Popen[str], int]:
    flags = ["--host=127.0.0.1", "--port=0", f"--loop={loop}", "--certfile=server.pem", "app:app"]
    server = subprocess.Popen(
        [sys.executable, "-m", "waitress_async", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    line = server.stderr.readline()
    assert "Serving on https://" in line, line
    return server, int(line.rpartition(":")[2])


def reload(server: subprocess.Popen[str]) -> float:
    """Have certificates loaded anew. Returns the seconds until the server has said that they are."""
    assert server.stderr is not None
    began = time.perf_counter()
    server.send_signal(signal.SIGHUP)
    line = server.stderr.readline()
    assert "Certificates are loaded anew" in line, line
    return time.perf_counter() - began


def measure(loop: str, reloads: int, clients: int) -> bool:
    """Print a row. Returns whether nothing failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "app.py").write_text(APP)
        put_certificate(folder, 0)
        server, port = start(folder, loop)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        load = Load(port, context)
        kinds = ["keep-alive", "close"] * (clients // 2)
        threads = [threading.Thread(target=load.run, args=[kind]) for kind in kinds]
        seconds, old_shown = [], 0
        memory = 0
        for thread in threads:
            thread.start()
        began = time.perf_counter()
        try:
            for number in range(1, reloads + 1):
                put_certificate(folder, number)
                seconds.append(reload(server))
                old_shown += shown(load) != expected(folder)
                if number == max(1, reloads // 10):
                    memory = processes.exactly_anonymous([server.pid])
            elapsed = time.perf_counter() - began
        finally:
            load.ended.set()
            for thread in threads:
                thread.join()
            grown = processes.exactly_anonymous([server.pid]) - memory
            server.terminate()
            status = server.wait(30)
            assert server.stderr is not None
            said = [line for line in server.stderr if " INFO " not in line]
    total = sum(map(len, load.times.values()))
    handshakes = len(load.times["close"])
    middle, longest = statistics.median(seconds) * 1000, max(seconds) * 1000
    print(
        f"{loop:8} {reloads:8} {total:9,} {handshakes:11,} {total / elapsed:9,.0f} {len(load.failures):7} "
        f"{old_shown:9} {middle:7.1f} {longest:8.1f} {grown / 1024:8,.0f} {status:5}"
    )
    for failure, times in Counter(load.failures).most_common(5):
        print(f"  {times} times {failure}")
    for line in said:
        print(f"  said: {line}", end="")
    return not (load.failures or old_shown or said or status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reloads", type=int, default=100, help="for each loop (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="at a time (default: %(default)s)")
    arguments = parser.parse_args()
    facts = machine_facts()
    print(f"{ssl.OPENSSL_VERSION}, {facts['python']}, {facts['cpu']}; answers of {BODY // 1024} KiB")
    print(
        f"{'loop':8} {'reloads':>8} {'requests':>9} {'handshakes':>11} {'a second':>9} {'failed':>7} "
        f"{'old shown':>9} {'ms each':>7} {'longest':>8} {'KiB more':>8} {'exit':>5}"
    )
    results = [measure(loop, arguments.reloads, arguments.clients) for loop in ("uvloop", "asyncio")]
    if not all(results):
        sys.exit(1)


if __name__ == "__main__":
    main()
