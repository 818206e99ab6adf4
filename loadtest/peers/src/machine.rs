//! What a run was made on: the machine and the versions of the servers.

use std::fs;
use std::process::Command;

use crate::subject::{Kind, Places, Subject};

/// Kernel, processor, cores and memory in one phrase.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kib = field(&memory, "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
    format!(
        "Linux {}, {cores} cores of {}, {} GiB, loopback",
        read("/proc/sys/kernel/osrelease").trim(),
        field(&cpu, "model name"),
        (kib + (1 << 19)) >> 20
    )
}

/// Version of a server, empty when it does not say.
pub fn version(subject: &Subject, places: &Places) -> String {
    match subject.kind {
        Kind::Gateway => says(Command::new(&subject.binary).arg("--version"))
            .rsplit(' ')
            .next()
            .unwrap_or_default()
            .to_owned(),
        Kind::Bun => npm(places, "bun"),
        Kind::Uws => npm(places, "@btc-vision/uwebsockets.js"),
        Kind::Ws => format!(
            "{} on Node.js {}",
            npm(places, "ws"),
            says(Command::new("node").arg("--version"))
        ),
        Kind::Socketify => pip(places, "socketify"),
        Kind::Fastapi => format!("{}, uvicorn {}", pip(places, "fastapi"), pip(places, "uvicorn")),
        Kind::Nchan => package_version(places),
        Kind::Tungstenite => locked("tokio-tungstenite"),
        Kind::Raw => String::new(),
    }
}

fn says(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

fn npm(places: &Places, package: &str) -> String {
    let path = places.cache.join("npm/node_modules").join(package).join("package.json");
    let text = fs::read_to_string(path).unwrap_or_default();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    manifest["version"].as_str().unwrap_or_default().to_owned()
}

fn pip(places: &Places, package: &str) -> String {
    let code = format!("import importlib.metadata as m; print(m.version({package:?}))");
    says(Command::new(places.cache.join("venv/bin/python")).args(["-c", &code]))
}

/// Debian's version of nchan, from the change log of the unpacked package.
fn package_version(places: &Places) -> String {
    let folder = places.cache.join("debian/usr/share/doc/libnginx-mod-nchan");
    let log = folder.join("changelog.Debian.gz");
    let text = says(Command::new("zcat").arg(log));
    let between = text.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    between.map(|(version, _)| version.to_owned()).unwrap_or_default()
}

/// Version in Cargo.lock.
fn locked(package: &str) -> String {
    let text = fs::read_to_string("Cargo.lock").unwrap_or_default();
    let start = format!("name = \"{package}\"\nversion = \"");
    let rest = text.split_once(&start).map(|(_, rest)| rest);
    rest.and_then(|rest| rest.split_once('"'))
        .map(|(version, _)| version.to_owned())
        .unwrap_or_default()
}
