"""What schemathesis cannot know of catchall: how domain names and keys are made, and how lines are written."""

import gzip
import json

import schemathesis
import zstandard
from hypothesis import strategies as st
from schemathesis.core.parameters import ParameterLocation

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9]{0,20}[a-z0-9])?", fullmatch=True) | st.sampled_from(
    ["a", "x" * 63, "r3---sn", "xn--mller-kva", "m\u00fcller", "BÜCHER", "例え"]
)
# No top-level domain is a number.
TOP = st.text(LETTERS, min_size=2, max_size=12) | st.sampled_from(["COM", "xn--p1ai", "рф"])


@st.composite
def domain_names(draw):
    labels = draw(st.lists(LABEL, min_size=1, max_size=3))
    return ".".join([*labels, draw(TOP)]) + draw(st.sampled_from(["", "."]))


schemathesis.openapi.format("idn-hostname", domain_names())

# A position is what the feed gave, and says which feed that was; or "now", or the beginning of any feed.
POSITION = st.sampled_from(["now", "0-"])
schemathesis.openapi.format("catchall-position", POSITION)

# A key has at most 255 bytes, which a schema cannot say: it counts characters.
KEY = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)
schemathesis.openapi.format("idempotency-key", KEY)


def dumps(value):
    """JSON; of bytes, which it has no form for, whatever text they make."""
    return json.dumps(value, default=lambda other: bytes(other).decode("latin-1"))


def packed(ctx, body):
    """The body as its Content-Encoding says."""
    encoding = (ctx.case.headers or {}).get("Content-Encoding")
    if encoding == "gzip":
        return gzip.compress(body)
    if encoding == "zstd":
        return zstandard.compress(body)
    return body


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    events = value if isinstance(value, list) else [value]
    return packed(ctx, "\n".join(dumps(event) for event in events).encode())


@schemathesis.serializer("application/json")
def array(ctx, value):
    return packed(ctx, dumps(value).encode())


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """The feed is asked for what there is: nobody here waits for changes, or reads events without end."""
    if case.operation.label == "GET /changes":
        case.headers["Accept"] = "application/json"
        if str((case.query or {}).get("wait", "")).isdigit():
            case.query["wait"] = "0"


@schemathesis.check
def a_bad_event_is_named(ctx, response, case):
    """The good events of a body with bad ones are counted, but each bad one is named."""
    bad = case.meta is not None and case.meta.components.get(ParameterLocation.BODY)
    if case.operation.label == "POST /events" and response.status_code == 202 and bad and bad.mode.is_negative:
        assert response.json()["rejected"], "a bad event was counted"
