"""Posts to addresses that users named, and to no machine that they must not reach through this one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx2

from neuroweaver.registry.domain.addresses import is_loopback, is_public
from neuroweaver.registry.domain.webhook import Outcome

TIMEOUT_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 1024
_ANSWER_S: Final = 1.0
_MAX_ADDRESSES: Final = 4
# A lookup cannot be interrupted; as many dead name servers as this must not hold up a healthy one.
_LOOKUPS: Final = 64

_NOT_PUBLIC: Final = (
    "the host has an address that is not public; NEUROWEAVER_WEBHOOK_PRIVATE=true allows those"
)
_NOT_LOOPBACK: Final = "the host has an address that is not this machine's; use https"

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Every address of a host, as literals. Raises OSError."""


class Sender:
    """timeout_s: for a whole attempt, from the lookup of the name to the status of the answer.

    allow_private: sends to this machine, and over https to addresses of its own networks, as well. tls: how
    receivers are verified; by default as the system, or SSL_CERT_FILE, says.
    """

    def __init__(
        self,
        *,
        timeout_s: float = TIMEOUT_S,
        allow_private: bool = False,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._tls = tls or httpx2.create_ssl_context()
        self._resolve = resolve or _Resolver()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """What the receiver answered, or why there is no answer."""
        try:
            return await self._post(httpx2.URL(url), headers, body)
        except (TimeoutError, httpx2.TimeoutException):
            return Outcome.failed(f"no answer within {self._timeout_s:g} s")
        except httpx2.ConnectError as error:
            return Outcome.failed(f"cannot connect: {error}")
        except (OSError, httpx2.HTTPError) as error:
            # Its text may quote what was sent.
            return Outcome.failed(f"the connection broke ({type(error).__name__})")

    async def _post(self, url: httpx2.URL, headers: Mapping[str, str], body: bytes) -> Outcome:
        give_up = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(give_up):
                addresses = await self._resolve(url.raw_host.decode("ascii"))
        except TimeoutError:
            raise
        except (OSError, UnicodeError):
            return Outcome.failed("the host's name cannot be resolved")
        if refusal := self._refusal(url.scheme, addresses):
            return Outcome.failed(refusal)
        *others, last = addresses[:_MAX_ADDRESSES]
        connect_s = self._timeout_s / (len(others) + 1)
        for address in others:
            with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await self._exchange(_request(url, address, connect_s, headers, body), give_up)
        return await self._exchange(_request(url, last, connect_s, headers, body), give_up)

    def _refusal(self, scheme: str, addresses: Sequence[str]) -> str:
        """Why nothing is sent; without the address, which would tell of a network closed to the reader."""
        if scheme != "https" and not (addresses and all(map(is_loopback, addresses))):
            return _NOT_LOOPBACK
        is_allowed = self._allow_private or (scheme == "https" and all(map(is_public, addresses)))
        return "" if addresses and is_allowed else _NOT_PUBLIC

    async def _exchange(self, request: httpx2.Request, give_up: float) -> Outcome:
        """Without httpx2's client: it would log the whole URL, keep cookies, and look for proxies.

        One transport an exchange: a connection that is kept would serve every other name at its address,
        whose certificate nobody checked.
        """
        async with httpx2.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
            async with asyncio.timeout_at(give_up):
                response = await transport.handle_async_request(request)
            await _take_leave(response)
            return Outcome.of_status(response.status_code, _retry_after_s(response))


def _request(
    url: httpx2.URL, address: str, connect_s: float, headers: Mapping[str, str], body: bytes
) -> httpx2.Request:
    """To the address that was checked, whatever the name resolves to by now.

    The Host and the certificate that is asked for are those of the name.
    """
    return httpx2.Request(
        "POST",
        url.copy_with(host=address),
        headers={"host": url.netloc.decode("ascii"), **headers},
        content=body,
        extensions={
            "sni_hostname": url.raw_host.decode("ascii"),
            "timeout": {"connect": connect_s, "read": None, "write": None, "pool": None},
        },
    )


async def _take_leave(response: httpx2.Response) -> None:
    """Reads a little of the answer, so that a short one is not cut off in the receiver's face.

    What it says and whether it ends is nothing to us: the status has been given.
    """
    seen = 0
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(_ANSWER_S):
            async for chunk in response.aiter_raw():
                seen += len(chunk)
                if seen >= _MAX_ANSWER_BYTES:
                    break
    with contextlib.suppress(httpx2.HTTPError):
        await response.aclose()


def _retry_after_s(response: httpx2.Response) -> float:
    """Of the two forms, the number of seconds; 0 without it."""
    seconds = response.headers.get("retry-after", "")
    return float(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 10 else 0.0


class _Resolver:
    """The system's resolver, in threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="webhook-lookup")

    async def __call__(self, host: str) -> Sequence[str]:
        addresses = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in addresses))
