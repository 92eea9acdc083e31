"""Notifications by Prefect's automations: a nightly experiment that fails, and a champion that changes.

`refine deploy --notify` makes the automations. Prefect's server watches for the events and sends the message through a
notification block (Slack, Teams, email, a webhook). Prefect must be imported only after `refine.services.environment`
has been prepared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from refine.errors import ServiceError, SettingError
from refine.system.addresses import http_address
from refine.system.quiet import quiet_logger
from refine.tracking.registry import Version
from refine.tracking.tags import CHAMPION_WHY

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

OPTION = "--notify"
BLOCK = "refine"  # name of the block that an address makes
NIGHTLY = "refine-experiment/nightly"
NIGHTLY_FAILED, CHAMPION_CHANGED = "refine: a nightly failed", "refine: the champion changed"  # the automations
FAILURES = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
CHANGED = "refine.champion.changed"  # the event
RUN = """\
{{ flow_run.name }}: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run|ui_url }}"""
CHANGE = """\
{{ event.payload.model }}: version {{ event.payload.version }} is champion (before: {{ event.payload.before }})
{{ event.payload.why }}"""


def notify(target: str) -> None:
    """Make or renew both automations on the Prefect server in use. They send to `target`: the http(s):// address of a
    webhook that takes {"text": ...}, as those of Slack, Mattermost and Google Chat do, or a notification block of the
    server as TYPE/NAME.

    Raises SettingError: `target` is neither. Raises ServiceError: the server has no such block, or no nightly.
    """
    from prefect.client.orchestration import get_client
    from prefect.events.actions import SendNotification

    with get_client(sync_client=True) as client:
        block = _block(client, target)
        for name, about, trigger, body in (
            (NIGHTLY_FAILED, "the nightly experiment failed or crashed", _failure(client), RUN),
            (CHAMPION_CHANGED, "another version has the alias champion", _change(), CHANGE),
        ):
            send = SendNotification(block_document_id=block, subject=name, body=body)
            _put(client, name, about, trigger, send)


def champion_changed(before: Version | None, now: Version, why: str = "") -> None:
    """Send the event that `now` is champion, for the automations and Prefect's pages, unless it was so `before`.

    It goes in the background. A flow sends what waits before it ends; any other process calls `send_events`.

    why: default: what the version records.
    """
    from prefect.events import emit_event

    if before is not None and before.number == now.number:
        return
    emit_event(
        CHANGED,
        resource={"prefect.resource.id": f"refine.model.{now.name}", "prefect.resource.name": now.name},
        payload={
            "model": now.name,
            "version": now.label,
            "before": before.label if before else "none",
            "why": why or now.tags.get(CHAMPION_WHY, ""),
        },
    )


def send_events() -> None:
    """Wait up to 5 s until Prefect's server has the events of this process."""
    from prefect.events.worker import EventsWorker

    with quiet_logger(EventsWorker.__name__):  # it warns that the events wait, which is why they are sent
        EventsWorker.drain_all(timeout=5)


def check(target: str) -> None:
    """Raises SettingError: `target` is neither an address nor TYPE/NAME."""
    if "://" in target:
        http_address(target, OPTION, "https://HOST/PATH")
    elif target.count("/") != 1 or not all(target.split("/")):
        raise SettingError(
            f"{OPTION} {target!r}: expected the https:// address of a webhook, or a notification block as TYPE/NAME, "
            "for example slack-webhook/team (`prefect block ls` lists them)"
        )


def _block(client: SyncPrefectClient, target: str) -> UUID:
    """The id of the notification block to send with."""
    from prefect.exceptions import ObjectNotFound

    check(target)
    if "://" in target:
        return _webhook(target)
    kind, _, name = target.partition("/")
    try:
        document = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        raise ServiceError(
            f"{OPTION}: Prefect's server has no block {target}: make it on its page Blocks, or give the https:// "
            "address of a webhook; `prefect block ls` lists the blocks"
        ) from None
    if document.block_schema is None or "notify" not in document.block_schema.capabilities:
        raise ServiceError(
            f"{OPTION}: block {target} sends no notifications: name one that does, as slack-webhook/NAME"
        )
    return document.id


def _webhook(address: str) -> UUID:
    """Keep `address` in a block of the server, as a secret that its pages do not show."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.types import SecretDict

    block = CustomWebhookNotificationBlock(
        name=BLOCK,
        url="{{address}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets=SecretDict({"address": address}),
    )
    made: Any = block.save(BLOCK, overwrite=True)
    return UUID(str(made))


def _failure(client: SyncPrefectClient) -> Any:
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.exceptions import ObjectNotFound

    try:
        nightly = client.read_deployment_by_name(NIGHTLY)
    except ObjectNotFound:
        raise ServiceError(f"Prefect's server has no deployment {NIGHTLY}: `refine deploy` registers it") from None
    return EventTrigger(
        expect=FAILURES,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={
            "prefect.resource.id": f"prefect.deployment.{nightly.id}",
            "prefect.resource.role": "deployment",
        },
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )


def _change() -> Any:
    from prefect.events.schemas.automations import EventTrigger, Posture

    return EventTrigger(
        expect={CHANGED},
        match={"prefect.resource.id": "refine.model.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )


def _put(client: SyncPrefectClient, name: str, about: str, trigger: Any, send: Any) -> None:
    """Make the automation `name`, or replace what it does if it exists."""
    from prefect.events.schemas.automations import AutomationCore

    wanted = AutomationCore(name=name, description=about, enabled=True, trigger=trigger, actions=[send])
    known = client.read_automations_by_name(name)
    if known:
        client.update_automation(known[0].id, wanted)
    else:
        client.create_automation(wanted)
