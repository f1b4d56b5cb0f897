-- Watermarks: marks that hold for messages of every priority.
--
-- One mark shows that all before it has been handed out only where the queue is first in, first out. From RabbitMQ 4.0
-- on it is that for each class of priorities on its own, so a watermark is two messages, one at each end of the scale,
-- and counts once both have arrived.

-- A row for each of the two, so that two workers that get one each do not wait for each other. A few dozen.
create table watermarks (
    id           uuid        not null primary key,
    pair         uuid        not null,
    published_at timestamptz not null default now(),
    arrived_at   timestamptz
);

comment on table watermarks is
    'Messages sent through the queue of events in pairs, one of the lowest and one of the highest priority.';

-- What arrived before it was published did so on a clock that was set back in between, and shows nothing.
create view queue_progress as
select min(published_at) as published_at, max(arrived_at) as arrived_at
from watermarks
group by pair
having count(arrived_at) = 2 and bool_and(arrived_at >= published_at);

comment on view queue_progress is
    'All that was published before published_at, of whatever priority, had been handed out at arrived_at.';

-- Workers of the versions before may still run, and they trust single marks. The one row that stays here is of a time
-- that never comes: to them a mark has just been sent and has not arrived, so they send none, and forget nothing that
-- newer workers do not forget too. The lock lets no mark in that they are sending now.
lock table queue_marks in exclusive mode;
delete from queue_marks;
insert into queue_marks (id, published_at) values ('00000000-0000-0000-0000-000000000000', 'infinity');

comment on table queue_marks is
    'Of former versions. Its one row keeps their workers from sending marks; see watermarks.';
