-- The data file of the standalone: what is known of each domain, and which keyed events have been counted.
--
-- Each table is one tree ordered by its key ("without rowid"): a row is found, and rewritten in place, by one way down.
-- A second tree, of an index or of row ids, would double what every new row costs.
--
-- Pages of 1 KiB: an update of one row out of millions writes its whole page to the log, so small pages write less.

-- One row per domain. SQLite compares bytes, which is the order in which the rows of a transaction are written, so that
-- rows of one page are written together.
create table domain_counters (
    domain    text    not null primary key,
    delivered integer not null,
    bounced   integer not null
) without rowid, strict;

-- One row per keyed event that has been counted. used_at is when the claim was made or last met, in seconds since 1970.
-- It has no index: claims are pruned by walking through all of them, a few at a time, which costs each new claim nothing.
create table event_claims (
    id      blob    not null primary key,
    used_at integer not null
) without rowid, strict;

-- One row: which file this is, and whether its content is being moved to a Postgres or has been.
create table data_file (
    id         blob not null primary key,
    moving_to  text,
    move_id    blob,
    move_state text not null default 'none' check (move_state in ('none', 'planned', 'begun', 'done'))
) without rowid, strict;
insert into data_file (id) values (randomblob(16));
