//! The published contract against the code: the JSON Schema judges every message of every test (the test node calls
//! [`check_server_message`] and [`check_command`]), and the texts and tables of docs/protocol.md are compared with what
//! the core has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, OnceLock};

use gateway_core::error::{Disconnect, ErrorCode};
use gateway_core::proto::{Envelope, is_publishable_kind};
use jsonschema::Validator;
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../../../docs/schema/archmesh.v1.schema.json");
const ASYNCAPI: &str = include_str!("../../../../docs/schema/asyncapi.json");
const PROTOCOL: &str = include_str!("../../../../docs/protocol.md");

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(SCHEMA).unwrap());

/// One validator per definition, found by the `type` of the message, so that an error names what is wrong.
struct Schemas {
    server: BTreeMap<String, Validator>,
    client: BTreeMap<String, Validator>,
    publication: Validator,
}

/// Validator of one definition.
fn definition(name: &str) -> Validator {
    let schema = json!({
        "$schema": DOCUMENT["$schema"],
        "$ref": format!("#/$defs/{name}"),
        "$defs": DOCUMENT["$defs"],
    });
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

/// Names of the definitions that `ServerMessage` or `ClientMessage` lists.
fn listed(union: &str) -> Vec<&'static str> {
    let refs = DOCUMENT["$defs"][union]["oneOf"].as_array().unwrap();
    refs.iter().map(|r| r["$ref"].as_str().unwrap().strip_prefix("#/$defs/").unwrap()).collect()
}

/// The fixed `type` of a definition; publications have none.
fn kind_of(name: &str) -> Option<&'static str> {
    DOCUMENT["$defs"][name]["properties"]["type"]["const"].as_str()
}

fn schemas() -> &'static Schemas {
    static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
    let by_kind = |union| {
        let names = listed(union).into_iter();
        names.filter_map(|name| Some((kind_of(name)?.to_owned(), definition(name)))).collect()
    };
    SCHEMAS.get_or_init(|| Schemas {
        server: by_kind("ServerMessage"),
        client: by_kind("ClientMessage"),
        publication: definition("Publication"),
    })
}

fn check(validator: &Validator, message: &Value) {
    let errors: Vec<_> = validator
        .iter_errors(message)
        .map(|error| format!("{error} at {}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "against the schema: {errors:?}\n{message}");
}

/// Panics when the gateway must not have sent `message`.
pub fn check_server_message(message: &Value) {
    let schemas = schemas();
    let kind = message["type"].as_str().unwrap_or_default();
    if kind == "notification" && message.get("channel").is_none() {
        // Told to one connection after its `welcome`; in a channel it is a publication like any other.
        return check(&definition("NotificationMissed"), message);
    }
    check(schemas.server.get(kind).unwrap_or(&schemas.publication), message);
}

/// Panics when the gateway must not have refused an upgrade with `body`.
pub fn check_refusal(body: &Value) {
    check(&definition("HandshakeRefusal"), body);
}

/// Panics when the gateway has understood `command` though the schema does not; types that the schema does not know are
/// let through.
pub fn check_command(command: &Value) {
    let kind = command["type"].as_str().unwrap_or_default();
    if let Some(validator) = schemas().client.get(kind) {
        check(validator, command);
    }
}

#[test]
fn the_schema_refuses_what_is_no_message() {
    let whole = jsonschema::validator_for(&DOCUMENT).unwrap();
    let envelope = |kind: &str, data: Value| {
        let timestamp = "2026-11-23T09:30:00.125Z";
        json!({"type": kind, "id": "s1", "timestamp": timestamp, "reply_to": "1", "data": data})
    };
    assert!(whole.is_valid(&envelope("pong", json!({}))));
    assert!(whole.is_valid(&json!({"type": "ping"})));
    let mut wrong = vec![
        json!([]),
        json!({}),
        json!({"type": "dance", "id": "1"}),
        json!({"type": "publish", "data": {"channel": "a"}}),
        json!({"type": "publish", "data": {"channel": "a", "data": 1, "type": "welcome"}}),
        json!({"type": "publish", "data": {"channel": "a", "data": 1, "priority": "urgent"}}),
        json!({"type": "subscribe", "data": {"channel": "a b"}}),
        json!({"type": "subscribe", "data": {}}),
        json!({"type": "history", "data": {"channel": "a", "limit": -1}}),
        envelope("welcome", json!({})),
        envelope("published", json!({"offset": 0, "epoch": "abcdefgh"})),
        envelope(
            "error",
            json!({"error_code": "OH_NO", "error_message": "x", "error_details": {}}),
        ),
        envelope("disconnect", json!({"code": 4500, "reason": "invalid_token", "reconnect": true})),
    ];
    let mut unknown_member = envelope("refreshed", json!({}));
    unknown_member["extra"] = json!(1);
    wrong.push(unknown_member);
    let mut bad_time = envelope("refreshed", json!({}));
    bad_time["timestamp"] = json!("2026-11-23 09:30:00");
    wrong.push(bad_time);
    for message in wrong {
        assert!(!whole.is_valid(&message), "{message}");
    }
}

#[test]
fn types_of_the_protocol_cannot_be_published() {
    for name in [listed("ServerMessage"), listed("ClientMessage")].concat() {
        let Some(kind) = kind_of(name) else { continue };
        assert!(!is_publishable_kind(kind), "{kind}");
    }
    let not = &DOCUMENT["$defs"]["Publication"]["properties"]["type"]["not"]["enum"];
    for kind in not.as_array().unwrap() {
        assert!(!is_publishable_kind(kind.as_str().unwrap()), "{kind}");
    }
}

#[test]
fn every_command_of_the_schema_is_one_of_the_core() {
    for name in listed("ClientMessage") {
        let kind = kind_of(name).unwrap();
        let text = json!({"type": kind, "data": {}}).to_string();
        let command = Envelope::read(&text, 8).unwrap().command().map(|_| ());
        assert_ne!(command, Err(gateway_core::proto::CommandError::UnknownKind), "{kind}");
    }
}

#[test]
fn the_codes_of_the_schema_are_those_of_the_core() {
    let texts = |value: &Value| -> BTreeSet<String> {
        let list = value.as_array().unwrap().iter();
        list.map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect()
    };
    let errors: BTreeSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str().to_owned()).collect();
    assert_eq!(texts(&DOCUMENT["$defs"]["ErrorCode"]["enum"]), errors);
    let branches = &DOCUMENT["$defs"]["Disconnect"]["properties"]["data"]["oneOf"];
    for (branch, reconnect) in [(0, true), (1, false)] {
        let expected = || {
            let told = Disconnect::ALL.into_iter().filter(|d| d.close_code() >= 4000);
            told.filter(|d| d.should_reconnect() == reconnect)
        };
        let properties = &branches[branch]["properties"];
        let codes: BTreeSet<_> = expected().map(|d| d.close_code().to_string()).collect();
        assert_eq!(texts(&properties["code"]["enum"]), codes);
        let reasons: BTreeSet<_> = expected().map(|d| d.reason().to_owned()).collect();
        assert_eq!(texts(&properties["reason"]["enum"]), reasons);
    }
}

fn collect_refs<'a>(value: &'a Value, refs: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match (name.as_str(), member) {
                    ("$ref", Value::String(target)) => _ = refs.insert(target),
                    _ => collect_refs(member, refs),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_refs(item, refs)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let asyncapi: Value = serde_json::from_str(ASYNCAPI).unwrap();
    for (document, own) in [(&asyncapi, &asyncapi), (&*DOCUMENT, &*DOCUMENT)] {
        let mut refs = BTreeSet::new();
        collect_refs(document, &mut refs);
        assert!(refs.len() > 20);
        for target in refs {
            let (file, pointer) = target.split_once('#').unwrap();
            let into = if file.is_empty() { own } else { &*DOCUMENT };
            assert!(file.is_empty() || file == "/schema/archmesh.v1.json", "{target}");
            assert!(into.pointer(pointer).is_some(), "{target} leads nowhere");
        }
    }
    let messages = asyncapi["components"]["messages"].as_object().unwrap();
    for name in [listed("ServerMessage"), listed("ClientMessage")].concat() {
        assert!(messages.contains_key(name), "{name} is missing in the AsyncAPI document");
    }
}

/// The fenced `json` blocks of docs/protocol.md.
fn examples() -> Vec<Value> {
    let blocks = PROTOCOL.split("```json\n").skip(1);
    let texts = blocks.map(|block| block.split("```").next().unwrap());
    texts
        .map(|text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")))
        .collect()
}

#[test]
fn the_examples_of_the_documentation_are_messages() {
    let whole = jsonschema::validator_for(&DOCUMENT).unwrap();
    let refusal = definition("HandshakeRefusal");
    let mut seen = BTreeSet::new();
    for example in examples() {
        let Some(kind) = example["type"].as_str() else {
            check(&refusal, &example);
            continue;
        };
        assert!(whole.is_valid(&example), "not in the schema: {example}");
        let from_server = example.get("timestamp").is_some();
        if from_server {
            check_server_message(&example);
        } else {
            check_command(&example);
            let text = example.to_string();
            Envelope::read(&text, 32).unwrap().command().unwrap();
        }
        seen.insert((from_server, kind.to_owned()));
        let typed = match kind {
            "workflow_update" => "WorkflowUpdate",
            "notification" if example.get("channel").is_some() => "Notification",
            _ => continue,
        };
        check(&definition(typed), &example);
    }
    for (union, from_server) in [("ServerMessage", true), ("ClientMessage", false)] {
        for kind in listed(union).into_iter().filter_map(kind_of) {
            let shown = seen.contains(&(from_server, kind.to_owned()));
            // A client has no use for `pong`; the table of commands says so.
            let needless = kind == "pong" && !from_server;
            assert!(shown || needless, "docs/protocol.md shows no `{kind}` ({union})");
        }
    }
    for kind in ["message", "workflow_update", "notification"] {
        assert!(seen.contains(&(true, kind.to_owned())), "docs/protocol.md shows no `{kind}`");
    }
}

/// Cells of the table rows below the heading that begins with `heading`, without back-quotes.
fn table(heading: &str) -> Vec<Vec<String>> {
    let section = PROTOCOL.split(&format!("\n## {heading}")).nth(1);
    let section = section.unwrap_or_else(|| panic!("no section {heading}"));
    let lines = section.lines().skip(1).take_while(|line| !line.starts_with("## "));
    let rows = lines.filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
    })
    .collect()
}

#[test]
fn the_tables_of_codes_are_those_of_the_core() {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let documented: Vec<_> = table("Close codes").iter().map(|row| row[..3].to_vec()).collect();
    let actual: Vec<_> = Disconnect::ALL
        .into_iter()
        .map(|d| {
            let reconnect = yes_no(d.should_reconnect());
            vec![d.close_code().to_string(), d.reason().to_owned(), reconnect]
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(documented, actual);
    let documented: Vec<_> = table("Errors").iter().map(|row| row[..2].to_vec()).collect();
    let actual: Vec<_> =
        ErrorCode::ALL.iter().map(|c| vec![c.as_str().into(), yes_no(c.is_temporary())]).collect();
    assert_eq!(documented, actual);
}
