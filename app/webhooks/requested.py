"""The webhook that a client asks for, checked before its work is admitted. Pure."""

from __future__ import annotations

from app.schemas.attachments import AttachmentFields
from app.settings import ApiSettings
from app.webhooks.addresses import objection, parse_target
from app.webhooks.signing import parse_secret
from tasks.attachments import Webhook
from tasks.errors import InvalidRequest


def requested_webhook(fields: AttachmentFields, settings: ApiSettings) -> Webhook | None:
    """Raises InvalidRequest."""
    if fields.webhook is not None and fields.webhook_url is not None:
        raise InvalidRequest("Send one of 'webhook' and 'webhook_url'.", param="webhook_url")
    if fields.webhook is not None:
        text, secret, param = fields.webhook.url, fields.webhook.secret, "webhook.url"
    elif fields.webhook_url is not None:
        text, secret, param = fields.webhook_url, None, "webhook_url"
    else:
        return None
    try:
        url = parse_target(text)
        problem = objection(url, settings.webhook_reach)
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        raise InvalidRequest(f"{param}: {problem}", param=param)
    if secret is not None:
        try:
            parse_secret(secret)
        except ValueError as error:
            raise InvalidRequest(f"webhook.secret: {error}", param="webhook.secret") from None
    elif not settings.webhook_keys:
        advice = "set KEEPWARM_WEBHOOK_SECRET, or send webhook.secret along"
        raise InvalidRequest(f"{param}: there is no secret to sign with; {advice}.", param=param)
    return Webhook(url=str(url), secret=secret)
