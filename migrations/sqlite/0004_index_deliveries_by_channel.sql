-- Deliveries that are due are looked for by delivery channel, so that a backlog of one is not read for the others; rows of
-- the outbox that failed are counted.
-- Locks: writes to archmesh_deliveries wait while the index is made, some seconds per million open deliveries.
-- Back: drop the indexes and make archmesh_deliveries_due of 0001 again; nodes of the release before run with either.

CREATE INDEX archmesh_deliveries_open ON archmesh_deliveries (channel, priority, due_at)
    WHERE status IN ('pending', 'retrying', 'sending');
DROP INDEX archmesh_deliveries_due;
CREATE INDEX archmesh_outbox_failed ON archmesh_outbox (id) WHERE failed_at IS NOT NULL;
