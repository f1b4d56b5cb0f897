-- What operators do: changes of the rule, resets and imports, each with who did it and why.

-- walk is the number of the latest run of a reclassification. A run that finds another number there has been taken over.
alter table classification add column walk integer not null default 0;

-- A row for each thing that an operator did, written in the transaction that did it. at is in milliseconds since 1970,
-- details is JSON.
create table audit_log (
    id      integer not null primary key,
    at      integer not null,
    action  text    not null,
    subject text    not null,
    by_whom text    not null,
    reason  text    not null,
    details text    not null
) strict;

-- A row for each file that was imported, or is being imported, by the SHA-256 of its content: so it counts once, under
-- whatever name and whenever it comes. Each step moves bytes_through on from where it is, in the transaction that counts.
-- Times are in milliseconds since 1970.
create table imports (
    digest        blob    not null primary key check (length(digest) = 32),
    name          text    not null,
    bytes         integer not null,
    bytes_through integer not null default 0,
    rows          integer not null default 0,
    delivered     integer not null default 0,
    bounced       integer not null default 0,
    begun_at      integer not null,
    finished_at   integer
) without rowid, strict;
