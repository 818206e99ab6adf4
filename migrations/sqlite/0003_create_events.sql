-- The log of events, what it knows of sessions and channels, and how far webhooks have got.
-- Locks: new tables only, nothing that exists is touched. Back: drop the tables named here.
-- Times are milliseconds since 1970.

-- One row, made with the first event: who holds its lock gives out the ids, so that ids become visible in their order and a reader that remembers the
-- last one misses nothing.
CREATE TABLE archmesh_event_counter (
    one     INTEGER PRIMARY KEY,
    last_id INTEGER NOT NULL
);

CREATE TABLE archmesh_events (
    id      INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL,
    node    TEXT   NOT NULL,
    kind    TEXT   NOT NULL,
    user_id TEXT,
    session TEXT,
    address TEXT,
    channel TEXT,
    detail  TEXT   NOT NULL
);
CREATE INDEX archmesh_events_at ON archmesh_events (at);
CREATE INDEX archmesh_events_kind ON archmesh_events (kind, id);
CREATE INDEX archmesh_events_user ON archmesh_events (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX archmesh_events_session ON archmesh_events (session, id) WHERE session IS NOT NULL;
CREATE INDEX archmesh_events_channel ON archmesh_events (channel, id) WHERE channel IS NOT NULL;

-- Runs of nodes. The batch is the number of the newest one that the run has written, so that one whose commit was in doubt is
-- not written twice; a run whose batch stands still for too long is gone.
CREATE TABLE archmesh_event_nodes (
    id         INTEGER PRIMARY KEY,
    name       TEXT   NOT NULL,
    batch      INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    gone       INTEGER NOT NULL DEFAULT 0
);

-- Which runs have a subscriber of a channel.
CREATE TABLE archmesh_occupancy (
    channel TEXT   NOT NULL,
    node    INTEGER NOT NULL,
    PRIMARY KEY (channel, node)
);
CREATE INDEX archmesh_occupancy_node ON archmesh_occupancy (node);

CREATE TABLE archmesh_sessions (
    session         TEXT PRIMARY KEY,
    user_id         TEXT,
    node            INTEGER NOT NULL,
    node_name       TEXT   NOT NULL,
    address         TEXT   NOT NULL,
    user_agent      TEXT,
    connected_at    INTEGER NOT NULL,
    disconnected_at INTEGER,
    reason          TEXT
);
CREATE INDEX archmesh_sessions_user ON archmesh_sessions (user_id, connected_at) WHERE user_id IS NOT NULL;
CREATE INDEX archmesh_sessions_open ON archmesh_sessions (node) WHERE disconnected_at IS NULL;
CREATE INDEX archmesh_sessions_ended ON archmesh_sessions (disconnected_at) WHERE disconnected_at IS NOT NULL;

-- How far each endpoint has got, and which run sends to it now. A batch that has failed is tried again as it was, up to its end.
CREATE TABLE archmesh_webhook_cursors (
    name        TEXT PRIMARY KEY,
    last_id     INTEGER NOT NULL,
    batch_end   INTEGER NOT NULL DEFAULT 0,
    owner       INTEGER NOT NULL DEFAULT 0,
    lease_until INTEGER NOT NULL DEFAULT 0,
    attempts    INTEGER NOT NULL DEFAULT 0,
    due_at      INTEGER NOT NULL DEFAULT 0,
    last_error  TEXT
);

-- Batches that an endpoint has not taken.
CREATE TABLE archmesh_webhook_dead (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    name     TEXT   NOT NULL,
    first_id INTEGER NOT NULL,
    last_id  INTEGER NOT NULL,
    events   INTEGER NOT NULL,
    body     TEXT   NOT NULL,
    error    TEXT   NOT NULL,
    attempts INTEGER NOT NULL,
    died_at  INTEGER NOT NULL,
    retry    INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX archmesh_webhook_dead_name ON archmesh_webhook_dead (name, id);
