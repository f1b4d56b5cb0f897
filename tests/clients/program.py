"""Uses every request through generated clients, and prints what it got, as JSON.

Beside it are the packages "events" and "domains", one of each service's document; with the standalone both are of
the same.
"""

import datetime
import json
import os
import time
from http import HTTPStatus

import domains
import events
from domains.api.changes import get_changes
from domains.api.domains import get_domain, get_map, list_domains, look_up_domains
from domains.api.this_document import openapi_json
from domains.api.totals import get_totals
from domains.models import DomainReport, GetMapStatus, ListAnswer, NoName, Problem, Status
from events.api.events import post_events, put_event
from events.models import Event, Outcome
from events.models import Problem as EventsProblem

sender = events.AuthenticatedClient(base_url=os.environ["EVENTS_URL"], token=os.environ["EVENTS_TOKEN"])
reader = domains.AuthenticatedClient(base_url=os.environ["DOMAINS_URL"], token=os.environ["DOMAINS_TOKEN"])
stranger = domains.AuthenticatedClient(base_url=os.environ["DOMAINS_URL"], token="nobody's")


def eventually(read, is_expected):
    """The first answer that is as expected. The replica is a moment behind."""
    end = time.monotonic() + 60
    while not is_expected(answer := read()):
        assert time.monotonic() < end, answer
        time.sleep(0.05)
    return answer


def short(report):
    """A report without its moment, of which only the type is known."""
    assert isinstance(report, DomainReport), report
    assert report.since is None or isinstance(report.since, datetime.datetime), report
    return [report.domain, report.status.value, report.delivered, report.bounced, report.since is not None]


def problem(found, kind=Problem):
    assert isinstance(found, kind), found
    return [found.type_.value, found.status, found.title]


def put(domain, key):
    answer = put_event.sync_detailed(domain, Outcome.DELIVERED, client=sender, idempotency_key=key)
    return answer.parsed or answer.status_code.value


def pages(status):
    """Every page of a list with one domain on each."""
    found, after = [], domains.types.UNSET
    while after is not None:
        page = list_domains.sync(client=reader, status=status, after=after, limit=1)
        assert isinstance(page, ListAnswer) and len(page.domains) <= 1, page
        found += [short(report) for report in page.domains]
        after = page.next_
    return found


def changes(number):
    """So many changes from the beginning, a page for each."""
    found, position = [], domains.types.UNSET
    while len(found) < number:
        page = get_changes.sync(client=reader, since=position, limit=1, wait=60)
        assert len(page.changes) == 1, page
        found += [short(change) for change in page.changes]
        position = page.position
    return sorted(found)


def bulk():
    sent = [
        Event(domain="a.example", event=Outcome.DELIVERED, count=1000),
        Event(domain="b.example", event=Outcome.BOUNCED, id="b"),
        Event(domain="localhost", event=Outcome.DELIVERED),
        Event(domain="c.example", event=Outcome.DELIVERED, count=5),
    ]
    answer = post_events.sync(client=sender, body=sent, idempotency_key="bulk")
    return [answer.accepted, [[one.index, one.type_.value] for one in answer.rejected]]


def totals():
    answer = get_totals.sync(client=reader)
    all_domains, all_events = answer.domains, answer.events
    assert sum(minute.delivered for minute in answer.minutes) == all_events.delivered, answer
    return [
        [all_domains.catch_all, all_domains.not_catch_all, all_domains.unknown],
        [all_events.delivered, all_events.bounced],
        answer.recent.hour,
    ]


def names():
    answer = look_up_domains.sync(client=reader, body=["A.example.", "localhost"])
    known, unknown = answer.domains
    assert isinstance(unknown, NoName), unknown
    return [short(known), unknown.name, problem(unknown.problem)]


def main():
    printed = {"put": [put("a.example", "a"), put("A.Example.", "a")]}
    printed["bulk"] = bulk()
    asked = eventually(
        lambda: get_domain.sync_detailed("a.example", client=reader), lambda found: found.parsed.delivered == 1001
    )
    printed["domain"] = short(asked.parsed)
    again = get_domain.sync_detailed("a.example", client=reader, if_none_match=asked.headers["etag"])
    printed["unchanged"] = again.status_code == HTTPStatus.NOT_MODIFIED
    printed["list"] = pages(domains.types.UNSET)
    printed["bounced"] = pages(Status.NOT_CATCH_ALL)
    printed["names"] = names()
    printed["map"] = get_map.sync(GetMapStatus.CATCH_ALL, client=reader)
    printed["totals"] = totals()
    printed["changes"] = changes(2)
    printed["problems"] = [
        problem(put("localhost", "d"), EventsProblem),
        problem(get_domain.sync("localhost", client=reader)),
        problem(get_changes.sync(client=reader, since="nowhere")),
        problem(get_domain.sync("a.example", client=stranger)),
    ]
    printed["document"] = openapi_json.sync(client=reader)["openapi"]
    print(json.dumps(printed))


main()
