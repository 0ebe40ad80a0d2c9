from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest

from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.registry.domain.addresses import is_loopback, is_public
from neuroweaver.registry.domain.webhook import (
    Backoff,
    Delivery,
    Outcome,
    State,
    Webhook,
    body_of,
    check_public,
    check_url,
    check_webhook_id,
    headers,
    new_secret,
    signature,
)
from neuroweaver.v1 import registry_pb2 as pb

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def webhook(**fields) -> Webhook:
    return Webhook(**{"webhook_id": "hook", "url": "https://a.example/hook", "create_time": NOW} | fields)


def delivery(**fields) -> Delivery:
    known = {"project": "default", "webhook_id": "hook", "sequence": 7, "action": "alias.set"}
    return Delivery(**known | {"create_time": NOW, "next_attempt_time": NOW} | fields)


def test_a_signature_is_that_of_the_published_example():
    # https://github.com/standard-webhooks/standard-webhooks/blob/main/libraries/go/webhook_test.go
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'

    signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)

    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_new_secret_is_32_random_bytes():
    secrets = {new_secret() for _ in range(100)}

    assert len(secrets) == 100
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32


def test_the_headers_are_those_of_the_specification():
    secret = new_secret()

    made = headers(secret, "default/hook/7", 1674087231, b"{}")

    key = base64.b64decode(secret[6:])
    expected = hmac.digest(key, b"default/hook/7.1674087231.{}", hashlib.sha256)
    assert made == {
        "content-type": "application/json",
        "user-agent": "NeuroWeaver",
        "webhook-id": "default/hook/7",
        "webhook-timestamp": "1674087231",
        "webhook-signature": "v1," + base64.b64encode(expected).decode(),
    }


@pytest.mark.parametrize("project", ["a.b", "ä/…", "a b\r\n", "%2E"])
def test_what_is_signed_has_full_stops_only_between_its_parts(project):
    message_id = delivery(project=project).message_id

    assert "." not in message_id
    assert message_id.isascii()
    assert message_id.isprintable()
    assert message_id.endswith("/hook/7")


def test_projects_that_differ_have_message_ids_that_differ():
    names = ["a.b", "a%2Eb", "a/b", "a", "A"]

    assert len({delivery(project=name).message_id for name in names}) == len(names)


def test_a_body_is_the_event_with_its_type_and_time():
    event = pb.ModelEvent(sequence=7, action="version.created")
    event.time.FromDatetime(NOW)
    event.version.model_id = "advisor"
    event.version.version = "1.2.3"
    event.version.description = "größer"

    body = body_of(event)

    assert json.loads(body) == {
        "type": "version.created",
        "timestamp": "2026-01-02T03:04:05Z",
        "data": {
            "sequence": "7",
            "time": "2026-01-02T03:04:05Z",
            "action": "version.created",
            "version": {"model_id": "advisor", "version": "1.2.3", "description": "größer"},
        },
    }
    assert b" " not in body


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.example",
        "https://receiver.example:8443/hook?token=x&a=%20",
        "https://xn--4ca.example/",
        "https://ä.example/",
        "https://192.0.2.1/hook",
        "https://[2001:db8::1]:8443/hook",
        "https://hook.svc.cluster.local/@someone",
        "https://my_host/",
        "http://localhost:8080/hook",
        "http://LOCALHOST/hook",
        "http://127.0.0.1:80/",
        "http://127.9.9.9/",
        "http://[::1]:8080/hook",
    ],
)
def test_an_address_is_taken(url):
    check_url("webhook.url", url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "receiver.example",
        "//receiver.example/",
        "/hook",
        "ftp://receiver.example/",
        "file:///etc/passwd",
        "https:/receiver.example",
        "https://",
        "https://:443/",
        "https://?x",
        "https://user:password@receiver.example/",
        "https://user@receiver.example/",
        "https://@receiver.example/",
        "https://good.example@evil.example/",
        "https://good.example\\@evil.example/",
        "https://receiver.example\\.evil.example/",
        "https://receiver.example/#part",
        "https://receiver.example/#",
        "https://receiver.example/\nhost: other",
        "https://receiver.example/\x00",
        "https://receiver.example/a b",
        "https://receiver example/",
        "https://receiver%2eexample/",
        "https://a..b/",
        "https://-/",
        "https://*/",
        "https://[fe80::1%25eth0]/",
        "https://receiver.example:0/",
        "https://receiver.example:65536/",
        "https://receiver.example:x/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "http://receiver.example/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://localhost.evil.example/",
        "http://0.0.0.0/",
        "http://[::]/",
    ],
)
def test_an_address_is_refused(url):
    with pytest.raises(InvalidArgument) as error:
        check_url("webhook.url", url)

    assert error.value.violations[0][0] == "webhook.url"


def test_a_refusal_does_not_repeat_the_password():
    with pytest.raises(InvalidArgument) as error:
        check_url("webhook.url", "https://user:hunter2@receiver.example/?hunter2")

    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "172.15.255.255",
        "172.32.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001::1",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ],
)
def test_an_address_is_public(address):
    assert is_public(address)
    assert not is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "",
        "localhost",
        "8.8.8.8.",
        "010.1.1.1",
    ],
)
def test_an_address_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_an_address_is_this_machine(address):
    assert is_loopback(address)


@pytest.mark.parametrize(
    ("fields", "action", "model_id", "wanted"),
    [
        ({}, "version.created", "advisor", True),
        ({"actions": ("version.created",)}, "version.created", "advisor", True),
        ({"actions": ("version.created",)}, "version.created_again", "advisor", False),
        ({"actions": ("version.*",)}, "version.created", "advisor", True),
        ({"actions": ("version.*",)}, "versions.created", "advisor", False),
        ({"actions": ("alias.set", "version.*")}, "alias.set", "advisor", True),
        ({"actions": ("alias.set", "version.*")}, "alias.deleted", "advisor", False),
        ({"model_id": "advisor"}, "alias.set", "advisor", True),
        ({"model_id": "advisor"}, "alias.set", "advisor-2", False),
        ({"model_id": "advisor", "actions": ("version.*",)}, "alias.set", "advisor", False),
    ],
)
def test_a_webhook_wants_what_its_filters_name(fields, action, model_id, wanted):
    assert webhook(**fields).wants(action, model_id) is wanted


@pytest.mark.parametrize("webhook_id", ["", "-a", "a-", "A", "a.b", "a" * 64, "a\n", "ä"])
def test_an_id_that_is_no_label_is_refused(webhook_id):
    with pytest.raises(InvalidArgument, match="webhook id"):
        check_webhook_id("webhook_id", webhook_id)


@pytest.mark.parametrize(
    ("url", "is_public"),
    [
        ("http://localhost:8080/hook", False),
        ("http://127.0.0.1/", False),
        ("https://[::1]/", False),
        ("https://10.0.0.1/", False),
        ("https://[::ffff:169.254.169.254]/", False),
        ("https://8.8.8.8/", True),
        ("https://receiver.example/", True),
    ],
)
def test_a_literal_address_that_is_not_public_is_told_before_anything_is_sent(url, is_public):
    with nullcontext() if is_public else pytest.raises(InvalidArgument, match="NEUROWEAVER_WEBHOOK_PRIVATE"):
        check_public("webhook.url", url)


def test_a_url_is_shown_without_its_query():
    assert webhook(url="https://a.example/hook?token=1#").shown_url == "https://a.example/hook"


def test_the_first_attempt_is_due_at_once_even_if_the_clock_was_set_back():
    assert delivery(next_attempt_time=NOW).is_due(NOW - timedelta(days=1))
    assert not delivery(attempts=1, next_attempt_time=NOW).is_due(NOW - timedelta(seconds=1))
    assert delivery(attempts=1, next_attempt_time=NOW).is_due(NOW)


def test_a_further_attempt_is_due_at_once_after_a_clock_was_set_back():
    waiting = delivery(attempts=1, next_attempt_time=NOW)
    assert waiting.is_due(NOW - timedelta(days=3653))
    assert not waiting.is_due(NOW - timedelta(hours=1))
    longest = Backoff().delay_s(100)
    assert not delivery(attempts=9, next_attempt_time=NOW + timedelta(seconds=longest)).is_due(NOW)


def test_waits_grow_threefold_to_an_hour_and_are_spread():
    random.seed(1)
    backoff = Backoff()
    longest = [1, 3, 9, 27, 81, 243, 729, 2187, 3600, 3600, 3600]

    for attempts, expected in enumerate(longest, start=1):
        delays = [backoff.delay_s(attempts) for _ in range(200)]
        assert max(delays) <= expected
        assert min(delays) >= 0.75 * expected
        assert max(delays) - min(delays) > 0.2 * expected


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_a_delivery_that_was_taken_is_done(status):
    claimed = delivery(last_error="the receiver answered 500").claimed("c", NOW)

    ended = claimed.ended(Outcome.of_status(status), NOW, Backoff())

    assert (ended.state, ended.attempts, ended.last_status) == (State.DELIVERED, 1, status)
    assert (ended.last_error, ended.next_attempt_time, ended.claim) == ("", None, None)


@pytest.mark.parametrize("status", [100, 199, 300, 301, 302, 400, 401, 404, 408, 429, 500, 503])
def test_a_delivery_that_was_refused_is_tried_again(status):
    ended = delivery().claimed("c", NOW).ended(Outcome.of_status(status), NOW, Backoff())

    assert (ended.state, ended.last_status, ended.claim) == (State.PENDING, status, None)
    assert ended.last_error == f"the receiver answered {status}"
    assert timedelta(seconds=0.75) <= ended.next_attempt_time - NOW <= timedelta(seconds=1)


def test_a_delivery_is_dead_after_the_last_attempt_and_not_before():
    backoff = Backoff(attempts=3)
    current = delivery()
    states = []
    for _ in range(3):
        current = current.claimed("c", NOW).ended(Outcome.failed("x"), NOW, backoff)
        states.append(current.state)

    assert states == [State.PENDING, State.PENDING, State.DEAD]
    assert current.next_attempt_time is None


def test_a_receiver_that_is_gone_gets_no_second_attempt():
    assert delivery().claimed("c", NOW).ended(Outcome.of_status(410), NOW, Backoff()).state is State.DEAD


def test_a_receiver_may_ask_for_a_longer_wait_up_to_an_hour():
    def wait_s(retry_after_s: float) -> float:
        outcome = Outcome.of_status(429, retry_after_s)
        ended = delivery().claimed("c", NOW).ended(outcome, NOW, Backoff())
        return (ended.next_attempt_time - NOW).total_seconds()

    assert wait_s(120) == 120
    assert wait_s(1e9) == 3600
    assert wait_s(0) <= 1


def test_an_error_is_one_short_line_fit_for_both_databases():
    error = Outcome.failed("a\r\n\tb\x00c" + "d" * 1000).error

    assert error.startswith("a b cddd")
    assert len(error) == 200
    assert error.isprintable()
