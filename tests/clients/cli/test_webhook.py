from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from clients.registry_server import registry_at


class Receiver:
    """Takes webhooks on loopback and answers with `status`."""

    def __init__(self) -> None:
        self.status = 204
        self.received: list[dict] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append(json.loads(body))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_arguments):
                """Nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def registry(tmp_path):
    with registry_at(tmp_path) as address:
        yield address


def deliveries(neuroweaver, *more):
    return json.loads(neuroweaver("webhook", "deliveries", "router", "--json", *more).out)["deliveries"]


def until(neuroweaver, state):
    """The deliveries, once there are some and all are in this state."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        found = deliveries(neuroweaver)
        if found and {each["state"] for each in found} == {f"DELIVERY_STATE_{state}"}:
            return found
        time.sleep(0.1)
    raise AssertionError(found)


@pytest.mark.parametrize("command", ["add", "list", "deliveries", "redeliver", "remove"])
def test_every_command_tells_an_example_and_the_exit_codes(neuroweaver, command):
    outcome = neuroweaver("webhook", command, "--help")

    assert outcome.code == 0
    assert f"Example: neuroweaver webhook {command}" in " ".join(outcome.out.split())
    assert "Exit codes" in outcome.out


def test_the_secret_is_shown_once(registry, neuroweaver):
    made = neuroweaver(
        "webhook", "add", "router", "https://router.example/hooks",
        "--action", "alias.set", "--action", "version.*", "--model", "advisor",
    )  # fmt: skip
    listed, told = neuroweaver("webhook", "list"), neuroweaver("webhook", "list", "--json")

    assert made.code == 0
    assert "whsec_" in made.out
    assert "whsec_" not in listed.out + told.out
    assert "alias.set, version.*" in listed.out
    [webhook] = json.loads(told.out)["webhooks"]
    assert (webhook["url"], webhook["model_id"]) == ("https://router.example/hooks", "advisor")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("router", "http://router.example/hooks"), "webhook.url"),
        (("Router", "https://router.example/hooks"), "webhook.webhook_id"),
        (("router", "https://router.example/hooks", "--action", "everything"), "webhook.actions[0]"),
    ],
)
def test_a_refusal_names_the_field(registry, neuroweaver, arguments, field):
    outcome = neuroweaver("webhook", "add", *arguments, "--json")

    assert outcome.code == 2
    assert outcome.fields[0] == field


def test_an_id_is_taken_once(registry, neuroweaver):
    neuroweaver("webhook", "add", "router", "https://router.example/hooks")

    assert neuroweaver("webhook", "add", "router", "https://router.example/hooks").code == 5


def test_a_change_is_delivered_and_listed(registry, neuroweaver, receiver):
    neuroweaver("webhook", "add", "router", receiver.url, "--action", "model.*")
    neuroweaver("model", "register", "advisor")

    [delivery] = until(neuroweaver, "DELIVERED")

    assert delivery["action"] == "model.registered"
    assert delivery["last_status"] == 204
    assert len(receiver.received) == 1
    shown = neuroweaver("webhook", "deliveries", "router").out
    assert "DELIVERED" in shown
    assert "204" in shown


def test_what_was_given_up_is_sent_again_on_request(registry, neuroweaver, receiver):
    receiver.status = 410
    neuroweaver("webhook", "add", "router", receiver.url, "--action", "model.*")
    for model in ("advisor", "assistant"):
        neuroweaver("model", "register", model)
    dead = until(neuroweaver, "DEAD")

    assert "answered 410" in neuroweaver("webhook", "deliveries", "router", "--state", "dead").out
    assert "! router: " in neuroweaver("webhook", "list").out
    assert deliveries(neuroweaver, "--state", "pending") == []
    assert len(deliveries(neuroweaver, "--limit", 1)) == 1
    receiver.status = 204
    one = neuroweaver("webhook", "redeliver", "router", "--sequence", dead[0]["sequence"])
    rest = neuroweaver("webhook", "redeliver", "router", "--json")

    assert one.out == "1 queued again\n"
    assert json.loads(rest.out) == {"redelivered": "1"}
    until(neuroweaver, "DELIVERED")


def test_a_webhook_is_removed_only_when_somebody_agreed(registry, neuroweaver):
    neuroweaver("webhook", "add", "router", "https://router.example/hooks")

    refused = neuroweaver("webhook", "remove", "router")
    removed = neuroweaver("webhook", "remove", "router", "--yes")

    assert refused.code == 2
    assert "--yes" in refused.err
    assert removed.out == "router removed\n"
    assert "No webhooks." in neuroweaver("webhook", "list").out
    for command in (("deliveries", "router"), ("redeliver", "router"), ("remove", "router", "--yes")):
        assert neuroweaver("webhook", *command).code == 3
