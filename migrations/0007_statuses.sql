-- Statuses: what each domain is, since when, and the order in which that changed.
--
-- Counters say what a domain is, but not when it became so, and nobody could list the catch-alls without reading all of
-- them. The statuses have a table of their own, so that an update of counters that changes no status writes what it wrote
-- before: one HOT row. A column in the counters costs every update some bytes, and those that change it are not HOT.
--
-- Earlier workers write no statuses: stop them before this runs. The messages they hold go back to the queue.

-- The rule of this ledger, one row. Whoever counts reads it at the beginning of each transaction; only a
-- reclassification writes it. `walked_through` is how far that has come, null when there is none.
create table classification (
    only_row       boolean not null primary key default true check (only_row),
    threshold      bigint  not null default 1000 check (threshold >= 0),
    walked_through text collate "C"
);
insert into classification default values;

comment on table classification is
    'The rule by which the statuses are: a domain without a bounce is a catch-all above this many delivered events.';

-- A row for each domain that is not "unknown", or was not: 1 is "catch-all", 2 "not catch-all", 0 "unknown" again.
--
-- changed_in is the transaction that wrote the row. Transactions commit in another order than they begin in, so it is a
-- position in the feed of changes only below the oldest transaction that still runs (pg_snapshot_xmin): what is below is
-- complete, on the primary and on a replica. A row is written a few times in its life, so each index costs little.
create table domain_statuses (
    domain     text collate "C" not null primary key,
    status     smallint         not null check (status in (0, 1, 2)),
    since      timestamptz      not null,
    changed_in bigint           not null
);
create index domain_statuses_list on domain_statuses (status, domain);
create index domain_statuses_feed on domain_statuses (changed_in, domain);

comment on table domain_statuses is
    'What each domain is, and since when. Written in the transaction that counts what made it so.';

-- Totals: a row for each worker and ten seconds, so that no two workers wait for each other and nothing is counted by
-- reading all rows. Old rows are folded into one of the epoch. The sums of all rows are the totals.
create table totals (
    counted_at    timestamptz not null,
    writer        uuid        not null,
    delivered     numeric     not null default 0,
    bounced       numeric     not null default 0,
    domains       bigint      not null default 0,
    catch_all     bigint      not null default 0,
    not_catch_all bigint      not null default 0,
    primary key (counted_at, writer)
) with (fillfactor = 50);

comment on table totals is
    'Events and domains, in parts that add up to the totals: one row for each worker and ten seconds of the last hour, and what is older.';

-- What was counted before. The transaction that an old row changed in is this one; it was reached at an unknown time
-- before now.
insert into domain_statuses (domain, status, since, changed_in)
select domain, case when bounced > 0 then 2 else 1 end, now(), pg_current_xact_id()::text::bigint
from domain_counters
where bounced > 0 or delivered > 1000
order by domain;

insert into totals (counted_at, writer, delivered, bounced, domains, catch_all, not_catch_all)
select 'epoch', '00000000-0000-0000-0000-000000000000', coalesce(sum(delivered), 0), coalesce(sum(bounced), 0), count(*),
    count(*) filter (where bounced = 0 and delivered > 1000), count(*) filter (where bounced > 0)
from domain_counters
where delivered > 0 or bounced > 0;
