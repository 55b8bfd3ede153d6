"""Webhooks: where they may go, how they are signed, and their delivery from the outbox."""
