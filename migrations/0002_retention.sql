-- Retention: which claims may be forgotten.
--
-- A claim is needed for as long as a message that carries its id can still arrive, and that is not a matter
-- of its age alone: a queue that nobody works on keeps its messages for ever. So the workers send marks
-- through the queue. It is first in, first out: once a mark has been handed out, everything that was
-- published before it has been handed out too. A claim that was last used before (the time a mark was
-- published, less the retention) is forgotten once the mark has been through for as long as a worker may
-- hold a message. While no worker works, no mark gets through, and nothing is forgotten.

-- Claims are taken from here oldest first, in small steps. The rows of one transaction share one claimed_at,
-- so the index stores the value once for many of them and grows at its right edge: some 10 bytes a claim.
create index message_claims_claimed_at on message_claims (claimed_at);
create index event_claims_claimed_at on event_claims (claimed_at);

comment on column message_claims.claimed_at is
    'When the claim was made or last met again: each duplicate that is recognised renews it.';
comment on column event_claims.claimed_at is
    'When the claim was made or last met again: each duplicate that is recognised renews it.';

-- A row for each mark of the last days: a few dozen.
create table queue_marks (
    id           uuid        not null primary key,
    published_at timestamptz not null default now(),
    arrived_at   timestamptz
);

comment on table queue_marks is
    'Marks sent through the queue of events. All that was published before published_at had been handed out at arrived_at.';

-- Two rows. Written before the first claim that falls under it is deleted, so that whoever relies on a claim
-- (a replay of old dead letters) can tell whether it would still be there.
create table forgotten_claims (
    kind        text        not null primary key check (kind in ('message', 'event')),
    used_before timestamptz not null
);

comment on table forgotten_claims is
    'Claims last used before this time may be gone, by kind of claim.';
