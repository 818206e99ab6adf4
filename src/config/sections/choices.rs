//! Values that are chosen by name.

use gateway_core::settings::{Access, AutoSubscribe, Priority, SlowPolicy};

use crate::config::key::{FromValue, choice};
use crate::config::value::Value;

choice! {
    /// Kind of deployment; sets defaults and switches safety checks.
    Environment {
        /// A developer's machine: loopback, no TLS, built-in keys, readable logs.
        Development = "development",
        /// Like production, with more logs.
        Staging = "staging",
        /// TLS and own keys are mandatory.
        Production = "production",
    }
}

choice! {
    /// Protection of the connection to a mail server.
    MailSecurity {
        /// None, for a server on this machine.
        None = "none",
        /// Begins in plain text and goes over to TLS, or is given up.
        StartTls = "starttls",
        /// TLS from the first byte.
        Tls = "tls",
    }
}

choice! {
    /// Size tier; sets defaults for everything that grows with the number of connections.
    Size {
        /// 100 connections per node.
        Small = "small",
        /// 1,000 connections per node.
        Medium = "medium",
        /// 5,000 connections per node.
        Large = "large",
        /// 10,000 connections per node.
        Enterprise = "enterprise",
    }
}

choice! {
    /// How accepted sockets are spread over the shards.
    Balance {
        /// The kernel's SO_REUSEPORT hash alone; no socket moves.
        Kernel = "kernel",
        /// One shard after the other.
        RoundRobin = "round_robin",
        /// The shard with the fewest connections.
        LeastConnections = "least_connections",
        /// The shard with the least CPU time in its last second.
        LeastLoad = "least_load",
        /// By a hash of the address or the user, so that the same one stays on its shard.
        Hash = "hash",
        /// By chance.
        Random = "random",
        /// Round robin in proportion to the weights.
        WeightedRoundRobin = "weighted_round_robin",
    }
}

choice! {
    /// How `/connect` chooses a node.
    Strategy {
        /// The node with the fewest connections for its weight.
        LeastConnections = "least_connections",
        /// The node whose shards were least busy for its weight.
        LeastLoad = "least_load",
        /// One node after the other.
        RoundRobin = "round_robin",
        /// Round robin in proportion to the weights.
        WeightedRoundRobin = "weighted_round_robin",
        /// By a hash of the user, so that all devices of a user come to one node.
        Hash = "hash",
        /// By chance.
        Random = "random",
    }
}

choice! {
    /// What `balance = "hash"` hashes.
    HashBy {
        /// Address of the client.
        Address = "address",
        /// User id of the token, where it comes with the handshake; else the address.
        User = "user",
    }
}

choice! {
    /// Lowest protocol version of TLS.
    TlsVersion {
        /// TLS 1.2 and 1.3.
        Tls12 = "1.2",
        /// TLS 1.3 only.
        Tls13 = "1.3",
    }
}

choice! {
    /// Signature algorithm of a configured key.
    Algorithm {
        /// HMAC with SHA-256.
        Hs256 = "HS256",
        /// HMAC with SHA-384.
        Hs384 = "HS384",
        /// HMAC with SHA-512.
        Hs512 = "HS512",
        /// RSA PKCS#1 v1.5 with SHA-256.
        Rs256 = "RS256",
        /// RSA PSS with SHA-256.
        Ps256 = "PS256",
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
        /// Ed25519.
        EdDsa = "EdDSA",
    }
}

impl Algorithm {
    /// Bytes a shared secret must have at least (RFC 7518, 3.2); `None` for algorithms with a key pair.
    pub fn secret_bytes_min(self) -> Option<usize> {
        match self {
            Self::Hs256 => Some(32),
            Self::Hs384 => Some(48),
            Self::Hs512 => Some(64),
            Self::Rs256 | Self::Ps256 | Self::Es256 | Self::EdDsa => None,
        }
    }
}

choice! {
    /// Form of log lines.
    LogFormat {
        /// One JSON object per line.
        Json = "json",
        /// For human eyes.
        Pretty = "pretty",
    }
}

/// Names of an enum of the core, with its variants.
pub(super) trait Named: Copy + PartialEq + 'static {
    /// Variants and their names.
    const TABLE: &'static [(&'static str, Self)];
    /// The names alone.
    const NAMES: &'static [&'static str];
}

macro_rules! named {
    ($type:ty { $($text:literal => $variant:expr),+ $(,)? }) => {
        impl Named for $type {
            const TABLE: &'static [(&'static str, Self)] = &[$(($text, $variant)),+];
            const NAMES: &'static [&'static str] = &[$($text),+];
        }

        impl FromValue for $type {
            fn from_value(value: Option<&Value>) -> Self {
                let text = String::from_value(value);
                Self::TABLE
                    .iter()
                    .find_map(|(name, variant)| (*name == text).then_some(*variant))
                    .expect("a choice was checked before it became a value")
            }
        }
    };
}

named!(Access {
    "nobody" => Access::Nobody,
    "token" => Access::Token,
    "owner" => Access::Owner,
    "members" => Access::Members,
    "signed_in" => Access::SignedIn,
    "anyone" => Access::Anyone,
    "hook" => Access::Hook,
});

named!(SlowPolicy {
    "disconnect" => SlowPolicy::Disconnect,
    "drop_oldest" => SlowPolicy::DropOldest,
    "keep_latest" => SlowPolicy::KeepLatest,
});

named!(Priority {
    "low" => Priority::Low,
    "normal" => Priority::Normal,
    "high" => Priority::High,
    "critical" => Priority::Critical,
});

named!(AutoSubscribe {
    "never" => AutoSubscribe::Never,
    "everyone" => AutoSubscribe::Everyone,
    "user" => AutoSubscribe::User,
});

/// Name of a variant of a core enum.
pub(super) fn name_of<T: Named>(variant: T) -> &'static str {
    T::TABLE
        .iter()
        .find_map(|(name, known)| (*known == variant).then_some(*name))
        .expect("the table has every variant")
}
