"""Publishes delivery events straight to the broker, with pika.

    CATCHALL_AMQP_URL=amqp://... python3 examples/publisher.py report-2026-11-25

The argument is the id of the message. If the program fails, run it again with the same id: the message counts once,
however often it is published.
"""

import json
import os
import sys

import pika

# Many events in one message: each costs the broker hardly anything. The second event has an id of its own, so it
# counts once even if another message brings it again.
EVENTS = [
    {"domain": "example.com", "event": "delivered", "count": 3},
    {"domain": "example.org", "event": "bounced", "id": "message-4713"},
]

# AMQP's number for a message that must survive a restart of the broker.
PERSISTENT = 2


def publish(url: str, message_id: str) -> None:
    """Returns once the broker has the message. Any exception means that this is not known."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    # From now on basic_publish returns after the broker's confirm, or raises.
    channel.confirm_delivery()
    channel.basic_publish(
        exchange="catchall.events",
        routing_key="example.com",
        body=json.dumps(EVENTS),
        properties=pika.BasicProperties(
            content_type="application/json",
            delivery_mode=PERSISTENT,
            message_id=message_id,
        ),
        mandatory=True,  # raise if no queue takes it; otherwise the broker would drop it and confirm that
    )
    connection.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: publisher.py MESSAGE_ID")
    try:
        publish(os.environ["CATCHALL_AMQP_URL"], sys.argv[1])
    except pika.exceptions.AMQPError as error:
        sys.exit(f"not known to be at the broker, publish it again under the same id: {error!r}")
    print("the broker has it")
