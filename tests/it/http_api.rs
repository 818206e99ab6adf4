//! Setup: the server API with its keys.
//!
//! Must hold: every method works once and says clearly what is wrong with a request; nothing works without a key; both
//! forms of errors are as documented; the document that is served lists every method.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::gateway::Gateway;
use crate::socket::Socket;
use crate::support::{API_KEY, unix_now};

const METHODS: [&str; 17] = [
    "publish",
    "broadcast",
    "large_data",
    "subscribe",
    "unsubscribe",
    "disconnect",
    "revoke",
    "user_status",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "connections",
    "connection",
    "info",
    "batch",
];

fn code(answer: &Value) -> u64 {
    answer["error"]["code"].as_u64().unwrap_or_else(|| panic!("an error is expected: {answer}"))
}

#[test]
fn nothing_works_without_a_key() {
    let gateway = Gateway::start();
    let mut http = gateway.http();
    for method in METHODS {
        for headers in [
            vec![],
            vec!["X-API-Key: wrong".to_owned()],
            vec![format!("X-API-Key: {API_KEY}x")],
            vec!["Authorization: apikey wrong".to_owned()],
            vec![format!("Authorization: Bearer {API_KEY}")],
        ] {
            let path = format!("/api/{method}");
            let answer = http.request("POST", &path, &headers, b"{}").unwrap();
            assert_eq!(answer.status, 401, "{method} {headers:?}");
            assert_eq!(answer.json()["error"]["code"], 101);
        }
    }
    let header = [format!("Authorization: apikey {API_KEY}")];
    let answer = http.request("POST", "/api/info", &header, b"{}").unwrap();
    assert_eq!(answer.json()["result"]["nodes"][0]["name"], "test-node");
    assert!(!gateway.log.text().contains(API_KEY), "the key is in no log");
    gateway.await_metric("archmesh_api_unauthorized_total", &[], |n| n == 17.0 * 5.0);
}

#[test]
fn publications_and_history() {
    let gateway = Gateway::start();
    let first = gateway.publish("chat:a", json!({"n": 1}));
    assert_eq!(first["offset"], 1);
    let publish = json!({"channel": "chat:a", "b64data": "eyJuIjoyfQ==", "tags": {"by": "cron"}});
    gateway.result("publish", &publish);
    let skipped = json!({"channel": "chat:a", "data": {"n": 3}, "skip_history": true});
    gateway.result("publish", &skipped);
    let history = gateway.result("history", &json!({"channel": "chat:a", "limit": 10}));
    let kept: Vec<&Value> = history["publications"].as_array().unwrap().iter().collect();
    let data: Vec<&Value> = kept.iter().map(|publication| &publication["data"]["n"]).collect();
    assert_eq!(data, [&json!(1), &json!(2)], "{history}");
    let since = json!({"channel": "chat:a", "limit": 10, "since": first});
    assert_eq!(gateway.result("history", &since)["publications"].as_array().unwrap().len(), 1);
    let channels = gateway.result("channels", &json!({"prefix": "chat:"}));
    assert_eq!(channels["channels"]["chat:a"]["history"], 2, "{channels}");
    gateway.result("history_remove", &json!({"channel": "chat:a"}));
    let history = gateway.result("history", &json!({"channel": "chat:a", "limit": 10}));
    assert_eq!(history["publications"], json!([]));
}

#[test]
fn users_are_subscribed_moved_and_ended() {
    let gateway = Gateway::start();
    let mut phone = Socket::connect(&gateway, "ada");
    let mut desk = Socket::connect(&gateway, "ada");
    let to = |channel: &str| json!({"user": "ada", "channel": channel});
    assert_eq!(gateway.result("subscribe", &to("private:board"))["affected"], 2);
    for socket in [&mut phone, &mut desk] {
        let pushed = socket.wait_for("a server-side subscription", |m| {
            m["type"] == "subscribed" && m["data"]["channel"] == "private:board"
        });
        assert_eq!(pushed["data"]["by_server"], true);
    }
    gateway.publish("private:board", json!(1));
    assert_eq!(phone.take("message")["data"], 1);
    assert_eq!(desk.take("message")["data"], 1);
    let one = json!({"session": desk.session(), "channel": "private:board"});
    assert_eq!(gateway.result("unsubscribe", &one)["affected"], 1);
    desk.take("unsubscribed");
    gateway.publish("private:board", json!(2));
    assert_eq!(phone.take("message")["data"], 2);
    assert!(desk.settled("message").is_empty());

    let status = gateway.result("user_status", &json!({"users": ["ada", "nobody"]}));
    assert_eq!(status["statuses"][0]["connections"], 2, "{status}");
    assert_eq!(status["statuses"][1]["online"], false);
    let seen = gateway.result("connection", &json!({"session": phone.session()}));
    assert_eq!((&seen["user"], &seen["tls"]), (&json!("ada"), &json!(false)), "{seen}");
    assert!(seen["channels"].as_array().unwrap().contains(&json!("private:board")));

    let one = json!({"session": desk.session(), "reconnect": true});
    assert_eq!(gateway.result("disconnect", &one)["affected"], 1);
    assert_eq!(desk.take("disconnect")["data"]["reconnect"], true);
    assert_eq!(desk.wait_close().code, Some(4006));
    assert_eq!(gateway.result("disconnect", &json!({"user": "ada"}))["affected"], 1);
    assert_eq!(phone.take("disconnect")["data"]["reconnect"], false);
    assert_eq!(phone.wait_close().code, Some(4504));
    crate::support::eventually("ada is offline and was seen", || {
        let status = gateway.result("user_status", &json!({"users": ["ada"]}));
        let seen = status["statuses"][0]["last_seen"].as_u64()?;
        (status["statuses"][0]["online"] == false && seen <= unix_now() + 1).then_some(())
    });
}

#[test]
fn connections_are_listed_in_pages() {
    let gateway = Gateway::start();
    let sockets: Vec<Socket> =
        (0..25).map(|n| Socket::connect(&gateway, &format!("u{}", n % 5))).collect();
    let mut seen = BTreeSet::new();
    let mut cursor = Value::Null;
    let mut pages = 0;
    loop {
        let mut request = json!({"limit": 4});
        if !cursor.is_null() {
            request["cursor"] = cursor;
        }
        let page = gateway.result("connections", &request);
        let listed = page["connections"].as_array().unwrap();
        assert!(listed.len() <= 4);
        for entry in listed {
            let session = entry["session"].as_str().unwrap().to_owned();
            assert!(seen.insert(session), "none is listed twice");
        }
        pages += 1;
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert!(pages >= 7, "{pages} pages");
    let open: BTreeSet<String> = sockets.iter().map(|s| s.session().to_owned()).collect();
    assert_eq!(seen, open);
    let of_one = gateway.result("connections", &json!({"user": "u3"}));
    assert_eq!(of_one["connections"].as_array().unwrap().len(), 5);
    let info = gateway.result("info", &json!({}))["nodes"][0].clone();
    assert_eq!((&info["num_clients"], &info["shards"]), (&json!(25), &json!(2)), "{info}");
}

#[test]
fn a_batch_answers_in_place() {
    let gateway = Gateway::start();
    for parallel in [false, true] {
        let batch = json!({"parallel": parallel, "commands": [
            {"publish": {"channel": "chat:batch", "data": 1}},
            {"publish": {"channel": "nowhere:x", "data": 2}},
            {"presence_stats": {"channel": "chat:batch"}},
        ]});
        let replies = gateway.result("batch", &batch)["replies"].clone();
        assert!(replies[0]["publish"]["offset"].is_u64(), "{replies}");
        assert_eq!(replies[1]["error"]["code"], 102);
        assert_eq!(replies[2]["presence_stats"]["num_clients"], 0);
    }
}

#[test]
fn bad_requests_are_told_and_named() {
    let gateway = Gateway::start();
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let long = "x".repeat(2000);
    let cases: &[(&str, String, u64)] = &[
        ("publish", "{}".into(), 107),
        ("publish", "[]".into(), 107),
        ("publish", "{\"channel\":\"chat:a\"}".into(), 107),
        ("publish", "{\"channel\":\"chat:a\",\"data\":1,\"extra\":1}".into(), 107),
        ("publish", "{\"channel\":\"\",\"data\":1}".into(), 107),
        ("publish", "{\"channel\":\"no such:a\",\"data\":1}".into(), 107),
        ("publish", "{\"channel\":\"nowhere:a\",\"data\":1}".into(), 102),
        ("publish", format!("{{\"channel\":\"chat:{long}\",\"data\":1}}"), 107),
        ("publish", format!("{{\"channel\":\"chat:a\",\"data\":{deep}}}"), 107),
        ("publish", "{\"channel\":\"chat:a\",\"data\":1,\"type\":\"welcome\"}".into(), 107),
        ("publish", "{\"channel\":\"chat:a\",\"data\":1,\"priority\":\"urgent\"}".into(), 107),
        ("publish", "{\"channel\":\"chat:a\",\"data\":1".into(), 107),
        ("publish", "{\"channel\":7,\"data\":1}".into(), 107),
        ("broadcast", "{\"channels\":[],\"data\":1}".into(), 107),
        ("batch", "{\"commands\":[]}".into(), 107),
        ("batch", "{\"commands\":[{\"dance\":{}}]}".into(), 107),
        ("subscribe", "{\"channel\":\"chat:a\"}".into(), 107),
        ("disconnect", "{}".into(), 107),
        ("revoke", "{}".into(), 107),
        ("revoke", "{\"token_id\":\"x\"}".into(), 107),
        ("user_status", "{\"users\":[]}".into(), 107),
        ("presence", "{\"channel\":\"feed:a\"}".into(), 102),
        ("history", "{\"channel\":\"feed:a\"}".into(), 102),
        ("connection", "{\"session\":\"unknown\"}".into(), 102),
        ("connections", "{\"limit\":0}".into(), 107),
        ("connections", "{\"cursor\":\"bad\"}".into(), 107),
        ("large_data", "{\"channel\":\"chat:a\",\"payload\":\"***\"}".into(), 107),
    ];
    let mut http = gateway.http();
    for (method, body, expected) in cases {
        let plain = [format!("X-API-Key: {API_KEY}")];
        let path = format!("/api/{method}");
        let answer = http.request("POST", &path, &plain, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{method} {body}");
        let found = code(&answer.json());
        assert_eq!(found, *expected, "{method} {body}: {}", answer.text());
        let transport = [plain[0].clone(), "X-Error-Mode: transport".to_owned()];
        let answer = http.request("POST", &path, &transport, body.as_bytes()).unwrap();
        assert!((400..500).contains(&answer.status), "{method} {body}: {}", answer.status);
        assert_eq!(code(&answer.json()), *expected);
    }
    assert_eq!(gateway.publish("chat:a", json!(1))["offset"], 1, "nothing of it was published");
}

#[test]
fn the_document_lists_every_method() {
    let gateway = Gateway::start();
    let document = gateway.get("/api/openapi.json").json();
    for method in METHODS {
        let path = format!("/api/{method}");
        assert!(document["paths"][&path]["post"].is_object(), "{path} is documented");
    }
}
