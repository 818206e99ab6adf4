//! The servers that are compared: how each is started, what it can do, and how a client of it talks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gateway_core::auth::{KeyAlgorithm, SigningKey, mint};
use serde_json::{Value, json};

use crate::frame::{TEXT, from_client};
use crate::swarm::Dialogue;

/// The built-in token secret of the development environment; known to everybody.
const SECRET: &str = "archmesh-development-secret-known-to-everybody-never-use-it-anywhere-else";
/// Far in the future: tokens of a benchmark must not expire during it.
const EXPIRES_AT: u64 = 4_000_000_000;

/// Kinds of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The gateway of this repository.
    Gateway,
    /// `Bun.serve` with publish and subscribe.
    Bun,
    /// uWebSockets.js, a build from npm.
    Uws,
    /// uWebSockets through Python, whose package carries the library.
    Socketify,
    /// tokio-tungstenite, `peer-tungstenite` of this crate.
    Tungstenite,
    /// npm `ws`.
    Ws,
    /// nginx with nchan.
    Nchan,
    /// FastAPI under uvicorn.
    Fastapi,
    /// `peer-raw` of this crate: the limit of the machine.
    Raw,
}

/// A server to measure.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Name in tables and for `--only`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The gateway's binary.
    pub binary: PathBuf,
}

/// How a server is to be set up for a measure.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// TLS with the certificate of the harness.
    pub tls: bool,
    /// permessage-deflate offered and used.
    pub deflate: bool,
    /// Shards of the gateway, pinned to the first cores; 0 = one on the core of servers.
    pub shards: u8,
    /// The gateway's shards are chosen by the client's address instead of in turn.
    pub by_address: bool,
    /// Namespace of the gateway's channels.
    pub namespace: &'static str,
}

impl Setup {
    /// Plain TCP, no compression, one core, no history.
    pub fn plain() -> Self {
        Self { namespace: "plain", ..Self::default() }
    }
}

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// `.cache/peers`: what `scripts/deps-peers.sh` installed.
    pub cache: PathBuf,
    /// `loadtest/peers/servers`.
    pub servers: PathBuf,
    /// Folder of the binaries of this crate.
    pub binaries: PathBuf,
}

impl Places {
    /// Certificate of the harness.
    pub fn certificate(&self) -> PathBuf {
        self.cache.join("certificate.pem")
    }

    /// Its key.
    pub fn key(&self) -> PathBuf {
        self.cache.join("key.pem")
    }

    fn bun(&self) -> Option<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(self.cache.join("npm/node_modules/@oven"))
            .ok()?
            .flatten()
            .map(|entry| entry.path().join("bin/bun"))
            .filter(|path| path.exists())
            .collect();
        found.sort();
        found.into_iter().next()
    }

    /// Folders of the libraries of unpacked Debian packages.
    fn libraries(&self) -> String {
        let folders =
            fs::read_dir(self.cache.join("debian/usr/lib")).into_iter().flatten().flatten();
        let folders: Vec<String> =
            folders.map(|folder| folder.path().display().to_string()).collect();
        folders.join(":")
    }

    fn nchan(&self) -> PathBuf {
        self.cache.join("debian/usr/lib/nginx/modules/ngx_nchan_module.so")
    }
}

/// Role of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Gets what is published.
    Subscriber,
    /// Publishes.
    Publisher,
    /// Gets back what it sends.
    Echo,
    /// Only connects, without credentials.
    Bare,
}

impl Subject {
    /// The subjects in the order of the tables; `gateways` are binaries, the second one with `-b` after its name.
    pub fn all(gateways: &[PathBuf]) -> Vec<Self> {
        let names = ["gateway", "gateway-b"];
        let gateways =
            gateways.iter().zip(names).map(|(path, name)| (name, Kind::Gateway, path.clone()));
        let peers = [
            ("bun", Kind::Bun),
            ("uwebsockets", Kind::Uws),
            ("socketify", Kind::Socketify),
            ("tungstenite", Kind::Tungstenite),
            ("ws", Kind::Ws),
            ("nchan", Kind::Nchan),
            ("fastapi", Kind::Fastapi),
            ("raw", Kind::Raw),
        ];
        let peers = peers.into_iter().map(|(name, kind)| (name, kind, PathBuf::new()));
        gateways
            .chain(peers)
            .map(|(name, kind, binary)| Self { name: name.to_owned(), kind, binary })
            .collect()
    }

    /// What the tables call it.
    pub fn title(kind: Kind) -> &'static str {
        match kind {
            Kind::Gateway => "archmesh-gateway",
            Kind::Bun => "Bun (uWebSockets inside)",
            Kind::Uws => "uWebSockets.js",
            Kind::Socketify => "uWebSockets from Python (socketify)",
            Kind::Tungstenite => "tokio-tungstenite",
            Kind::Ws => "Node.js ws",
            Kind::Nchan => "nginx + nchan",
            Kind::Fastapi => "FastAPI + uvicorn",
            Kind::Raw => "raw epoll (limit of the machine)",
        }
    }

    /// Why it cannot run here, if it cannot.
    pub fn missing(&self, places: &Places) -> Option<String> {
        let there = |path: &Path| path.exists();
        let ok = match self.kind {
            Kind::Gateway => there(&self.binary),
            Kind::Bun => places.bun().is_some(),
            Kind::Uws => loads(places, "@btc-vision/uwebsockets.js"),
            Kind::Ws => loads(places, "ws"),
            Kind::Nchan => there(&places.nchan()),
            Kind::Fastapi => there(&places.cache.join("venv/bin/uvicorn")),
            Kind::Socketify => succeeds(python(places).args(["-c", "import socketify"])),
            Kind::Tungstenite => there(&places.binaries.join("peer-tungstenite")),
            Kind::Raw => there(&places.binaries.join("peer-raw")),
        };
        (!ok).then(|| match self.kind {
            Kind::Gateway => format!("{} is not there", self.binary.display()),
            Kind::Tungstenite | Kind::Raw => "build the package gateway-peers".to_owned(),
            _ => "not installed or does not load here; see scripts/deps-peers.sh".to_owned(),
        })
    }

    /// The command that starts it on `port`.
    pub fn command(&self, places: &Places, setup: &Setup, port: u16) -> Result<Command, String> {
        let script = |name: &str| places.servers.join(name);
        let mut command = match self.kind {
            Kind::Gateway => self.gateway(places, setup, port),
            Kind::Bun => {
                let mut command = Command::new(places.bun().ok_or("bun is not installed")?);
                command.arg(script("bun.js"));
                command
            }
            Kind::Uws | Kind::Ws => {
                let mut command = Command::new("node");
                command.arg(script(if self.kind == Kind::Ws { "ws.js" } else { "uws.js" }));
                command.env("NODE_PATH", places.cache.join("npm/node_modules"));
                command
            }
            Kind::Socketify => {
                let mut command = python(places);
                command.arg(script("socketify_app.py"));
                command
            }
            Kind::Fastapi => {
                let mut command = Command::new(places.cache.join("venv/bin/uvicorn"));
                command.args(["fastapi_app:app", "--host", "127.0.0.1", "--log-level", "warning"]);
                command.args(["--backlog", "4096", "--port", &port.to_string()]);
                command.args(["--ws-per-message-deflate", "false"]);
                command.arg("--app-dir").arg(&places.servers);
                command
            }
            Kind::Nchan => nginx(places, port)?,
            Kind::Tungstenite => Command::new(places.binaries.join("peer-tungstenite")),
            Kind::Raw => Command::new(places.binaries.join("peer-raw")),
        };
        command.env("PORT", port.to_string()).env("NODE_ENV", "production");
        command.env("DEFLATE", if setup.deflate { "1" } else { "0" });
        if setup.tls {
            command.env("CERT", places.certificate()).env("KEY", places.key());
        }
        Ok(command)
    }

    fn gateway(&self, places: &Places, setup: &Setup, port: u16) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("serve").arg("--config").arg(places.servers.join("gateway.toml"));
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        if setup.shards > 0 {
            let cpus: Vec<String> = (0..setup.shards).map(|cpu| cpu.to_string()).collect();
            command.args(["--shards", &setup.shards.to_string()]);
            command.args(["--set", &format!("engine.cpus={}", cpus.join(","))]);
            let balance = if setup.by_address { "hash" } else { "round_robin" };
            command.args(["--set", &format!("engine.balance={balance}")]);
        }
        if setup.deflate {
            command.args(["--set", "websocket.compression=true"]);
        }
        if setup.tls {
            let (certificate, key) = (places.certificate(), places.key());
            command.args(["--set", "tls.enabled=true"]);
            command.args(["--set", &format!("tls.certificate_path={}", certificate.display())]);
            command.args(["--set", &format!("tls.key_path={}", key.display())]);
        }
        command
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn python(places: &Places) -> Command {
    let mut command = Command::new(places.cache.join("venv/bin/python"));
    command.env("LD_LIBRARY_PATH", places.libraries());
    command
}

fn loads(places: &Places, package: &str) -> bool {
    let mut node = Command::new("node");
    node.env("NODE_PATH", places.cache.join("npm/node_modules"));
    succeeds(node.args(["-e", &format!("require({package:?})")]))
}

fn nginx(places: &Places, port: u16) -> Result<Command, String> {
    let fault = |error: std::io::Error| format!("nginx.conf: {error}");
    let text = fs::read_to_string(places.servers.join("nginx.conf")).map_err(fault)?;
    let folder = places.cache.display().to_string();
    let text = text
        .replace("MODULE;", &format!("{};", places.nchan().display()))
        .replace("127.0.0.1:PORT", &format!("127.0.0.1:{port}"))
        .replace("FOLDER", &folder);
    let path = places.cache.join("nginx.conf");
    fs::write(&path, text).map_err(fault)?;
    let mut command = Command::new(places.cache.join("debian/usr/sbin/nginx"));
    command.env("LD_LIBRARY_PATH", places.libraries());
    command.arg("-c").arg(path).arg("-p").arg(&places.cache).args(["-e", "nginx-error.log"]);
    Ok(command)
}

/// Makes the messages of the clients of one kind of server.
#[derive(Debug)]
pub struct Talk {
    kind: Kind,
    key: SigningKey,
    deflate: bool,
    namespace: &'static str,
}

impl Talk {
    /// For a server of `kind` set up like `setup`.
    pub fn new(kind: Kind, setup: &Setup) -> Self {
        let key = SigningKey::from_secret(KeyAlgorithm::Hs256, SECRET.as_bytes());
        let key = key.expect("the secret is long enough");
        Self { kind, key, deflate: setup.deflate, namespace: setup.namespace }
    }

    fn upgrade(&self, path: &str, token: Option<&str>) -> Vec<u8> {
        let mut head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        if let Some(token) = token {
            head += "Authorization: Bearer ";
            head += token;
            head += "\r\n";
        }
        if self.deflate {
            head += "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        }
        head += "\r\n";
        head.into_bytes()
    }

    /// A token of its own for each number.
    pub fn token(&self, number: usize) -> String {
        let claims = json!({"sub": format!("user-{number}"), "exp": EXPIRES_AT});
        mint(&self.key, &claims).expect("HS256 signs any claims")
    }

    /// How a client of that role enters; `channel` matters for subscribers of the gateway only.
    pub fn dialogue(&self, role: Role, number: usize, channel: &str) -> Dialogue {
        if self.kind != Kind::Gateway {
            let (path, greetings) = match role {
                Role::Subscriber => ("/sub", u32::from(self.kind != Kind::Nchan)),
                Role::Publisher => ("/pub", 0),
                Role::Echo | Role::Bare => ("/echo", 0),
            };
            return Dialogue {
                request: self.upgrade(path, None),
                greetings,
                ..Dialogue::default()
            };
        }
        match role {
            Role::Echo => Dialogue { request: self.upgrade("/echo", None), ..Dialogue::default() },
            Role::Bare => Dialogue { request: self.upgrade("/ws", None), ..Dialogue::default() },
            Role::Publisher => self.member(&self.token(number), None),
            Role::Subscriber => self.member(&self.token(number), Some(channel)),
        }
    }

    /// A client of the gateway with this token, subscribed to `channel` when there is one.
    pub fn member(&self, token: &str, channel: Option<&str>) -> Dialogue {
        self.entering(token, channel.map(|channel| json!({"channel": self.channel(channel)})))
    }

    /// The same for a client that comes back and wants all that `channel` has kept.
    pub fn returning(&self, number: usize, channel: &str) -> Dialogue {
        let recover = json!({"offset": 0, "epoch": ""});
        let data = json!({"channel": self.channel(channel), "recover": recover});
        self.entering(&self.token(number), Some(data))
    }

    fn entering(&self, token: &str, subscribe: Option<Value>) -> Dialogue {
        let then = subscribe.map_or(Vec::new(), |data| {
            let command = json!({"type": "subscribe", "id": "1", "data": data});
            from_client(TEXT, command.to_string().as_bytes())
        });
        let request = self.upgrade("/ws", Some(token));
        Dialogue { request, greetings: 1, then, answers: 1 }
    }

    fn channel(&self, channel: &str) -> String {
        format!("{}:{channel}", self.namespace)
    }

    /// The frame that publishes `payload`, which is JSON.
    pub fn publication(&self, channel: &str, payload: &str) -> Vec<u8> {
        if self.kind != Kind::Gateway {
            return from_client(TEXT, payload.as_bytes());
        }
        let name = self.channel(channel);
        let text = format!(
            r#"{{"type":"publish","id":"1","data":{{"channel":"{name}","data":{payload}}}}}"#
        );
        from_client(TEXT, text.as_bytes())
    }
}
