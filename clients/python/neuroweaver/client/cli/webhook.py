"""`neuroweaver webhook`: addresses that changes are sent to."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Annotated, Literal

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from neuroweaver.client.cli.confirm import Yes, confirm
from neuroweaver.client.cli.failures import EPILOG, talking_to
from neuroweaver.client.cli.output import AsJson, console, print_facts, print_json, print_table, to_json, when
from neuroweaver.client.names import delivery_state, styled
from neuroweaver.client.text import plain
from neuroweaver.mesh.ids import new_id
from neuroweaver.v1 import registry_pb2 as registry

app = typer.Typer(
    help="Webhooks: changes of models, versions and aliases, sent to an address.",
    no_args_is_help=False,
    epilog=EPILOG,
)

Hook = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id.", show_default=False)]


@app.command(epilog=EPILOG)
def add(
    webhook: Hook,
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="https, or http to this machine itself.", show_default=False),
    ],
    *,
    action: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ACTION",
            help="Only such changes: alias.set, version.*; repeat for several. Default: all.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Only of this model.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Have changes sent to an address by HTTP POST, signed, in order, and retried.

    Prints the secret of the signatures, this once.

    Example: neuroweaver webhook add router https://router.example/hooks --action alias.set --model advisor
    """
    request = registry.CreateWebhookRequest(
        webhook=registry.Webhook(webhook_id=webhook, url=url, actions=action or (), model_id=model),
        request_id=new_id(),
    )
    with talking_to("registry") as client:
        made = client.registry.CreateWebhook(request)
    if as_json:
        print_json(to_json(made))
        return
    print_facts([("webhook", made.webhook_id), ("url", made.url), ("secret", made.secret)])
    console().print("Keep the secret: the receiver checks signatures with it, and it is not shown again.")


@app.command("list", epilog=EPILOG)
def list_webhooks(*, as_json: AsJson = False) -> None:
    """List the webhooks with how their deliveries stand.

    Example: neuroweaver webhook list
    """
    with talking_to("registry") as client:
        found = client.registry.ListWebhooks(registry.ListWebhooksRequest())
    if as_json:
        print_json(to_json(found))
        return
    rows = (
        (
            each.webhook_id,
            each.url,
            ", ".join(each.actions) or "all",
            each.model_id or "all",
            str(each.pending),
            Text(str(each.dead), "red" if each.dead else ""),
        )
        for each in found.webhooks
    )
    columns = ("WEBHOOK", "URL", "ACTIONS", "MODEL", "PENDING", "DEAD")
    print_table(columns, rows, empty="No webhooks.")
    for each in found.webhooks:
        if each.last_error:
            console().print(Text(f"! {each.webhook_id}: {plain(each.last_error)}", "yellow"))


@app.command(epilog=EPILOG)
def deliveries(
    webhook: Hook,
    *,
    state: Annotated[
        Literal["pending", "delivered", "dead"] | None,
        typer.Option(help="Only those; dead ones were given up.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List a webhook's deliveries, newest first.

    Example: neuroweaver webhook deliveries router --state dead
    """
    wanted = registry.DeliveryState.Value(f"DELIVERY_STATE_{(state or 'unspecified').upper()}")
    with talking_to("registry") as client:
        found = list(islice(client.deliveries(webhook, wanted), limit))
    if as_json:
        print_json({"deliveries": [to_json(each) for each in found]})
        return
    rows = (
        (
            str(each.sequence),
            each.action,
            styled(delivery_state(each.state)),
            str(each.attempts),
            _due(each),
            _answer(each),
        )
        for each in found
    )
    columns = ("#", "ACTION", "STATE", "TRIES", "WHEN", "ANSWER")
    print_table(columns, rows, empty="No deliveries.")


@app.command(epilog=EPILOG)
def redeliver(
    webhook: Hook,
    *,
    sequence: Annotated[
        int | None,
        typer.Option(min=1, help="Only this delivery. Default: all dead ones.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send dead deliveries once more, with attempts counted anew.

    Example: neuroweaver webhook redeliver router --sequence 17
    """
    request = registry.RedeliverWebhookRequest(
        webhook_id=webhook, sequence=sequence or 0, request_id=new_id()
    )
    with talking_to("registry") as client:
        done = client.registry.RedeliverWebhook(request)
    if as_json:
        print_json(to_json(done))
    else:
        console().print(f"{done.redelivered} to be sent again")


@app.command(epilog=EPILOG)
def remove(webhook: Hook, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove a webhook with its deliveries, dead ones too.

    Example: neuroweaver webhook remove router --yes
    """
    confirm(f"Remove {webhook} with its deliveries?", yes=yes, as_json=as_json)
    request = registry.DeleteWebhookRequest(webhook_id=webhook, request_id=new_id())
    with talking_to("registry") as client:
        removed = client.registry.DeleteWebhook(request)
    if as_json:
        print_json(to_json(removed))
    else:
        console().print(f"{removed.webhook_id} removed")


def _due(delivery: registry.WebhookDelivery) -> str:
    """When it was tried last, or is tried next; a moment of today without its date."""
    if delivery.HasField("next_attempt_time"):
        return f"next {_moment(delivery.next_attempt_time)}"
    return _moment(delivery.last_attempt_time)


def _moment(timestamp: Timestamp) -> str:
    return when(timestamp).removeprefix(f"{datetime.now().astimezone():%Y-%m-%d} ")


def _answer(delivery: registry.WebhookDelivery) -> str:
    return delivery.last_error or (str(delivery.last_status) if delivery.last_status else "")
