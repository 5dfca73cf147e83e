"""Celery's configuration: messages are hints that may be lost, doubled or late, so everything durable is off."""

from __future__ import annotations

from typing import Any

from kombu.entity import Exchange, Queue

from config.settings import Settings

CLASS_QUEUES = ("foreground", "background", "best_effort")
SCHEDULER_QUEUE = "scheduler"


def node_queue(node: str) -> str:
    """The queue that only this node consumes."""
    return f"node.{node}"


def bell_queue(name: str) -> Queue:
    """A queue of bells. A worker takes them without an acknowledgement: one that is lost with it costs only time."""
    return Queue(name, Exchange(""), routing_key=name, no_ack=True)  # type: ignore[no-untyped-call]


def celery_config(settings: Settings) -> dict[str, Any]:
    """Celery's settings for all roles.

    Strict class order needs `queue_order_strategy` and no prefetch. No late acknowledgement, no result backend: the
    row in PostgreSQL is the truth, so a message that is lost with its worker costs nothing.
    """
    return {
        "broker_url": settings.broker_url or "memory://",
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "queue_order_strategy": "priority",
            "socket_connect_timeout": 1,
            "socket_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "visibility_timeout": 3600,
        },
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_ignore_result": True,
        "task_acks_late": False,
        "task_send_sent_event": False,
        "task_queues": [bell_queue(name) for name in CLASS_QUEUES],
        "task_create_missing_queues": True,
        "task_default_queue": "background",
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_enable_remote_control": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "enable_utc": True,
        "timezone": "UTC",
    }
