//! Hooks: questions to the application.

use std::path::PathBuf;
use std::time::Duration;

use gateway_core::hook::ConnectHook;

use crate::config::key::{choice, section};
use crate::config::secret::Secret;
use crate::config::value::Kind;

choice! {
    /// When the application is asked about a connection.
    ConnectMode {
        /// When its token is verified.
        WithToken = "with_token",
        /// At once; the application knows the user.
        InsteadOfToken = "instead_of_token",
    }
}

impl ConnectMode {
    /// The core's form.
    pub fn to_core(self) -> ConnectHook {
        match self {
            Self::WithToken => ConnectHook::WithToken,
            Self::InsteadOfToken => ConnectHook::InsteadOfToken,
        }
    }
}

choice! {
    /// What holds when the application cannot be asked.
    OnFailure {
        /// The client gets a temporary error.
        Deny = "deny",
        /// The client may.
        Allow = "allow",
    }
}

section! {
    /// Questions to the application (docs/hooks.md): what all of them have in common.
    "hooks" => HooksSection {
        /// Secrets that sign every question (`whsec_` and base64); several while they are changed, none = unsigned.
        secrets: Vec<Secret<String>> = Kind::List(&Kind::Secret, 0, 4), Live;
        /// Longest answer.
        answer_bytes_max: usize = Kind::Size(1 << 10, 16 << 20), Live;
        /// Payloads that may wait for their turn in each hook, together; more are refused at once.
        waiting_bytes_max: usize = Kind::Size(64 << 10, 4 << 30), Live;
        /// How long an idle connection to the application is kept. Shorter than the application's own limit, so that no
        /// question meets a connection that is just being closed.
        idle_timeout: Duration = Kind::Duration(0, 3_600_000), Live;
        /// Failures in a row after which a hook is left alone for a while.
        breaker_failures: u32 = Kind::Count(1, 1_000), Live;
        /// How long it is left alone before it is tried again.
        breaker_open: Duration = Kind::Duration(50, 3_600_000), Live;
        /// File of CA certificates that are trusted beside those of the system.
        ca_path: Option<PathBuf> = Kind::File, Live;
    }
}

section! {
    /// Whether a client may connect. It is on when `hooks.connect.url` is set.
    "hooks.connect" => ConnectHookSection {
        /// URL that gets a POST for each connection.
        url: Option<String> = Kind::Url, Live;
        /// `with_token`: asked when the token is verified; `instead_of_token`: this gateway looks at no token, and the
        /// application says who the user is.
        mode: ConnectMode = ConnectMode::KIND, Live;
        /// From the question to its answer, waiting included. Shorter than `limits.auth_timeout`.
        timeout: Duration = Kind::Duration(50, 60_000), Live;
        /// Questions that the application is asked at once.
        concurrency_max: u32 = Kind::Count(1, 10_000), Live;
        /// Questions that may wait for their turn; more are refused at once.
        waiting_max: u32 = Kind::Count(0, 1_000_000), Live;
    }
}

section! {
    /// Whether a client may subscribe, in namespaces with `subscribe_hook`. It is on when `hooks.subscribe.url` is set.
    "hooks.subscribe" => SubscribeHookSection {
        /// URL that gets a POST for each subscribe.
        url: Option<String> = Kind::Url, Live;
        /// From the question to its answer, waiting included.
        timeout: Duration = Kind::Duration(50, 60_000), Live;
        /// Questions that the application is asked at once.
        concurrency_max: u32 = Kind::Count(1, 10_000), Live;
        /// Questions that may wait for their turn; more are refused at once.
        waiting_max: u32 = Kind::Count(0, 1_000_000), Live;
        /// What holds when the application does not answer: `deny` is a temporary error, `allow` lets the client.
        on_failure: OnFailure = OnFailure::KIND, Live;
    }
}

section! {
    /// Whether a client may publish, in namespaces with `publish_hook`. It is on when `hooks.publish.url` is set.
    "hooks.publish" => PublishHookSection {
        /// URL that gets a POST for each publication.
        url: Option<String> = Kind::Url, Live;
        /// From the question to its answer, waiting included.
        timeout: Duration = Kind::Duration(50, 60_000), Live;
        /// Questions that the application is asked at once.
        concurrency_max: u32 = Kind::Count(1, 10_000), Live;
        /// Questions that may wait for their turn; more are refused at once.
        waiting_max: u32 = Kind::Count(0, 1_000_000), Live;
        /// What holds when the application does not answer: `deny` is a temporary error, `allow` lets the client.
        on_failure: OnFailure = OnFailure::KIND, Live;
    }
}

section! {
    /// Calls of clients to the application (`rpc`). It is on when `hooks.rpc.url` is set.
    "hooks.rpc" => RpcHookSection {
        /// URL that gets a POST for each call.
        url: Option<String> = Kind::Url, Live;
        /// From the call to its answer, waiting included.
        timeout: Duration = Kind::Duration(50, 60_000), Live;
        /// Calls that the application answers at once.
        concurrency_max: u32 = Kind::Count(1, 10_000), Live;
        /// Calls that may wait for their turn; more are refused at once.
        waiting_max: u32 = Kind::Count(0, 1_000_000), Live;
    }
}
