//! What a user finds: after the welcome, in pages, and by filters.

use serde_json::{Value, json};

use super::{Database, list, note, sent, shown, titles, with};
use crate::gateway::Gateway;
use crate::socket::{Opening, Socket};
use crate::support::token;

/// What a session is told after its welcome, up to the numbers of the inbox.
fn missed(socket: &mut Socket) -> (Vec<Value>, Value) {
    let stands = socket.wait_for("the numbers of the inbox", |message| {
        message["type"] == "notification_update" && message["data"]["state"].is_null()
    });
    (socket.drain("notification"), stands["data"].clone())
}

fn titles_of(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["data"]["title"].as_str().unwrap()).collect()
}

pub fn what_was_missed_comes_after_the_welcome(database: &Database) {
    let gateway = database.setup().set("notifications.missed_max", 3).start();
    let ids: Vec<String> = (0..5).map(|n| sent(&gateway, note("ada", &format!("{n}")))).collect();
    sent(&gateway, note("bob", "bob's"));
    database.await_published();
    let mut phone = Socket::connect(&gateway, "ada");
    let (messages, stands) = missed(&mut phone);
    assert_eq!(titles_of(&messages), ["2", "3", "4"], "the newest three, the oldest of them first");
    assert_eq!((&stands["unread"], &stands["unseen"]), (&json!(5), &json!(5)));
    phone.call("notification_ack", json!({"ids": [ids[4], ids[2]]}));
    phone.close();
    let mut phone = Socket::connect(&gateway, "ada");
    let (messages, stands) = missed(&mut phone);
    assert_eq!(titles_of(&messages), ["0", "1", "3"], "not what a device has confirmed");
    assert_eq!(stands["unread"], 5);
    phone.call("notification_archive", json!({"ids": [ids[0]]}));
    phone.call("notification_ack", json!({"all": true}));
    let (messages, stands) = missed(&mut Socket::connect(&gateway, "ada"));
    assert_eq!((titles_of(&messages), &stands["unread"]), (vec![], &json!(4)));
    // What comes now comes once and at once.
    let id = sent(&gateway, note("ada", "5"));
    shown(&mut phone, &id);
    assert_eq!(titles_of(&missed(&mut Socket::connect(&gateway, "bob")).0), ["bob's"]);
    database.check_counters();
}

/// A name that no database takes hurts nobody else, also of those who come at the same time.
pub fn a_strange_name_hurts_nobody_else(database: &Database) {
    let gateway = database.setup().start();
    let id = sent(&gateway, note("ada", "t"));
    database.await_published();
    for strange in ["a\u{0}b", "a b", "*", "ü\u{202e}"] {
        let (mut strangers, mut adas) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            strangers.push(Socket::open(&gateway, &Opening::with_token(&token(strange))));
            let opening = Opening::with_token(&token("ada"));
            adas.push(Socket::open(&gateway, &opening).expect("an upgrade"));
        }
        for ada in &mut adas {
            ada.await_welcome();
            shown(ada, &id);
        }
    }
}

/// As large as they may be, and as many as are told after a welcome or fit into a page.
pub fn many_large_ones_do_not_end_the_connection(database: &Database) {
    let gateway = database.setup().start();
    let large = json!({"message": "\u{1}".repeat(16_000), "metadata": {"x": "y".repeat(32_000)}});
    let ids: Vec<String> = (0..60)
        .map(|n| sent(&gateway, with(note("ada", &format!("{n}")), large.clone())))
        .collect();
    database.await_published();
    let mut ada = Socket::connect(&gateway, "ada");
    // As many of the newest as a connection has room for.
    let (messages, stands) = missed(&mut ada);
    assert!(!messages.is_empty() && stands["unread"] == 60, "{} came", messages.len());
    let came = messages.iter().map(|message| message["data"]["notification_id"].clone());
    let came: Vec<Value> = came.collect();
    assert_eq!(came, ids[60 - came.len()..].iter().map(|id| json!(id)).collect::<Vec<_>>());
    let mut pages = 0;
    let mut found = Vec::new();
    let mut request = json!({"limit": 200});
    loop {
        let page = ada.call("notifications", request.clone())["data"].clone();
        found.extend(titles(&page).into_iter().rev().map(str::to_owned));
        pages += 1;
        let Some(next) = page["next"].as_i64() else { break };
        request["before"] = json!(next);
    }
    found.sort_by_key(|title| title.parse::<u32>().unwrap());
    assert_eq!(found, (0..60).map(|n| n.to_string()).collect::<Vec<_>>(), "in {pages} pages");
    assert!(pages > 1, "a page is no larger than a connection can hold");
    assert_eq!(list(&gateway, "ada", json!({}))["items"].as_array().unwrap().len(), 60);
}

fn all_pages(read: impl Fn(Value) -> Value, limit: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mut request = json!({"limit": limit});
    loop {
        let page = read(request.clone());
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= limit as usize);
        found.extend(titles(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next"].as_i64() else { return found };
        assert_eq!(items.len(), limit as usize, "only the last page may be short");
        request["before"] = json!(next);
    }
}

fn fill(gateway: &Gateway, count: usize) -> Vec<String> {
    let notes: Vec<Value> = (0..count).map(|n| note("ada", &format!("{n}"))).collect();
    for some in notes.chunks(20) {
        gateway.result("v1/notifications/batch", &json!({"notifications": some}));
    }
    let mut newest: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    newest.reverse();
    newest
}

pub fn pages_hold_everything_once(database: &Database) {
    let gateway = database.setup().set("notifications.page_max", 25).start();
    let all = fill(&gateway, 60);
    for limit in [1, 7, 20, 25] {
        let mut found = all_pages(|request| list(&gateway, "ada", request), limit);
        assert_eq!(found.len(), 60, "pages of {limit}");
        // Within one batch of changes the order is the gateway's.
        found.sort_by_key(|title| std::cmp::Reverse(title.parse::<u32>().unwrap()));
        assert_eq!(found, all);
    }
    let ada = std::cell::RefCell::new(Socket::connect(&gateway, "ada"));
    let ask = |request| {
        let reply = ada.borrow_mut().call("notifications", request);
        assert_eq!(reply["type"], "notifications", "{reply}");
        reply["data"].clone()
    };
    assert_eq!(all_pages(ask, 9), all_pages(|request| list(&gateway, "ada", request), 9));
    // More than allowed is as much as allowed.
    assert_eq!(
        list(&gateway, "ada", json!({"limit": 1000}))["items"].as_array().unwrap().len(),
        25
    );
    assert_eq!(ask(json!({"limit": 1000}))["items"].as_array().unwrap().len(), 25);
    let none = list(&gateway, "ada", json!({"limit": 0}));
    assert_eq!((&none["items"], &none["unread"]), (&json!([]), &json!(60)), "{none}");
    let newer = list(&gateway, "ada", json!({"after": 57}));
    let seqs: Vec<&Value> = newer["items"].as_array().unwrap().iter().map(|i| &i["seq"]).collect();
    assert_eq!(seqs, [&json!(60), &json!(59), &json!(58)]);
    assert_eq!(list(&gateway, "ada", json!({"before": 1}))["items"], json!([]));
}

pub fn filters_leave_out_the_rest(database: &Database) {
    let gateway = database.setup().start();
    let of = |title, category| with(note("ada", title), json!({"category": category}));
    let ids: Vec<String> =
        [("a", "system"), ("b", "marketing"), ("c", "system"), ("d", "billing.x")]
            .map(|(title, category)| sent(&gateway, of(title, category)))
            .into();
    let mut ada = Socket::connect(&gateway, "ada");
    ada.call("notification_read", json!({"ids": [ids[0]]}));
    ada.call("notification_archive", json!({"ids": [ids[1]]}));
    for (filter, expected) in [
        (json!({}), vec!["d", "c", "a"]),
        (json!({"unread": true}), vec!["d", "c"]),
        (json!({"archived": true}), vec!["b"]),
        (json!({"category": "system"}), vec!["c", "a"]),
        (json!({"category": "system", "unread": true}), vec!["c"]),
        (json!({"category": "marketing"}), vec![]),
        (json!({"category": "marketing", "archived": true}), vec!["b"]),
        (json!({"category": "system", "limit": 1}), vec!["c"]),
        (json!({"category": "nothing"}), vec![]),
    ] {
        assert_eq!(titles(&list(&gateway, "ada", filter.clone())), expected, "{filter}");
        let reply = ada.call("notifications", filter.clone());
        assert_eq!(titles(&reply["data"]), expected, "{filter}");
    }
    database.check_counters();
}

pub fn strangers_have_no_inbox(database: &Database) {
    let gateway = database.setup().set("auth.anonymous", true).start();
    let mut stranger = Socket::open(&gateway, &Opening::with_token("")).unwrap();
    stranger.await_welcome();
    for kind in ["notifications", "notification_read", "preferences"] {
        let error = stranger.call(kind, json!({"all": true}));
        assert_eq!(error["data"]["error_code"], "PERMISSION_DENIED", "{kind}: {error}");
    }
    let body = json!({"audience": "online", "title": "t", "message": "m", "category": "system"});
    let answer = super::send(&gateway, body);
    assert_eq!(answer["delivered"], 0, "{answer}");
    assert!(stranger.settled("notification").is_empty());
    // Nobody reads another one's channel.
    let mut bob = Socket::connect(&gateway, "bob");
    let refused = bob.call("subscribe", json!({"channel": "user:ada"}));
    assert_eq!(refused["data"]["error_code"], "PERMISSION_DENIED", "{refused}");
}
