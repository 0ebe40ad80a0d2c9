"""`neuroweaver webhook`: URLs that changes are sent to."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Annotated, Literal

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group
from rich.text import Text
from typer import Argument, Option

from neuroweaver.cli.terminal.confirm import Yes, asking
from neuroweaver.cli.terminal.failures import talking_to
from neuroweaver.cli.terminal.lazy import LazyGroup
from neuroweaver.cli.terminal.names import styled
from neuroweaver.cli.terminal.output import AsJson, facts, print_answer, print_list, print_view, when
from neuroweaver.client.text import plain
from neuroweaver.v1 import registry_pb2 as registry

app = LazyGroup(panels={"Commands": {"webhook": "add list deliveries redeliver remove"}})

Hook = Annotated[str, Argument(metavar="WEBHOOK", help="The webhook's id.")]


def add(
    webhook: Hook,
    url: Annotated[str, Argument(metavar="URL", help="https, or http to this machine itself.")],
    *,
    action: Annotated[
        list[str] | None,
        Option(metavar="ACTION", help="Such as alias.set or version.*; repeat for several. Default: all."),
    ] = None,
    model: Annotated[str, Option(metavar="MODEL", help="Send only changes of this model.")] = "",
    as_json: AsJson = False,
) -> None:
    """Send changes to a URL by HTTP POST: signed, in order, and retried.

    Prints the signing secret, this once.

    Example: neuroweaver webhook add router https://router.example/hooks --action alias.set --model advisor
    """
    request = registry.CreateWebhookRequest(
        webhook=registry.Webhook(webhook_id=webhook, url=url, actions=action or (), model_id=model)
    )
    with talking_to("registry") as client:
        print_answer(client.registry.CreateWebhook(request), _secret, as_json=as_json)


def list_(*, as_json: AsJson = False) -> None:
    """List the webhooks and their pending and dead deliveries.

    Example: neuroweaver webhook list
    """
    columns = {
        "WEBHOOK": lambda webhook: webhook.webhook_id,
        "URL": lambda webhook: webhook.url,
        "ACTIONS": lambda webhook: ", ".join(webhook.actions) or "all",
        "MODEL": lambda webhook: webhook.model_id or "all",
        "PENDING": lambda webhook: str(webhook.pending),
        "DEAD": lambda webhook: Text(str(webhook.dead), "red" if webhook.dead else ""),
    }
    with talking_to("registry") as client:
        webhooks = client.registry.ListWebhooks(registry.ListWebhooksRequest()).webhooks
    print_list("webhooks", webhooks, columns, as_json=as_json)
    for webhook in webhooks:
        if webhook.last_error and not as_json:
            print_view(Text(f"! {webhook.webhook_id}: {plain(webhook.last_error)}", "yellow"))


def deliveries(
    webhook: Hook,
    *,
    state: Annotated[
        Literal["pending", "delivered", "dead"] | None,
        Option(help="Only these; dead ones are no longer retried."),
    ] = None,
    limit: Annotated[int, Option(min=1, help="Show at most this many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List a webhook's deliveries, newest first.

    Example: neuroweaver webhook deliveries router --state dead
    """
    columns = {
        "#": lambda delivery: str(delivery.sequence),
        "ACTION": lambda delivery: delivery.action,
        "STATE": lambda delivery: styled(delivery, "state"),
        "TRIES": lambda delivery: str(delivery.attempts),
        "WHEN": _due,
        "ANSWER": _answer,
    }
    wanted = registry.DeliveryState.Value(f"DELIVERY_STATE_{state.upper()}") if state else None
    with talking_to("registry") as client:
        listed = islice(client.deliveries(webhook, wanted), limit)
        print_list("deliveries", listed, columns, as_json=as_json)


def redeliver(
    webhook: Hook,
    *,
    sequence: Annotated[int | None, Option(min=1, help="Only this delivery. Default: all dead ones.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send dead deliveries again, counting attempts anew.

    Example: neuroweaver webhook redeliver router --sequence 17
    """
    request = registry.RedeliverWebhookRequest(webhook_id=webhook, sequence=sequence or 0)
    with talking_to("registry") as client:
        answer = client.registry.RedeliverWebhook(request)
    print_answer(answer, lambda _: f"{answer.redelivered} queued again", as_json=as_json)


def remove(webhook: Hook, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove a webhook and its deliveries, dead ones included.

    Example: neuroweaver webhook remove router --yes
    """
    asking(yes=yes, as_json=as_json)(f"Remove {webhook} and its deliveries?")
    request = registry.DeleteWebhookRequest(webhook_id=webhook)
    with talking_to("registry") as client:
        removed = client.registry.DeleteWebhook(request)
    print_answer(removed, lambda _: f"{removed.webhook_id} removed", as_json=as_json)


def _secret(webhook: registry.Webhook) -> Group:
    note = "Keep the secret: receivers check signatures with it, and it is not shown again."
    return Group(
        facts([("webhook", webhook.webhook_id), ("url", webhook.url), ("secret", webhook.secret)]), note
    )


def _due(delivery: registry.WebhookDelivery) -> str:
    """When it was last tried, or is tried next; without the date if that is today."""
    if delivery.HasField("next_attempt_time"):
        return f"next {_moment(delivery.next_attempt_time)}"
    return _moment(delivery.last_attempt_time)


def _moment(timestamp: Timestamp) -> str:
    return when(timestamp).removeprefix(f"{datetime.now().astimezone():%Y-%m-%d} ")


def _answer(delivery: registry.WebhookDelivery) -> str:
    return delivery.last_error or (str(delivery.last_status) if delivery.last_status else "")
