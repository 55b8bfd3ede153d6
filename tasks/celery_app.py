"""The Celery application: settings from celeryconfig.py, broker from the environment, our tasks."""

from __future__ import annotations

from celery import Celery

import tasks.broker  # noqa: F401 - the transport
from tasks.settings import StoreSettings, load_settings

GENERATE = "keepwarm.generate"
PLAN = "keepwarm.plan"
BATCH = "keepwarm.batch"
SWEEP_FILES = "keepwarm.sweep_files"


def create_celery_app(settings: StoreSettings) -> Celery:
    """An application bound to the store of these settings; no connection is made yet."""
    celery_app = Celery("keepwarm", broker=settings.broker_url, include=["tasks.generate", "tasks.control"])
    celery_app.config_from_object("celeryconfig")
    if settings.sentinels is not None:
        celery_app.conf.broker_transport_options["master_name"] = settings.sentinels.master
    return celery_app


app = create_celery_app(load_settings(StoreSettings))
