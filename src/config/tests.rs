//! The whole way from sources to a configuration, and the files that must fit the code.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;

use super::*;
use crate::config::sections::{Algorithm, Size};

/// Variables that make a production node complete without TLS.
const PRODUCTION: &[(&str, &str)] = &[
    ("ENVIRONMENT", "production"),
    ("ENABLE_SSL", "false"),
    ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
    ("API_KEY", "0123456789abcdef"),
];

fn sources(variables: &[(&str, &str)]) -> Sources {
    Sources {
        variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        host: "host-1".to_owned(),
        ..Sources::default()
    }
}

fn with(base: &[(&str, &str)], more: &[(&str, &str)]) -> Sources {
    let kept = base.iter().filter(|(name, _)| !more.iter().any(|(other, _)| other == name));
    sources(&kept.chain(more).copied().collect::<Vec<_>>())
}

fn set(mut sources: Sources, assignments: &[(&str, &str)]) -> Sources {
    sources.flags.extend(assignments.iter().map(|(key, text)| FlagValue {
        key: (*key).to_owned(),
        text: (*text).to_owned(),
        flag: "--set".to_owned(),
    }));
    sources
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn from_file(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let file = file(text);
    Config::load(&Sources { files: vec![file.path().to_owned()], ..sources(variables) })
}

fn config(sources: &Sources) -> Config {
    Config::load(sources).unwrap_or_else(|errors| panic!("{errors}")).config
}

/// Exactly the expected errors must be found; the line of each must hold all words of its entry.
fn check_errors(result: Result<Loaded, ConfigErrors>, expected: &[&[&str]]) {
    let errors = result.expect_err("must be refused");
    let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    for words in expected {
        assert!(
            lines.iter().any(|line| words.iter().all(|word| line.contains(word))),
            "{words:?} not in\n{}",
            lines.join("\n")
        );
    }
    assert_eq!(lines.len(), expected.len(), "{}", lines.join("\n"));
}

#[test]
fn nothing_given_is_a_development_node() {
    let config = config(&sources(&[]));
    assert!(config.is_development());
    assert_eq!(config.node.name, "host-1");
    assert_eq!(config.listen.public, vec!["127.0.0.1:8080".parse().unwrap()]);
    assert!(!config.tls.enabled);
    assert_eq!(config.api_keys[0].key.expose(), DEVELOPMENT_API_KEY);
    assert!(
        matches!(&config.token_keys[..], [TokenKey::Secret { algorithm: Algorithm::Hs256, secret }]
        if secret.expose() == DEVELOPMENT_JWT_SECRET.as_bytes())
    );
}

#[test]
fn every_environment_and_size_is_consistent() {
    for environment in Environment::NAMES {
        for (size, connections) in Size::NAMES.iter().zip([100, 1_000, 5_000, 10_000]) {
            let more = [("ENVIRONMENT", *environment), ("DEPLOYMENT_SIZE", *size)];
            let config = config(&with(&PRODUCTION[1..], &more));
            assert_eq!(config.limits.connections_max, connections);
            assert_eq!(config.node.environment.as_str(), *environment);
        }
    }
}

#[test]
fn tiers_of_the_contract() {
    let of = |size| config(&sources(&[("DEPLOYMENT_SIZE", size)]));
    let check = |size, workers, queue, mailbox, cache, interval| {
        let config = of(size);
        assert_eq!(config.control.workers, workers);
        assert_eq!(config.engine.mailbox_messages_max, queue);
        assert_eq!(config.engine.mailbox_messages(), mailbox);
        assert_eq!(config.cache.memory_max_mb, cache);
        assert_eq!(config.health.interval.as_secs(), interval);
    };
    check("small", 5, 1_000, 1_000, 128, 60);
    check("medium", 20, 50_000, 50_000, 512, 30);
    check("large", 50, 100_000, 65_536, 1_024, 15);
    check("enterprise", 100, 500_000, 65_536, 2_048, 10);
    assert_eq!(of("medium").cache.history_bytes_per_shard(4), (512 << 20) / 100 * 90 / 4);
    assert_eq!(of("medium").cache.store_bytes(), (512 << 20) / 100 * 10);
}

#[test]
fn each_layer_lies_above_the_one_before() {
    let origin = |sources: &Sources| {
        let loaded = Config::load(sources).unwrap();
        let rows = loaded.rows();
        let (_, value, origin) = rows.iter().find(|row| row.0 == "cache.memory_max_mb").unwrap();
        (value.clone(), origin.clone())
    };
    let mut layered = sources(&[]);
    assert_eq!(origin(&layered), ("128".to_owned(), "default of size small".to_owned()));
    let (first, second) =
        (file("\n[cache]\nmemory_max_mb = 200\n"), file("cache.memory_max_mb = 201"));
    layered.files.push(first.path().to_owned());
    assert_eq!(origin(&layered), ("200".to_owned(), format!("{}:3", first.path().display())));
    layered.files.push(second.path().to_owned());
    assert_eq!(origin(&layered), ("201".to_owned(), format!("{}:1", second.path().display())));
    layered.variables.push(("CACHE_MAX_MEMORY_MB".to_owned(), "202".to_owned()));
    assert_eq!(
        origin(&layered),
        ("202".to_owned(), "environment variable CACHE_MAX_MEMORY_MB".to_owned())
    );
    layered.variables.push(("ARCHMESH__CACHE__MEMORY_MAX_MB".to_owned(), "203".to_owned()));
    assert_eq!(
        origin(&layered),
        ("203".to_owned(), "environment variable ARCHMESH__CACHE__MEMORY_MAX_MB".to_owned())
    );
    let layered = set(layered, &[("cache.memory_max_mb", "204")]);
    assert_eq!(origin(&layered), ("204".to_owned(), "flag --set".to_owned()));
}

#[test]
fn all_errors_come_at_once_and_say_where() {
    let text = "[limits]\nauth_timeout = 5\nconections_max = 3\nheaders_max = \"100\"\n\n[engine]\nreceive_buffers = 100\n\
                balance = \"fair\"\n[[namespaces]]\nname = \"a b\"\n[[namespaces]]\nsubscribe = \"anyone\"\n";
    let variables = [
        ("ARCHMESH__LIMITS__FRAGMENTS_MAX", "0"),
        ("ARCHMESH__NO__SUCH", "secret-thing"),
        ("ENABLE_SSL", "perhaps"),
        ("ARCHMESH__HEARTBEAT__PONG_TIMEOUT", "31s"),
    ];
    let errors = from_file(text, &variables);
    assert!(!errors.as_ref().unwrap_err().to_string().contains("secret-thing"));
    check_errors(
        errors,
        &[
            &["limits.auth_timeout = 5", ":2)", "has no unit", "100ms to 2m"],
            &[
                "limits.conections_max",
                ":3)",
                "is not a key",
                "did you mean limits.connections_max?",
            ],
            &["limits.headers_max = \"100\"", ":4)", "whole number from 8 to 256"],
            &["engine.receive_buffers = 100", ":7)", "power of two"],
            &["engine.balance = \"fair\"", ":8)", "one of kernel, round_robin"],
            &["namespaces.name = \"a b\"", ":9)", "is not a name"],
            &["namespaces.name", ":11)", "is missing"],
            &[
                "limits.fragments_max",
                "variable ARCHMESH__LIMITS__FRAGMENTS_MAX",
                "from 1 to 1048576",
            ],
            &["no.such", "variable ARCHMESH__NO__SUCH", "is not a key"],
            &["tls.enabled", "perhaps", "variable ENABLE_SSL", "true or false"],
            &["heartbeat.pong_timeout = \"31s\"", "is longer than heartbeat.ping_interval"],
        ],
    );
}

#[test]
fn former_keys_name_those_that_took_their_place() {
    check_errors(
        from_file("[delivery]\nallow_insecure = true\n", &[]),
        &[&[
            "delivery.allow_insecure",
            ":2)",
            "is not a key",
            "webhook.allow_insecure",
            "web_push.allow_insecure",
        ]],
    );
    let keys = ["webhook.allow_insecure", "web_push.allow_insecure"];
    for key in keys {
        let on = Config::load(&set(sources(&[]), &[(key, "true")])).unwrap().config;
        let allowed = [on.webhook.allow_insecure, on.web_push.allow_insecure];
        assert_eq!(allowed, keys.map(|known| known == key), "neither of them opens the other");
    }
}

#[test]
fn broken_and_missing_files() {
    check_errors(
        from_file("[limits]\nx = = 1\n", &[("ENABLE_SSL", "true")]),
        &[&["TOML", ":2)", "extra `=`"], &["TOML", ":2)", "expected newline"]],
    );
    let missing = Sources { files: vec!["/no/such/file.toml".into()], ..sources(&[]) };
    check_errors(Config::load(&missing), &[&["/no/such/file.toml", "cannot be read"]]);
    check_errors(
        from_file("namespaces = 3\n[api]\nkeys = [1]\n", &[]),
        &[&["namespaces", "[[namespaces]]"], &["api.keys", "[[api.keys]]"]],
    );
    check_errors(
        from_file("[[namespaces]]\nname = \"a\"\n[[namespaces]]\nname = \"a\"\n", &[]),
        &[&["namespaces.a", ":3)", "twice"]],
    );
}

#[test]
fn a_value_hidden_by_a_higher_layer_is_checked_too() {
    let variables = [("ARCHMESH__LIMITS__HEADERS_MAX", "50")];
    check_errors(
        from_file("limits.headers_max = 7", &variables),
        &[&["limits.headers_max = 7", ":1)"]],
    );
}

#[test]
fn secrets_are_shown_nowhere() {
    let variables = with(PRODUCTION, &[("ARCHMESH__AUTH__CHANNEL_TOKEN_SECRET", "short-one")]);
    let text = Config::load(&variables).unwrap_err().to_string();
    assert!(text.contains("auth.channel_token_secret") && !text.contains("short-one"), "{text}");
    let loaded = Config::load(&sources(PRODUCTION)).unwrap();
    let mut shown = format!("{loaded:?}");
    for format in [Format::Table, Format::Toml, Format::Json] {
        shown += &loaded.print(format);
    }
    assert!(shown.contains("[redacted]"));
    assert!(!shown.contains("0123456789abcdef"), "{shown}");
    let wrong = from_file("[auth]\nsecret = 123456789\n", &[]).unwrap_err().to_string();
    assert!(wrong.contains("[redacted]") && !wrong.contains("123456789"), "{wrong}");
}

#[test]
fn misspelt_services_are_refused_not_ignored() {
    check_errors(
        Config::load(&sources(&[("REDIS_HOTS", "r"), ("DB_HOTS", "d"), ("DB_NAME", "")])),
        &[
            &["REDIS_HOTS", "is not a variable", "unset REDIS_HOTS"],
            &["DB_HOTS", "is not a variable", "unset DB_HOTS"],
        ],
    );
    config(&sources(&[
        ("REDIS_SERVICE_HOST", "10.0.0.1"),
        ("REDIS_PORT", "tcp://10.0.0.1:6379"),
        ("REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
    ]));
    let redis = config(&sources(&[("REDIS_HOST", "r"), ("REDIS_PASSWORD", "p")])).redis.url;
    assert_eq!(redis.unwrap().expose(), "redis://:p@r:6379/0");
}

#[test]
fn host_and_port() {
    let check = |variables: &[(&str, &str)], expected: &str| {
        assert_eq!(
            config(&sources(variables)).listen.public,
            vec![expected.parse().unwrap()],
            "{variables:?}"
        );
    };
    check(&[("PORT", "9001")], "127.0.0.1:9001");
    check(&[("HOST", "localhost")], "127.0.0.1:8080");
    check(&[("HOST", "::1"), ("PORT", "1")], "[::1]:1");
    check(&[("PORT", "1"), ("ARCHMESH__LISTEN__PUBLIC", "127.0.0.1:2")], "127.0.0.1:2");
    let production = config(&with(PRODUCTION, &[("PORT", "9001")]));
    assert_eq!(production.listen.public, vec!["0.0.0.0:9001".parse().unwrap()]);
    let above_a_file = from_file("listen.public = [\"127.0.0.9:1\"]", &[("PORT", "2")]).unwrap();
    assert_eq!(above_a_file.config.listen.public, vec!["127.0.0.9:2".parse().unwrap()]);
    check_errors(
        Config::load(&sources(&[("PORT", "x"), ("HOST", "web")])),
        &[
            &["listen.public = \"x\"", "variable PORT"],
            &["listen.public = \"web\"", "variable HOST"],
        ],
    );
}

#[test]
fn webhooks_have_defaults_and_are_checked() {
    let good = "[[webhooks]]\nname = \"app\"\nurl = \"https://x.example\"\nsecrets = [\"whsec_a\"]\nevents = [\"connected\"]\n";
    let config = from_file(good, &[("ARCHMESH__WEBHOOKS__APP__BATCH_MAX", "7")]).unwrap().config;
    let (name, webhook) = &config.webhooks[0];
    assert_eq!((name.as_str(), webhook.batch_max, webhook.attempts_max), ("app", 7, 20));
    assert!(config.records(EventKind::Connected) && !config.records(EventKind::Message));
    let bad = "[[webhooks]]\nname = \"app\"\nretry_base = \"1h\"\nretry_max = \"1s\"\n\
               [[namespaces]]\nname = \"x\"\nwebhook_messages = true\n\
               [events]\nrecord = [\"channel_vacated\"]\n";
    check_errors(
        from_file(bad, &[]),
        &[
            &["events.channels", "chat:"],
            &["namespaces.x.webhook_messages", "message"],
            &["webhooks.app.events"],
            &["webhooks.app.retry_base", "retry_max"],
            &["webhooks.app.secrets", "whsec_"],
            &["webhooks.app.url"],
        ],
    );
}

#[test]
fn namespaces_merge_field_by_field() {
    let first = file(
        "[[namespaces]]\nname = \"chat\"\nsubscribe = \"anyone\"\nhistory_size = 5\nhistory_ttl = \"1m\"\n",
    );
    let second = file(
        "[[namespaces]]\nname = \"chat\"\nhistory_size = 6\n[[namespaces]]\nname = \"bare\"\n",
    );
    let files = vec![first.path().to_owned(), second.path().to_owned()];
    let config =
        config(&Sources { files, ..sources(&[("ARCHMESH__NAMESPACES__SYSTEM__ECHO", "false")]) });
    let find = |name: &str| &config.namespaces.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!((find("chat").history_size, find("chat").history_ttl.as_secs()), (6, 60));
    assert_eq!(find("chat").subscribe, gateway_core::settings::Access::Anyone);
    assert!(!find("system").echo && find("system").recovery);
    assert_eq!(find("bare").history_size, 0);
    check_errors(
        from_file(
            "[[namespaces]]\nname = \"x\"\nrecovery = true\njoin_leave = true\nhistory_size = 1\n",
            &[],
        ),
        &[&["namespaces.x.history_size"], &["namespaces.x.recovery"], &["namespaces.x.join_leave"]],
    );
}

#[test]
fn production_needs_certificate_and_keys() {
    check_errors(
        Config::load(&sources(&[("ENVIRONMENT", "production")])),
        &[
            &["tls.certificate_path", "SSL_CERT_PATH"],
            &["tls.key_path", "SSL_KEY_PATH"],
            &["auth.secret", "JWT_SECRET"],
            &["api.keys", "API_KEY"],
        ],
    );
    check_errors(
        Config::load(&with(PRODUCTION, &[("JWT_SECRET", ""), ("API_KEY", "short")])),
        &[&["auth.secret"], &["api.keys.env.key", "16 bytes"]],
    );
}

#[test]
fn what_is_for_development_only() {
    check_errors(
        Config::load(&sources(&[("HOST", "0.0.0.0")])),
        &[&["auth.secret", "loopback"], &["api.keys.development.key", "loopback"]],
    );
    config(&with(&PRODUCTION[2..], &[("HOST", "0.0.0.0")]));
    let switches = [
        ("ARCHMESH__DIAGNOSTICS__FAULT_INJECTION", "true"),
        ("ARCHMESH__DIAGNOSTICS__ECHO_PATH", "/echo"),
        ("ALLOWED_ORIGINS", "*"),
    ];
    config(&sources(&switches));
    check_errors(
        Config::load(&with(PRODUCTION, &switches)),
        &[&["diagnostics.fault_injection"], &["diagnostics.echo_path"], &["websocket.origins"]],
    );
}

#[test]
fn token_keys() {
    let key = file("-----BEGIN PUBLIC KEY-----\n");
    let path = key.path().to_str().unwrap();
    let secret = file("0123456789abcdef0123456789abcdef\n");
    let keys = |variables: &[(&str, &str)]| config(&sources(variables)).token_keys;
    assert!(matches!(
        &keys(&[("JWT_PUBLIC_KEY_PATH", path), ("JWT_ALGORITHM", "ES256")])[..],
        [TokenKey::PublicKey { algorithm: Algorithm::Es256, .. }]
    ));
    assert!(matches!(&keys(&[("JWT_JWKS_URL", "https://a/b")])[..], [TokenKey::JwksUrl(_)]));
    let path_of_secret = secret.path().to_str().unwrap();
    assert!(matches!(&keys(&[("ARCHMESH__AUTH__SECRET_FILE", path_of_secret)])[..],
        [TokenKey::Secret { secret, .. }] if secret.expose() == b"0123456789abcdef0123456789abcdef"));
    let refused = |variables: &[(&str, &str)], word: &str| {
        check_errors(Config::load(&sources(variables)), &[&[word]]);
    };
    refused(&[("JWT_PUBLIC_KEY_PATH", path)], "auth.algorithm");
    refused(&[("JWT_PUBLIC_KEY_PATH", path), ("JWT_ALGORITHM", "HS256")], "auth.algorithm");
    refused(&[("JWT_PUBLIC_KEY_PATH", "/no/key"), ("JWT_ALGORITHM", "ES256")], "cannot be read");
    refused(&[("JWT_SECRET", "tooshort")], "32 bytes");
    refused(&[("JWT_SECRET", &"x".repeat(48)), ("JWT_ALGORITHM", "HS512")], "64 bytes");
    refused(&[("JWT_ALGORITHM", "none")], "is none of the choices");
    let plain = with(PRODUCTION, &[("JWT_JWKS_URL", "http://127.0.0.1.example.com/keys")]);
    check_errors(Config::load(&plain), &[&["auth.jwks_url", "https"]]);
    config(&with(PRODUCTION, &[("JWT_JWKS_URL", "http://127.0.0.1:99/keys")]));
}

#[test]
fn api_keys() {
    let check = |text: &str, words: &[&str]| check_errors(from_file(text, &[]), &[words]);
    check("[[api.keys]]\nname = \"a\"\n", &["api.keys.a", ":1)", "has no key"]);
    check("[[api.keys]]\nname = \"a\"\nkey = \"x\"\nkey_file = \"/y\"\n", &["api.keys.a", "both"]);
    check(
        "[[api.keys]]\nname = \"a\"\nkey_file = \"/no/file\"\n",
        &["api.keys.a.key_file", ":3)", "/no/file"],
    );
    check(
        "[[api.keys]]\nname = \"a\"\nkey = \"x\"\n[[api.keys]]\nname = \"b\"\nkey = \"x\"\n",
        &["api.keys.b", "same key as a"],
    );
    let off = config(&with(&PRODUCTION[..3], &[("ARCHMESH__API__ENABLED", "false")]));
    assert!(off.api_keys.is_empty());
}

#[test]
fn combinations_that_cannot_work() {
    let check = |assignments: &[(&str, &str)], word: &str| {
        check_errors(Config::load(&set(sources(&[]), assignments)), &[&[word]]);
    };
    check(&[("engine.balance", "weighted_round_robin")], "engine.weights");
    check(&[("engine.weights", "1,2")], "engine.weights");
    check(&[("engine.shards", "2"), ("engine.cpus", "0")], "engine.cpus");
    check(&[("engine.shards", "2"), ("engine.cpus", "1,1")], "engine.cpus");
    check(
        &[("engine.receive_turn_bytes_max", "4KiB"), ("engine.receive_buffer_bytes", "8KiB")],
        "one receive buffer",
    );
    check(
        &[("engine.stall_threshold", "2s"), ("engine.watchdog_timeout", "2s")],
        "engine.stall_threshold",
    );
    check(&[("heartbeat.idle_timeout", "30s")], "heartbeat.idle_timeout");
    check(&[("limits.auth_timeout", "1s")], "limits.auth_timeout");
    check(&[("limits.message_bytes_max", "2MiB")], "outbox.connection_bytes_max");
    check(&[("channels.recovery_bytes_max", "2MiB")], "outbox.connection_bytes_max");
    check(&[("outbox.shard_bytes_max", "1MiB")], "outbox.shard_bytes_max");
    check(&[("large_data.chunk_bytes_max", "1MiB")], "large_data.chunk_bytes_max");
    check(&[("large_data.connection_bytes_max", "1GiB")], "large_data.shard_bytes_max");
    check(&[("drain.connections_per_second", "1")], "drain.connections_per_second");
    check(&[("diagnostics.echo_path", "/ws")], "diagnostics.echo_path");
    check(&[("websocket.path", "/metrics")], "websocket.path");
    check(&[("websocket.origins", "*,https://a.b")], "websocket.origins");
    check(&[("listen.internal", "127.0.0.1:8080")], "listen.internal");
    check(&[("listen.agent", "127.0.0.1:8080")], "listen.agent");
    check(
        &[("auth.jwks_file", file!()), ("auth.jwks_url", "https://a/b")],
        "excludes auth.jwks_file",
    );
}

#[test]
fn empty_unsets_what_may_be_unset() {
    let internal = "listen.internal = \"127.0.0.1:9000\"";
    assert!(from_file(internal, &[]).unwrap().config.listen.internal.is_some());
    let unset = from_file(internal, &[("ARCHMESH__LISTEN__INTERNAL", "")]).unwrap();
    assert_eq!(unset.config.listen.internal, None);
    check_errors(
        Config::load(&set(sources(&[]), &[("log.level", "")])),
        &[&["log.level", "is empty"]],
    );
}

#[test]
fn only_restart_keys_are_named() {
    let old = config(&sources(&[]));
    assert!(restart_only_changes(&old, &old.clone()).is_empty());
    let changed = [
        ("limits.headers_max", "50"),
        ("engine.shards", "3"),
        ("listen.internal", "127.0.0.1:9000"),
    ];
    let new = config(&set(sources(&[]), &changed));
    assert_eq!(restart_only_changes(&old, &new), ["listen.internal", "engine.shards"]);
}

#[test]
fn a_reload_reads_the_files_again() {
    let mut file = file("limits.headers_max = 50\n");
    let sources = Sources { files: vec![file.path().to_owned()], ..sources(&[]) };
    let loaded = Config::load(&sources).unwrap();
    file.write_all(b"limits.fragments_max = 5\n").unwrap();
    assert_eq!(loaded.reload().unwrap().config.limits.fragments_max, 5);
    file.write_all(b"nonsense\n").unwrap();
    assert!(loaded.reload().is_err());
}

#[test]
fn a_printed_file_gives_the_same_values() {
    let variables =
        with(PRODUCTION, &[("DEPLOYMENT_SIZE", "large"), ("ALLOWED_ORIGINS", "https://a.b")]);
    let printed = Config::load(&variables).unwrap().print(Format::Toml);
    let again =
        from_file(&printed, PRODUCTION).unwrap_or_else(|errors| panic!("{errors}\n{printed}"));
    assert_eq!(printed.lines().count(), again.print(Format::Toml).lines().count());
    assert!(
        again.config.limits.connections_max == 5_000
            && again.config.websocket.origins == ["https://a.b"]
    );
}

#[test]
fn the_documented_defaults_name_every_key() {
    for section in sections::ALL.iter().filter(|section| !section.name.ends_with(".*")) {
        let (_, rest) =
            load::DEFAULTS.split_once(&format!("\n[{}]\n", section.name)).expect(section.name);
        let block = rest.split("\n[").next().unwrap();
        for key in section.keys {
            let line = format!("{} = ", key.field);
            let named = block.lines().any(|text| text.trim_start_matches("# ").starts_with(&line));
            assert!(named, "{} is not in config/gateway.toml", key.path);
            let set = block.lines().any(|text| text.starts_with(&line));
            assert!(set != key.optional || key.path == "node.name", "{}", key.path);
        }
    }
}

#[test]
fn the_committed_documentation_is_that_of_the_code() {
    let committed = include_str!("../../docs/configuration.md");
    assert!(committed == docs::document(), "run `archmesh config docs > docs/configuration.md`");
}

#[test]
fn the_files_for_development_and_production_are_valid() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let development = Sources { files: vec![directory.join("dev.toml")], ..sources(&[]) };
    assert!(config(&development).namespaces.iter().any(|(name, _)| name == "chat"));
    let content = file("0123456789abcdef0123456789abcdef");
    let path = content.path().to_str().unwrap();
    let production = Sources { files: vec![directory.join("production.toml")], ..sources(&[]) };
    check_errors(
        Config::load(&production),
        &[
            &["tls.certificate_path", "production.toml:"],
            &["tls.key_path", "production.toml:"],
            &["api.keys.backend.key_file", "production.toml:"],
        ],
    );
    let paths = [
        ("tls.certificate_path", path),
        ("tls.key_path", path),
        ("api.keys.backend.key_file", path),
    ];
    assert_eq!(config(&set(production, &paths)).limits.connections_max, 1_000);
}

#[test]
fn delivery_channels_that_cannot_work() {
    let check = |assignments: &[(&str, &str)], words: &[&str]| {
        check_errors(Config::load(&set(sources(&[]), assignments)), &[words]);
    };
    check(&[("webhook.sms", "true")], &["webhook.sms", "there is no webhook", "webhook.url"]);
    check(&[("email.host", "mail.example.com")], &["email.from", "is not set", "unset email.host"]);
    let mail = [("email.host", "mail.example.com"), ("email.security", "none")];
    check(&[mail[0], mail[1], ("email.from", "nobody")], &["email.host", "the sender of mails"]);
    check(&[("webhook.url", "https://a.example/")], &["webhook.secrets", "is empty", "openssl"]);
    let hook = [("webhook.url", "https://a.example/"), ("webhook.secrets", "short")];
    check(&hook, &["webhook.url", "whsec_"]);
    let plain = ("webhook.url", "http://a.example/");
    check(&[plain, ("webhook.secrets", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")], &["https"]);
    let half = [("web_push.private_key", "x"), ("web_push.contact", "mailto:a@example.com")];
    check(&half, &["web_push.public_key", "archmesh vapid"]);
    let pair = [half[0], half[1], ("web_push.public_key", "y")];
    check(&pair, &["web_push.private_key", "the VAPID key pair"]);
    let wrong = ("notifications.default_preferences", "{");
    check(&[wrong], &["notifications.default_preferences", "cannot be used"]);
    let off = [wrong, ("webhook.sms", "true"), ("notifications.enabled", "false")];
    assert!(Config::load(&set(sources(&[]), &off)).is_ok(), "nothing of it is used");
}

#[test]
fn an_item_is_no_larger_than_a_message() {
    let sizes = |text: &str, metadata: &str| {
        let sizes = [
            ("limits.message_bytes_max", "128KiB"),
            ("large_data.chunk_bytes_max", "64KiB"),
            ("notifications.text_bytes_max", text),
            ("notifications.metadata_bytes_max", metadata),
        ];
        Config::load(&set(sources(&[]), &sizes))
    };
    assert!(sizes("64KiB", "60KiB").is_ok());
    check_errors(
        sizes("64KiB", "61KiB"),
        &[&["notifications.metadata_bytes_max", "limits.message_bytes_max", "lower one of them"]],
    );
}
