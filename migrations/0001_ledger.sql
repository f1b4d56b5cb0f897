-- The ledger: what is known of each domain, and which messages and events have been counted.
-- Plain tables and plain keys, no sequence, nothing that needs a superuser: the same statements run on a
-- distributed Postgres, with the counters distributed by domain and the claims by id.

-- One row per domain, written by every worker's upsert and read by every query.
--
-- Key: the name itself. A surrogate key would need a second index and a look-up per event; a sequence
-- would be consumed by every upsert, also by those that only update. collate "C" compares bytes, which is
-- cheaper than a locale and is the order the workers write in, so that two of them lock shared rows in one
-- order and cannot deadlock.
--
-- No index on the counters and a fillfactor of 75: with no indexed column changed and room left on the
-- page every update is HOT, that is, it writes one new row version into the same page and touches no
-- index; the dead version is pruned by the next visitor without vacuum. Above some 85 the pages of a hot
-- table fill within one batch and updates start to migrate, each paying for an index entry; below 75 the
-- table only grows.
create table domain_counters (
    domain    text collate "C" not null primary key,
    delivered bigint           not null check (delivered >= 0),
    bounced   bigint           not null check (bounced >= 0)
) with (fillfactor = 75);

comment on table domain_counters is
    'Events per domain. A row appears with the first event; counters only grow. Written by catchall-worker.';

-- One row per message that has been counted. The primary key is what makes a redelivery count nothing: the
-- row is inserted in the transaction that adds the message's events, so both are there or neither is.
-- Ids of ingest's messages are version 7 UUIDs: new rows go to the right edge of the index, which stays
-- dense and in memory. claimed_at is when the transaction began; claims are pruned by age.
create table message_claims (
    id         uuid        not null primary key,
    claimed_at timestamptz not null default now()
);

comment on table message_claims is
    'Messages that have been counted, by message_id. A message whose id is here is not counted again.';

-- The same for single events that carry a key (Idempotency-Key, id). Keys are whatever clients chose, so
-- rows arrive in no order; that is the price of a key per event.
create table event_claims (
    id         uuid        not null primary key,
    claimed_at timestamptz not null default now()
);

comment on table event_claims is
    'Keyed events that have been counted. An event whose key is here is not counted again, whatever it says.';
