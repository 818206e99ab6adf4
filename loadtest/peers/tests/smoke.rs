//! The harness end to end with the servers of this crate: a short fan-out and echo, whose deliveries it checks itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gateway_peers::limits::raise_descriptors;
use gateway_peers::measure::{Context, MEASURES};
use gateway_peers::subject::{Kind, Places, Subject};
use gateway_peers::tls;

fn check(kind: Kind, measure: &str) {
    raise_descriptors();
    let binaries = Path::new(env!("CARGO_BIN_EXE_peer-raw")).parent().expect("a folder");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{kind:?}-{measure}"));
    std::fs::create_dir_all(&cache).expect("a folder for logs");
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers");
    let places = Places { cache, servers, binaries: binaries.to_owned() };
    tls::prepare(&places).expect("a certificate");
    let context = Context {
        places,
        server_core: 0,
        seconds: Duration::from_millis(200),
        loadtest: PathBuf::new(),
    };
    let subjects = Subject::all(&[]);
    let subject = subjects.iter().find(|subject| subject.kind == kind).expect("a subject");
    let measure = MEASURES.iter().find(|one| one.name == measure).expect("a measure");
    let values = (measure.take)(&context, subject).expect("a sample");
    assert!(values["operations"] > 100.0 && values["cpu_us"] > 0.1, "{values:?}");
    assert!(values["server_share"] < 1.5, "one core cannot spend more: {values:?}");
}

#[test]
fn raw_fan_out() {
    check(Kind::Raw, "fanout-8");
}

#[test]
fn tungstenite_fan_out_over_tls() {
    check(Kind::Tungstenite, "tls-1");
}

#[test]
fn tungstenite_echo() {
    check(Kind::Tungstenite, "echo");
}
