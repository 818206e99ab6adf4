//! The control plane: HTTP, health, metrics, logs, drain, diagnostics.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::key::section;
use crate::config::sections::LogFormat;
use crate::config::value::Kind;

section! {
    /// The HTTP server of the control plane, which answers everything but WebSocket upgrades.
    "http" => HttpSection {
        /// From the first byte of a request to its complete head.
        header_timeout: Duration = Kind::Duration(100, 60_000), Restart;
        /// From the last answer to the next request of a kept connection.
        keep_alive_timeout: Duration = Kind::Duration(100, 600_000), Restart;
        /// HTTP connections at one time, of the public listeners and of the internal one each; more are refused.
        connections_max: u32 = Kind::Count(1, 100_000), Restart;
        /// Whether pages of `websocket.origins` get CORS headers.
        cors: bool = Kind::Bool, Restart;
        /// How long a browser may remember a CORS answer.
        cors_max_age: Duration = Kind::Duration(0, 86_400_000), Restart;
    }
}

section! {
    /// The control plane's executor.
    "control" => ControlSection {
        /// API requests handled at one time; more wait, within `api.timeout`.
        workers: u32 = Kind::Count(1, 10_000), Restart;
        /// Threads. They are not pinned and take what the shards leave.
        threads: u32 = Kind::Count(1, 64), Restart;
    }
}

section! {
    /// Health.
    "health" => HealthSection {
        /// Between two checks of the components; `/health` answers from the last one.
        interval: Duration = Kind::Duration(1_000, 600_000), Restart;
    }
}

section! {
    /// Metrics.
    "metrics" => MetricsSection {
        /// Whether `/metrics` is served.
        enabled: bool = Kind::Bool, Restart;
    }
}

section! {
    /// Logs. They go to standard error and never contain payloads, tokens or keys.
    "log" => LogSection {
        /// Which events are logged.
        level: String = Kind::LogFilter, Live;
        /// Form of the lines.
        format: LogFormat = LogFormat::KIND, Restart;
        /// File that warnings and errors are written to as well, as JSON.
        error_file: Option<PathBuf> = Kind::File, Restart;
        /// Lines of one event per second and shard; the others are counted and summed up. 0 = unlimited.
        sample_per_second: u32 = Kind::Count(0, 1_000_000), Restart;
    }
}

section! {
    /// Orderly end after SIGTERM.
    "drain" => DrainSection {
        /// From SIGTERM to the end of the process.
        timeout: Duration = Kind::Duration(100, 3_600_000), Live;
        /// Connections told to move, per second and node; 0 = all at once.
        connections_per_second: u32 = Kind::Count(0, 1_000_000), Live;
        /// Clients are asked to wait a random time up to this before they reconnect.
        reconnect_delay_max: Duration = Kind::Duration(0, 600_000), Live;
    }
}

section! {
    /// Switches for tests. Keep them off.
    "diagnostics" => DiagnosticsSection {
        /// Path that echoes every message without authentication, for conformance tests.
        echo_path: Option<String> = Kind::UrlPath, Live;
        /// Whether clients may ask for a panic or a stall. Development only.
        fault_injection: bool = Kind::Bool, Live;
    }
}
