"""Celery settings as plain data. The broker's address comes from `KEEPWARM_REDIS_URL` (see tasks/celery_app.py).

The message of a job is a disposable wake-up: the job record is the truth, and the controller re-sends a wake-up
that got lost. That is why nothing here tries to make messages reliable.
"""

# ---- delivery
task_acks_late = False  # ack at delivery: a late ack would run a long job twice once the visibility timeout passes
worker_prefetch_multiplier = 1
worker_disable_prefetch = True  # take a message only when a thread is free; the rest stays visible in the queue
task_ignore_result = True  # results live in the job record; Celery's cost a SETEX and a PUBLISH per task
task_create_missing_queues = True  # a model's queue exists as soon as somebody uses it

# ---- what may be in a message
accept_content = ["json"]  # never pickle
task_serializer = "json"
task_compression = None
enable_utc = True

# ---- priorities: 0 interactive, 3 default, 6 batch; 0 is taken first
task_default_priority = 3
task_queue_max_priority = None  # a RabbitMQ setting; Redis uses priority_steps

broker_transport_options = {
    "priority_steps": [0, 3, 6],
    "queue_order_strategy": "round_robin",  # no model's queue starves another's; workers put their slot gate before it
    "socket_keepalive": True,
    "socket_timeout": 10.0,  # seconds; BRPOP returns every second, so 10 s of silence is a dead connection
    "socket_connect_timeout": 3.0,  # seconds
    "health_check_interval": 10,  # seconds between PINGs on an idle connection
    "ack_emulation": False,  # no list of unacknowledged messages: four commands per job, for messages that may be lost
}

# ---- connections
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # try for ever; the default gives up after 100
worker_cancel_long_running_tasks_on_connection_loss = False  # the job's lease decides, not the connection

# ---- monitoring (Flower)
worker_send_task_events = False  # Flower switches them on, and again every 5 s; nobody else wants to hear of tasks
task_send_sent_event = False  # the front sends one message per job; Flower sees it when a worker receives it
event_queue_expires = 60  # seconds

# ---- noise
worker_hijack_root_logger = False  # our structured log stays
worker_redirect_stdouts = False
