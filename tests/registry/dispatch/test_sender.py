from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from neuroweaver.registry.dispatch.sender import Resolve, Sender
from neuroweaver.registry.domain.webhook import Outcome
from registry.receiver import answer, certified, receiving

HEADERS = {"content-type": "application/json", "webhook-id": "default/hook/1"}


def names(**hosts: Sequence[str]) -> Resolve:
    """A name server of these hosts alone; each list is given out once, the last one for ever."""
    left = {host.replace("_", "."): list(answers) for host, answers in hosts.items()}

    async def resolve(host: str) -> Sequence[str]:
        if host not in left:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = left[host]
        return (answers.pop(0) if len(answers) > 1 else answers[0]).split()

    return resolve


async def post(sender: Sender, url: str, body: bytes = b"{}") -> Outcome:
    return await sender.post(url, HEADERS, body)


async def test_a_body_arrives_as_it_is():
    async with receiving() as receiver:
        outcome = await post(Sender(allow_private=True), receiver.url + "?a=%20b", b'{"a":"\xc3\xa4"}')

        assert outcome == Outcome(status=200)
        (received,) = receiver.received
    assert received.target == "/hook?a=%20b"
    assert received.body == b'{"a":"\xc3\xa4"}'
    assert received.headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "content-length": "10",
        **HEADERS,
    }


async def test_localhost_is_this_machine():
    async with receiving() as receiver:
        assert not (await post(Sender(allow_private=True), f"http://localhost:{receiver.port}/")).error


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status):
    async with receiving() as target, receiving() as receiver:
        receiver.answers = lambda _number: answer(status, f"location: {target.url}")

        outcome = await post(Sender(allow_private=True), receiver.url)

        assert (outcome.status, outcome.error) == (status, f"the receiver answered {status}")
        assert not target.received
        assert len(receiver.received) == 1


async def test_a_receiver_that_answers_nothing_is_given_up():
    async with receiving() as receiver:
        receiver.may_answer.clear()

        outcome = await post(Sender(timeout_s=0.2, allow_private=True), receiver.url)

    assert outcome == Outcome(error="no answer within 0.2 s")


async def test_a_receiver_that_answers_byte_by_byte_is_given_up():
    """Each read is quick; all together are not."""
    async with receiving() as receiver:
        receiver.answers = lambda _number: b"HTTP/1.1 200 OK\r\n"
        receiver.drips = b"a: b\r\n"

        outcome = await post(Sender(timeout_s=0.2, allow_private=True), receiver.url)

    # Either the clock ends it or the limit on an answer's head.
    assert outcome.error
    assert outcome.status == 0


async def test_a_receiver_that_is_not_there_is_no_fault_of_ours():
    async with receiving() as receiver:
        pass

    outcome = await post(Sender(allow_private=True), receiver.url)

    assert outcome.status == 0
    assert outcome.error.startswith("cannot connect: ")


@pytest.mark.parametrize("junk", [b"", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"])
async def test_what_is_not_http_is_told_without_what_was_said(junk):
    async with receiving() as receiver:
        receiver.answers = lambda _number: junk

        outcome = await post(Sender(allow_private=True), receiver.url)

    assert outcome == Outcome(error="the connection broke (RemoteProtocolError)")


async def test_an_endless_answer_is_not_read():
    async with receiving() as receiver:
        receiver.answers = lambda _number: b"HTTP/1.1 500 No\r\n\r\n"
        receiver.drips = b"secret of the receiver " * 1000

        outcome = await post(Sender(allow_private=True), receiver.url)

        assert outcome == Outcome(status=500, error="the receiver answered 500")
        async with asyncio.timeout(60):
            await receiver.ended.wait()
        # What the kernel holds for both ends, and not what can be sent in the time of a whole attempt.
        assert receiver.sent_bytes < 16 * 1024 * 1024


async def test_an_answer_that_never_ends_counts_by_its_status():
    async with receiving() as receiver:
        receiver.answers = lambda _number: b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
        receiver.may_end.clear()

        async with asyncio.timeout(60):
            assert await post(Sender(timeout_s=0.5, allow_private=True), receiver.url) == Outcome(status=200)


async def test_an_answer_that_breaks_off_counts_by_its_status():
    async with receiving() as receiver:
        receiver.answers = lambda _number: b"HTTP/1.1 500 No\r\ncontent-length: 10\r\n\r\n"

        assert (await post(Sender(allow_private=True), receiver.url)).status == 500


@pytest.mark.parametrize(
    ("header", "wait_s"), [("7", 7), ("0", 0), ("-1", 0), ("1e9", 0), ("Fri, 01 Jan 2100 00:00:00 GMT", 0)]
)
async def test_a_receiver_says_how_long_to_wait(header, wait_s):
    async with receiving() as receiver:
        receiver.answers = lambda _number: answer(503, f"retry-after: {header}")

        assert (await post(Sender(allow_private=True), receiver.url)).retry_after_s == wait_s


async def test_cookies_are_not_kept():
    async with receiving() as receiver:
        receiver.answers = lambda _number: answer(200, "set-cookie: a=b")
        sender = Sender(allow_private=True)

        await post(sender, receiver.url)
        await post(sender, receiver.url)

        assert "cookie" not in receiver.received[1].headers


async def test_the_environment_names_no_proxy(monkeypatch):
    async with receiving() as proxy, receiving() as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")

        await post(Sender(allow_private=True), receiver.url)

        assert (len(proxy.received), len(receiver.received)) == (0, 1)


async def test_no_log_holds_the_url(caplog):
    async with receiving() as receiver:
        with caplog.at_level(logging.INFO):
            await post(Sender(allow_private=True), receiver.url + "?token=hunter2")
            await post(Sender(allow_private=True), "http://localhost:1/?token=hunter2")

    assert "hunter2" not in caplog.text
    assert "/hook" not in caplog.text


async def test_a_receiver_is_verified_by_its_name_and_found_by_the_checked_address(tmp_path: Path):
    server_tls, client_tls = certified(tmp_path, "receiver.example")
    async with receiving(server_tls) as receiver:
        # The name is another address by the second time it is asked for: nobody asks a second time.
        resolve = names(receiver_example=["127.0.0.1", "192.0.2.1"])
        sender = Sender(allow_private=True, tls=client_tls, resolve=resolve)

        outcome = await post(sender, f"https://receiver.example:{receiver.port}/hook")

        assert outcome == Outcome(status=200)
        assert receiver.received[0].headers["host"] == f"receiver.example:{receiver.port}"


async def test_a_receiver_with_another_name_in_its_certificate_gets_nothing(tmp_path: Path):
    server_tls, client_tls = certified(tmp_path, "receiver.example")
    async with receiving(server_tls) as receiver:
        resolve = names(receiver_example=["127.0.0.1"], other_example=["127.0.0.1"])
        sender = Sender(allow_private=True, tls=client_tls, resolve=resolve)
        # A connection that was kept for the one name would be open for the other.
        assert not (await post(sender, f"https://receiver.example:{receiver.port}/")).error

        outcome = await post(sender, f"https://other.example:{receiver.port}/")

        assert outcome.error.startswith("cannot connect: ")
        assert "certificate verify failed" in outcome.error
        assert len(receiver.received) == 1


async def test_a_receiver_that_nobody_vouches_for_gets_nothing(tmp_path: Path):
    server_tls, _ = certified(tmp_path, "127.0.0.1")
    async with receiving(server_tls) as receiver:
        outcome = await post(Sender(allow_private=True), receiver.url)

        assert "certificate verify failed" in outcome.error
        assert not receiver.received


async def test_a_receiver_may_be_named_by_its_address(tmp_path: Path):
    server_tls, client_tls = certified(tmp_path, "127.0.0.1")
    async with receiving(server_tls) as receiver:
        assert not (await post(Sender(allow_private=True, tls=client_tls), receiver.url)).error


@pytest.mark.parametrize(
    "addresses",
    [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "127.0.0.1 8.8.8.8",
        "8.8.8.8 127.0.0.1",
        "8.8.8.8 8.8.4.4 1.1.1.1 9.9.9.9 127.0.0.1",
        "",
    ],
)
async def test_a_name_with_an_address_that_is_not_public_is_refused(tmp_path: Path, addresses):
    server_tls, client_tls = certified(tmp_path, "receiver.example")
    async with receiving(server_tls) as receiver:
        sender = Sender(tls=client_tls, resolve=names(receiver_example=[addresses]))

        outcome = await post(sender, f"https://receiver.example:{receiver.port}/")

        assert outcome.status == 0
        assert outcome.error.startswith("the host has an address that is not public")
        assert not any(address in outcome.error for address in addresses.split())
        assert not receiver.received


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_this_machine_is_refused_over_https_however_it_is_written(host):
    outcome = await post(Sender(), f"https://{host}:1/")

    # Some systems do not know all of the spellings.
    assert outcome.error.startswith(("the host has an address that is not public", "the host's name cannot"))


@pytest.mark.parametrize("addresses", ["8.8.8.8", "10.0.0.1", "127.0.0.1 10.0.0.1"])
@pytest.mark.parametrize("allow_private", [True, False])
async def test_http_leaves_this_machine_for_no_address(addresses, allow_private):
    sender = Sender(allow_private=allow_private, resolve=names(localhost=[addresses]))

    outcome = await post(sender, "http://localhost:1/")

    assert outcome.error == "the host has an address that is not this machine's; use https"


async def test_http_reaches_this_machine_only_where_a_setting_says_so():
    async with receiving() as receiver:
        outcome = await post(Sender(), receiver.url)

    assert outcome.error.endswith("NEUROWEAVER_WEBHOOK_PRIVATE=true allows those")
    assert not receiver.received


async def test_a_name_that_nobody_knows_is_told():
    outcome = await post(Sender(resolve=names()), "https://receiver.example/")

    assert outcome == Outcome(error="the host's name cannot be resolved")


async def test_a_name_server_that_is_silent_is_given_up():
    async def silent(_host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    outcome = await post(Sender(timeout_s=0.1, resolve=silent), "https://receiver.example/")

    assert outcome == Outcome(error="no answer within 0.1 s")


async def test_the_next_address_is_tried_where_one_does_not_answer():
    async with receiving() as receiver:
        # Nothing listens on the other addresses of loopback.
        sender = Sender(allow_private=True, resolve=names(localhost=["127.0.0.9 127.0.0.8 127.0.0.1"]))

        assert not (await post(sender, f"http://localhost:{receiver.port}/")).error
        assert len(receiver.received) == 1


async def test_a_refusal_of_one_address_is_not_taken_to_the_next():
    async with receiving() as receiver:
        receiver.answers = lambda _number: answer(500)
        sender = Sender(allow_private=True, resolve=names(localhost=["127.0.0.1 127.0.0.1"]))

        assert (await post(sender, f"http://localhost:{receiver.port}/")).status == 500
        assert len(receiver.received) == 1
