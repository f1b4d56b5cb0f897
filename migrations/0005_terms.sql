-- The field's terms: "padding" for the bytes that keep room on a page, "prune" for the deletion of claims.
--
-- Nothing else changes, and no row is touched. Workers of earlier versions use the old names: stop them
-- before this runs. The messages they hold go back to the queue, and the new workers count them.
alter table domain_counters rename column room to padding;

comment on column domain_counters.padding is
    'Carries no information. Keeps 16 bytes of the page free for later versions of the row: set on insert, null after the first update.';

alter table forgotten_claims rename to pruned_claims;

comment on table pruned_claims is
    'Claims last used before this time may have been pruned, by kind of claim.';
