"""What a client attaches to its work, checked: metadata by the schema, the webhook here."""

from __future__ import annotations

from anyio import to_thread

from app.front import Front
from app.schemas.attachments import AttachmentFields
from app.webhooks.requested import requested_webhook
from tasks.attachments import NOTHING, Attachments
from tasks.errors import TooManyWebhooks


async def attachments(fields: AttachmentFields, front: Front) -> Attachments:
    """Raises InvalidRequest, TooManyWebhooks, StoreUnavailable."""
    webhook = requested_webhook(fields, front.settings)
    if webhook is None:
        return NOTHING if fields.metadata is None else Attachments(metadata=fields.metadata)
    pending = await to_thread.run_sync(front.backend.outbox.num_pending)
    if pending >= front.settings.max_webhooks:
        raise TooManyWebhooks(pending=pending, limit=front.settings.max_webhooks)
    return Attachments(metadata=fields.metadata, webhook=webhook)
