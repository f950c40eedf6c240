"""What a TLS handshake costs the loop: `python benchmarks/handshakes.py`.

Both ends are in this process and in memory, and only the server's share is counted: the time for which a
handshake keeps the loop from other things. The key and the certificate are made by `openssl`.
"""

from __future__ import annotations

import argparse
import ssl
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from machine import machine_facts

from waitress_async.server.tls import TLS, environ_of

KEYS = {
    "ECDSA P-256": "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1",
    "RSA 2048": "-newkey rsa:2048",
}
VERSIONS = {"TLS 1.3": ssl.TLSVersion.TLSv1_3, "TLS 1.2": ssl.TLSVersion.TLSv1_2}


@dataclass
class Row:
    """A kind of handshake, and what it took, in seconds."""

    key: str
    version: str
    server: ssl.SSLContext
    client: ssl.SSLContext
    session: ssl.SSLSession | None = None  # that the client resumes
    seconds: list[float] = field(default_factory=list)

    @property
    def how(self) -> str:
        return "resumed" if self.session else "full"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=1_000, help="of which the median counts (default: %(default)s)"
    )
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        contexts = {key: context_for(Path(folder), arguments) for key, arguments in KEYS.items()}
    rows = [row for key in KEYS for version in VERSIONS for row in pair_of_rows(key, version, contexts[key])]
    for _ in range(rounds):
        for row in rows:
            row.seconds.append(handshake(row.server, row.client, row.session)[0])
    facts = machine_facts()
    print(f"{ssl.OPENSSL_VERSION}, {facts['python']}, {facts['cpu']}")
    print(f"{'key':12}  {'version':8}  {'':8}  {'ms':>6}  {'90 % below':>10}  {'a second':>8}")
    for row in rows:
        median, high = statistics.median(row.seconds), statistics.quantiles(row.seconds, n=10)[-1]
        figures = f"{median * 1000:6.2f}  {high * 1000:10.2f}  {1 / median:8,.0f}"
        print(f"{row.key:12}  {row.version:8}  {row.how:8}  {figures}")


def context_for(folder: Path, key: str) -> ssl.SSLContext:
    """Our own, of a new certificate that signs itself."""
    file = folder / "new.pem"
    command = ["openssl", "req", "-x509", *key.split(), "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run(
        [*command, "-keyout", file, "-out", folder / "certificate"], check=True, capture_output=True
    )
    file.write_bytes(file.read_bytes() + (folder / "certificate").read_bytes())
    return TLS(certfile=str(file)).context


def pair_of_rows(key: str, version: str, server: ssl.SSLContext) -> tuple[Row, Row]:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.minimum_version = client.maximum_version = VERSIONS[version]
    _, end = handshake(server, client, None)
    return Row(key, version, server, client), Row(key, version, server, client, end.session)


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[float, ssl.SSLObject]:
    """Seconds that the server takes, and the client's end."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, session=session)
    seconds = 0.0
    waiting = advance(ours)
    began = time.perf_counter()
    its = server.wrap_bio(up, down, server_side=True)
    while advance(its) or waiting:
        seconds += time.perf_counter() - began
        waiting = advance(ours)
        began = time.perf_counter()
    environ_of(its)
    seconds += time.perf_counter() - began
    its.write(b"a")
    ours.read()  # and the tickets, which TLS 1.3 sends behind the handshake
    assert ours.session_reused == bool(session), "not the kind of handshake that it was to be"
    return seconds, ours


def advance(end: ssl.SSLObject) -> bool:
    """Go on with a handshake. Says whether it needs more from the other end."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return True
    return False


if __name__ == "__main__":
    main()
