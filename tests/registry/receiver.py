"""A real HTTP server on loopback that takes webhooks, as well as a test wants it to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from neuroweaver.mesh.handlers.signals import Signal

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def answer(status: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", "content-length: 0", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def reaches(signal: Signal, count: int) -> None:
    async with asyncio.timeout(60):
        while signal.count < count:
            await signal.wait(signal.count, 60)


@dataclass(frozen=True)
class Received:
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)

    @property
    def sequence(self) -> int:
        return int(self.content["data"]["sequence"])

    def is_signed_by(self, secret: str) -> bool:
        """Computed from the words of the specification, not by the code under test."""
        key = base64.b64decode(secret[len("whsec_") :], validate=True)
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return self.headers["webhook-signature"] == f"v1,{expected}"


@dataclass
class Receiver:
    """answers: raw bytes, given the number of the request from 0 on.

    may_answer: cleared, it keeps silent. may_end: cleared, it keeps the connection open after its answer.
    ended: a connection was closed.
    """

    port: int = 0
    scheme: str = "http"
    received: list[Received] = field(default_factory=list)
    answers: Callable[[int], bytes] = lambda _number: OK
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    arrivals: Signal = field(default_factory=Signal)
    under_way: int = 0
    most_at_once: int = 0
    sent_bytes: int = 0
    drips: bytes = b""
    """Sent again and again after the answer, for as long as it is taken."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook"

    @property
    def sequences(self) -> list[int]:
        return [received.sequence for received in self.received]

    async def has(self, number: int) -> None:
        """Waits for that many requests."""
        await reaches(self.arrivals, number)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._take(reader, writer)
        finally:
            writer.close()
            self.ended.set()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in headers.items()}
        body = await reader.readexactly(int(headers["content-length"]))
        number = len(self.received)
        self.received.append(Received(head[0].split(" ")[1], headers, body))
        self.arrivals.notify()
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await self.may_answer.wait()
        finally:
            self.under_way -= 1
        writer.write(self.answers(number))
        await writer.drain()
        await self.may_end.wait()
        while self.drips:
            writer.write(self.drips)
            await writer.drain()
            self.sent_bytes += len(self.drips)


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(scheme="https" if tls else "http")
    receiver.may_answer.set()
    receiver.may_end.set()
    server = await asyncio.start_server(receiver.take, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        receiver.drips = b""
        receiver.may_answer.set()
        receiver.may_end.set()
        server.close()


def certified(folder: Path, *names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server of these names shows, and what trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A receiver's")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(list(map(_general, names))), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain = folder / "chain.pem"
    chain.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    return server, ssl.create_default_context(cafile=str(chain))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
