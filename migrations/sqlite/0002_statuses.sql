-- Statuses: what each domain is, since when, and the order in which that changed. They have a table of their own, so that
-- an update of counters that changes no status writes what it wrote before.

-- The rule of this file, one row. walked_through is how far a reclassification has come, null when there is none.
-- changes counts the transactions that changed a status: there is one writer at a time, so this is the order in which
-- they become visible too.
create table classification (
    threshold      integer not null default 1000 check (threshold >= 0),
    walked_through text,
    changes        integer not null default 0
) strict;
insert into classification default values;

-- A row for each domain that is not "unknown", or was not: 1 is "catch-all", 2 "not catch-all", 0 "unknown" again. since
-- is in milliseconds since 1970.
create table domain_statuses (
    domain     text    not null primary key,
    status     integer not null check (status in (0, 1, 2)),
    since      integer not null,
    changed_in integer not null
) without rowid, strict;
create index domain_statuses_list on domain_statuses (status, domain);
create index domain_statuses_feed on domain_statuses (changed_in, domain);

-- Events and domains, in parts that add up to the totals: one row for ten seconds of the last hour, and 0 for what is
-- older. counted_at is in seconds since 1970.
create table totals (
    counted_at    integer not null primary key,
    delivered     integer not null default 0,
    bounced       integer not null default 0,
    domains       integer not null default 0,
    catch_all     integer not null default 0,
    not_catch_all integer not null default 0
) strict;

-- What was counted before. It was reached at an unknown time before now.
update classification set changes = 1;
insert into domain_statuses (domain, status, since, changed_in)
select domain, iif(bounced > 0, 2, 1), unixepoch() * 1000, 1
from domain_counters
where bounced > 0 or delivered > 1000;

insert into totals (counted_at, delivered, bounced, domains, catch_all, not_catch_all)
select 0, cast(min(total(delivered), 9e18) as integer), cast(min(total(bounced), 9e18) as integer), count(*),
    count(*) filter (where bounced = 0 and delivered > 1000), count(*) filter (where bounced > 0)
from domain_counters
where delivered > 0 or bounced > 0;
