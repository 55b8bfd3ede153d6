"""What clients may attach to jobs and batches: metadata, and a webhook for the end."""

from __future__ import annotations

from pydantic import BaseModel, Field

from app.schemas.openai import Metadata, Text
from app.schemas.own_fields import OwnFields


class WebhookTarget(OwnFields):
    """Where to post to when the work has ended, signed by the Standard Webhooks scheme."""

    url: Text = Field(min_length=1, max_length=2048)
    secret: Text | None = Field(
        default=None, max_length=128, description="`whsec_…`; without it KEEPWARM_WEBHOOK_SECRET signs."
    )


class AttachmentFields(BaseModel):
    metadata: Metadata | None = None
    webhook: WebhookTarget | None = None
    webhook_url: Text | None = Field(
        default=None, min_length=1, max_length=2048, description="Short for `webhook: {url}`."
    )
