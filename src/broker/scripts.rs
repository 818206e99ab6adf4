//! The scripts, bound to one run of the server.
//!
//! A server that was restarted, or a replica that took over, may have lost the newest writes without a trace: offsets would
//! be given a second time in the same epoch. So every script carries the name of the run it was loaded for, and is called
//! by its hash only: another run does not know the hash, and the scripts are loaded anew under another name. A stream
//! that was written under another name begins anew (`lua/stream.lua`).

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::{InfoKind, Value};
use tokio::sync::Mutex;

use crate::digest;
use crate::redis::{Caller, Redis, RedisError};

const STREAM: &str = include_str!("lua/stream.lua");
const RUN: &str = include_str!("lua/run.lua");
/// Times that loading is begun again because the server changed meanwhile.
const LOADS_MAX: usize = 3;

/// Scripts that are called by hash.
#[derive(Clone, Copy, Debug)]
pub(super) enum Script {
    Write,
    Members,
    Read,
    Check,
}

const BODIES: [&str; 4] = [
    include_str!("lua/write.lua"),
    include_str!("lua/members.lua"),
    include_str!("lua/read.lua"),
    include_str!("lua/check.lua"),
];

/// Why a script was not carried out, or why that is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScriptError {
    /// The server does not know it: nothing was done.
    #[error("the scripts are not loaded")]
    NotLoaded,
    #[error(transparent)]
    Redis(#[from] RedisError),
}

#[derive(Debug)]
struct Loaded {
    run: String,
    hashes: [String; BODIES.len()],
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Scripts {
    run_key: String,
    /// Redis Cluster has its own pub/sub command.
    publish: &'static str,
    loaded: ArcSwapOption<Loaded>,
    loading: Mutex<()>,
}

impl Scripts {
    pub(super) fn new(prefix: &str, clustered: bool) -> Self {
        Self {
            run_key: format!("{prefix}:{{run}}"),
            publish: if clustered { "SPUBLISH" } else { "PUBLISH" },
            loaded: ArcSwapOption::empty(),
            loading: Mutex::default(),
        }
    }

    /// They must be loaded anew before the next call.
    pub(super) fn forget(&self) {
        self.loaded.store(None);
    }

    /// Calls one. It is sent when the future is first polled.
    pub(super) async fn call(
        &self,
        redis: &Redis,
        script: Script,
        (keys, arguments): (Vec<String>, Vec<Value>),
    ) -> Result<Value, ScriptError> {
        let Some(loaded) = self.loaded.load_full() else { return Err(ScriptError::NotLoaded) };
        let hash = loaded.hashes[script as usize].clone();
        let evaluate = async |client: Caller| client.evalsha(hash, keys, arguments).await;
        let answer = redis.call_on_keys(evaluate).await;
        match answer {
            Err(RedisError::NoScript) => {
                self.forget();
                Err(ScriptError::NotLoaded)
            }
            Err(error) => {
                if matches!(error, RedisError::Failed(_)) && !error.is_refusal() {
                    // Perhaps another server answers now.
                    self.forget();
                }
                Err(error.into())
            }
            Ok(answer) => Ok(answer),
        }
    }

    /// As [`Self::call`], and loads the scripts when the server does not know them.
    pub(super) async fn call_loaded(
        &self,
        redis: &Redis,
        script: Script,
        parts: impl Fn() -> (Vec<String>, Vec<Value>) + Send,
    ) -> Result<Value, ScriptError> {
        match self.call(redis, script, parts()).await {
            Err(ScriptError::NotLoaded) => {
                self.load(redis).await?;
                self.call(redis, script, parts()).await
            }
            answer => answer,
        }
    }

    /// Loads the scripts for the server's run, unless somebody else has just done it.
    pub(super) async fn load(&self, redis: &Redis) -> Result<(), RedisError> {
        let _only_one = self.loading.lock().await;
        if self.loaded.load().is_some() {
            return Ok(());
        }
        let mut server = identity(redis).await?;
        for _ in 0..LOADS_MAX {
            let loaded = self.load_for(redis, &server).await?;
            let now = identity(redis).await?;
            if now == server {
                tracing::info!(
                    category = "system",
                    event = "redis_scripts_loaded",
                    run = loaded.run
                );
                self.loaded.store(Some(Arc::new(loaded)));
                return Ok(());
            }
            server = now;
        }
        Err(RedisError::Changing)
    }

    /// The name of the server's run.
    async fn run(&self, redis: &Redis, server: &str) -> Result<String, RedisError> {
        let (key, server) = (self.run_key.clone(), server.to_owned());
        redis.call(async |client| client.eval(RUN, vec![key], vec![server]).await).await
    }

    /// Scripts of a run that goes by another name now, because its key was lost, are loaded anew: two nodes with two names
    /// would begin every stream anew in turns.
    pub(super) async fn verify(&self, redis: &Redis) -> Result<(), RedisError> {
        let Some(loaded) = self.loaded.load_full() else { return Ok(()) };
        let server = identity(redis).await?;
        if self.run(redis, &server).await? != loaded.run {
            self.forget();
        }
        Ok(())
    }

    async fn load_for(&self, redis: &Redis, server: &str) -> Result<Loaded, RedisError> {
        let run = self.run(redis, server).await?;
        let mut hashes = [const { String::new() }; BODIES.len()];
        for (hash, body) in hashes.iter_mut().zip(BODIES) {
            let text = format!(
                "local RUN = '{run}'\nlocal PUBLISH = '{}'\n{STREAM}\n{body}",
                self.publish
            );
            *hash = redis.script_load(text).await?;
        }
        Ok(Loaded { run, hashes })
    }
}

/// Which processes answer: a digest of the run ids of all masters.
async fn identity(redis: &Redis) -> Result<String, RedisError> {
    let masters = redis.masters();
    if masters.is_empty() {
        let text: String =
            redis.call(async |client| client.info(Some(InfoKind::Server)).await).await?;
        return Ok(digest(&run_id(&text)));
    }
    let mut ids = Vec::with_capacity(masters.len());
    for master in masters {
        let text: String = redis
            .call_on(Some(master), async |client| client.info(Some(InfoKind::Server)).await)
            .await?;
        ids.push(run_id(&text));
    }
    ids.sort_unstable();
    Ok(digest(&ids.join("+")))
}

fn run_id(info: &str) -> String {
    let line = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    line.unwrap_or_default().trim().to_owned()
}

fn digest(ids: &str) -> String {
    format!("{:016x}", digest::number(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_is_read_from_the_servers_own_words() {
        assert_eq!(
            run_id("# Server\r\nredis_version:7.0.15\r\nrun_id:0a1b2c\r\nx:1\r\n"),
            "0a1b2c"
        );
        assert_eq!(run_id(""), "");
        assert_eq!(digest("a").len(), 16);
        assert_ne!(digest("a"), digest("b"));
    }
}
