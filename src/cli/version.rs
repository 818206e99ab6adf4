//! What this binary is.

/// Version of the package.
pub const SHORT: &str = env!("CARGO_PKG_VERSION");

/// Version, commit (when the build names one in `ARCHMESH_GIT_COMMIT`), features, protocol and oldest compiler.
pub fn long() -> String {
    format!(
        "archmesh {SHORT}\ncommit: {}\nprotocol: archmesh.v1\nfeatures: memory broker, TLS 1.2/1.3 (aws-lc-rs), permessage-deflate\n\
         needs: Linux 6.1 or newer with io_uring\nbuilt with: Rust {} or newer\n",
        option_env!("ARCHMESH_GIT_COMMIT").unwrap_or("unknown"),
        env!("CARGO_PKG_RUST_VERSION"),
    )
}
