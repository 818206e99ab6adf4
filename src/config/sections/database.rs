//! The store, and the notifications in it.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::key::section;
use crate::config::secret::Secret;
use crate::config::value::Kind;

section! {
    /// The durable store: PostgreSQL when `database.url` is set, otherwise a file of SQLite, which is for one node. It is
    /// opened when something needs it (`notifications.enabled`, durable channels).
    "database" => DatabaseSection {
        /// `postgres://user:password@host:5432/name`, with `?sslmode=verify-full&sslrootcert=/path` for TLS. Forms: docs/database.md.
        url: Option<Secret<String>> = Kind::Secret, Restart;
        /// File of SQLite, made when it is missing; without `database.url`.
        sqlite_path: PathBuf = Kind::File, Restart;
        /// Whether the schema is brought up to date at the start. Otherwise `archmesh migrate` does it, and a node with an older
        /// schema does not start.
        migrate: bool = Kind::Bool, Restart;
        /// Connections of this node; with SQLite those that read, of which four are used at most.
        connections_max: u32 = Kind::Count(2, 1_000), Restart;
        /// For a connection, from the pool or new.
        connect_timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// For a request with all its statements.
        query_timeout: Duration = Kind::Duration(50, 60_000), Restart;
        /// Changes of inboxes that may wait to be written; more are answered "unavailable" at once.
        writes_waiting_max: u32 = Kind::Count(16, 10_000_000), Restart;
        /// Changes that one transaction carries at most.
        batch_max: u32 = Kind::Count(1, 10_000), Restart;
        /// Transactions of that kind at one time; SQLite has one.
        writers: u32 = Kind::Count(1, 64), Restart;
        /// Failures in a row after which the database is left alone for a while.
        breaker_failures: u32 = Kind::Count(1, 1_000), Restart;
        /// How long it is left alone before it is tried again.
        breaker_open: Duration = Kind::Duration(50, 600_000), Restart;
        /// Between two looks for what is due or was left behind, when nothing tells.
        poll_interval: Duration = Kind::Duration(20, 60_000), Restart;
        /// Between two counts of what waits in the outbox and what was given up, for the metrics.
        backlog_interval: Duration = Kind::Duration(100, 3_600_000), Restart;
        /// How long a node that starts waits for a database that does not answer, as at the boot of a host. Then it ends with
        /// exit code 75.
        start_timeout: Duration = Kind::Duration(0, 86_400_000), Restart;
    }
}

section! {
    /// Durable channels (`namespaces.<name>.durable`): publications are rows in the store before anybody gets them.
    "durable" => DurableSection {
        /// Newest publications of a channel that its home keeps in memory; older ones are read from the store.
        copy_publications_max: u32 = Kind::Count(0, 100_000), Live;
        /// Publications that may wait to be written; more are answered "unavailable" at once.
        writes_waiting_max: u32 = Kind::Count(16, 10_000_000), Restart;
        /// Bytes of publications that may wait to be written.
        waiting_bytes_max: usize = Kind::Size(64 << 10, 16 << 30), Restart;
        /// Publications that one transaction carries at most.
        batch_max: u32 = Kind::Count(1, 10_000), Restart;
        /// Transactions of that kind at one time, each for its part of the channels; SQLite has one.
        writers: u32 = Kind::Count(1, 64), Restart;
        /// Statements at one time that read what channels hold when a node begins to follow them.
        readers: u32 = Kind::Count(1, 64), Restart;
        /// Statements at one time that read older publications for clients.
        pages_at_once_max: u32 = Kind::Count(1, 1_000), Restart;
        /// In this time every channel that the node follows is compared once with the store.
        check_interval: Duration = Kind::Duration(100, 3_600_000), Restart;
        /// Between two rounds that delete what is not kept any more.
        clean_interval: Duration = Kind::Duration(100, 86_400_000), Restart;
        /// How long a channel without publications keeps its position.
        position_ttl: Duration = Kind::Duration(60_000, 3_650 * 86_400_000), Restart;
    }
}

section! {
    /// Notifications: an inbox per user in the store, told to all devices of the user through `user:{id}`.
    "notifications" => NotificationsSection {
        /// Whether this node has them; otherwise no store is opened.
        enabled: bool = Kind::Bool, Restart;
        /// How long an item stays in an inbox.
        retention: Duration = Kind::Duration(60_000, 3_650 * 86_400_000), Restart;
        /// Items in one page.
        page_max: u32 = Kind::Count(1, 1_000), Restart;
        /// Unconfirmed items that a client gets after its `welcome`, the newest ones; 0 = only the counters.
        missed_max: u32 = Kind::Count(0, 1_000), Restart;
        /// Users that one notification may go to; also notifications in one batch.
        recipients_max: u32 = Kind::Count(1, 1_000_000), Restart;
        /// Title and text together, in bytes.
        text_bytes_max: usize = Kind::Size(64, 1 << 20), Restart;
        /// `metadata`, in bytes.
        metadata_bytes_max: usize = Kind::Size(0, 1 << 20), Restart;
        /// How far in the future a notification may be scheduled.
        schedule_max: Duration = Kind::Duration(0, 3_650 * 86_400_000), Restart;
        /// Preferences of users who have none of their own, as a JSON document (docs/notifications.md).
        default_preferences: Option<String> = Kind::Text(16_384), Restart;
    }
}
