-- Inboxes, notifications, their deliveries, the outbox, preferences, addresses, templates.
-- Locks: new tables only, nothing that exists is touched. Back: drop the tables named here.
-- Times are milliseconds since 1970. Priorities: 0 low, 1 normal, 2 high, 3 critical.

CREATE TABLE archmesh_notifications (
    id              TEXT PRIMARY KEY,
    idempotency_key TEXT UNIQUE,
    category        TEXT   NOT NULL,
    priority        INTEGER NOT NULL,
    content         TEXT   NOT NULL,
    template        TEXT,
    collapse_key    TEXT,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER
);
CREATE INDEX archmesh_notifications_created ON archmesh_notifications (created_at);

-- Texts of a notification in other languages than that of its content.
CREATE TABLE archmesh_notification_texts (
    notification_id TEXT NOT NULL,
    locale          TEXT NOT NULL,
    content         TEXT NOT NULL,
    PRIMARY KEY (notification_id, locale)
);

-- One row per user: who holds its lock may change the user's inbox, and its numbers are those of the rows.
CREATE TABLE archmesh_inboxes (
    user_id    TEXT PRIMARY KEY,
    last_seq   INTEGER NOT NULL DEFAULT 0,
    unread     INTEGER NOT NULL DEFAULT 0,
    unseen     INTEGER NOT NULL DEFAULT 0,
    unacked    INTEGER NOT NULL DEFAULT 0,
    revision   INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE archmesh_inbox (
    user_id         TEXT   NOT NULL,
    seq             INTEGER NOT NULL,
    notification_id TEXT   NOT NULL,
    collapse_key    TEXT,
    locale          TEXT,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER,
    seen_at         INTEGER,
    read_at         INTEGER,
    acked_at        INTEGER,
    archived_at     INTEGER,
    PRIMARY KEY (user_id, seq),
    UNIQUE (user_id, notification_id)
) WITHOUT ROWID;
CREATE INDEX archmesh_inbox_notification ON archmesh_inbox (notification_id);
CREATE INDEX archmesh_inbox_created ON archmesh_inbox (created_at);
CREATE INDEX archmesh_inbox_expires ON archmesh_inbox (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX archmesh_inbox_unacked ON archmesh_inbox (user_id, seq) WHERE acked_at IS NULL;
CREATE INDEX archmesh_inbox_collapse ON archmesh_inbox (user_id, collapse_key) WHERE collapse_key IS NOT NULL;

-- What is to reach a user later or by another way than the inbox.
CREATE TABLE archmesh_deliveries (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    notification_id TEXT   NOT NULL,
    user_id         TEXT   NOT NULL,
    channel         TEXT   NOT NULL,
    contact_id      INTEGER NOT NULL DEFAULT 0,
    locale          TEXT,
    status          TEXT   NOT NULL DEFAULT 'pending',
    priority        INTEGER NOT NULL,
    due_at          INTEGER NOT NULL,
    digest_key      TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    error           TEXT,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    UNIQUE (notification_id, user_id, channel, contact_id)
);
CREATE INDEX archmesh_deliveries_due ON archmesh_deliveries (priority, due_at) WHERE status IN ('pending', 'retrying', 'sending');
CREATE INDEX archmesh_deliveries_dead ON archmesh_deliveries (id) WHERE status IN ('dead', 'failed');
CREATE INDEX archmesh_deliveries_done ON archmesh_deliveries (updated_at) WHERE status NOT IN ('pending', 'retrying', 'sending');
CREATE INDEX archmesh_deliveries_user ON archmesh_deliveries (user_id, id);

-- Publications that belong to a transaction. Applications may write to it inside their own:
--   INSERT INTO archmesh_outbox (channel, type, data) VALUES ('workflow:7', 'workflow_update', '{"status":"completed"}');
CREATE TABLE archmesh_outbox (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    channel         TEXT   NOT NULL,
    type            TEXT   NOT NULL DEFAULT 'message',
    data            TEXT   NOT NULL,
    priority        TEXT,
    idempotency_key TEXT,
    created_at      INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)),
    failed_at       INTEGER,
    error           TEXT
);
CREATE INDEX archmesh_outbox_waiting ON archmesh_outbox (id) WHERE failed_at IS NULL;

CREATE TABLE archmesh_preferences (
    user_id    TEXT PRIMARY KEY,
    document   TEXT   NOT NULL,
    updated_at INTEGER NOT NULL
);

-- Where users can be reached besides their devices that are connected.
CREATE TABLE archmesh_contacts (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id    TEXT   NOT NULL,
    channel    TEXT   NOT NULL,
    address    TEXT   NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (user_id, channel, address)
);

CREATE TABLE archmesh_templates (
    name       TEXT   NOT NULL,
    version    INTEGER NOT NULL,
    digest     TEXT   NOT NULL,
    document   TEXT   NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (name, version)
);
