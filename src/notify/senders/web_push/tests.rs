//! A fake push service of this process, and a receiver that opens messages with the Python library of the push service
//! of Mozilla, `tests/clients/web_push_receiver.py`.
#![allow(clippy::unwrap_used)]

use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::notify::senders::testing::{self, Arrived, NOW, Program, Service};

const TTL: Duration = Duration::from_hours(24);

struct Scene {
    service: Service,
    browser: Program,
    sender: WebPushSender,
    message: Outgoing,
}

fn sender(http: HttpSettings) -> WebPushSender {
    let (public, private) = VapidKeys::generate().unwrap();
    let vapid = VapidKeys::parse(&public, &private).unwrap();
    let contact = "mailto:ops@example.com".to_owned();
    WebPushSender::new(WebPushSettings { vapid, contact, ttl: TTL, http }).unwrap()
}

fn message(endpoint: &str, keys: &Value) -> Outgoing {
    let json = json!({"endpoint": endpoint, "expirationTime": null, "keys": keys});
    let mut message = testing::outgoing("d1");
    message.target = Target::WebPush(PushSubscription::parse(&json.to_string(), true).unwrap());
    message
}

impl Scene {
    async fn new() -> Self {
        let service = Service::start().await;
        let browser = Program::start("web_push_receiver.py", &Value::Null);
        let message = message(&format!("{}/send/token", service.url), &browser.hello);
        let sender = sender(testing::http_settings());
        Self { service, browser, sender, message }
    }

    async fn send(&self) -> Result<Sent, SendError> {
        self.sender.send(&self.message, NOW).await
    }

    /// What the browser makes of a request.
    fn open(&mut self, arrived: &Arrived) -> Value {
        self.browser.ask(&json!({
            "body": STANDARD.encode(&arrived.body),
            "authorization": arrived.headers["authorization"].to_str().unwrap(),
        }))
    }
}

#[tokio::test]
async fn a_browser_can_open_what_the_push_service_gets() {
    let mut scene = Scene::new().await;
    scene.service.reply(201, &[("location", "/message/1")]);
    let sent = scene.send().await.unwrap();
    assert_eq!(sent.answer.to_string(), "HTTP 201");
    let arrived = scene.service.arrived().remove(0);
    assert_eq!(arrived.path, "/send/token");
    for (name, value) in [
        ("content-encoding", "aes128gcm"),
        ("content-type", "application/octet-stream"),
        ("ttl", "86400"),
        ("urgency", "high"),
    ] {
        assert_eq!(arrived.headers[name], value);
    }
    assert!(!arrived.headers.contains_key("topic"));
    let opened = scene.open(&arrived);
    assert_eq!(opened["plaintext"]["id"], "d1");
    assert_eq!(opened["plaintext"]["message"], scene.message.message);
    assert_eq!(opened["signed"], true);
    assert_eq!(opened["header"], json!({"typ": "JWT", "alg": "ES256"}));
    assert_eq!(
        opened["claims"],
        json!({"aud": scene.service.url, "exp": 1_764_043_200, "sub": "mailto:ops@example.com"})
    );
    let authorization = arrived.headers["authorization"].to_str().unwrap();
    assert!(authorization.ends_with(&format!(", k={}", scene.sender.public_key())));
}

#[tokio::test]
async fn the_longest_message_is_cut_and_still_opens() {
    let mut scene = Scene::new().await;
    scene.message.message = "\u{1f980}\"\n".repeat(5_000);
    scene.send().await.unwrap();
    let arrived = scene.service.arrived().remove(0);
    assert!((4_090..=4_096).contains(&arrived.body.len()), "{}", arrived.body.len());
    let opened = scene.open(&arrived);
    let cut = opened["plaintext"]["message"].as_str().unwrap();
    let beginning = cut.strip_suffix('\u{2026}').unwrap();
    assert!(scene.message.message.starts_with(beginning));
    assert_eq!(opened["plaintext"]["truncated"], true);
}

#[tokio::test]
async fn messages_with_one_key_have_one_topic_that_does_not_tell_it() {
    let mut scene = Scene::new().await;
    for key in ["run 7", "run 7", "run 8"] {
        scene.message.collapse_key = Some(key.to_owned());
        scene.send().await.unwrap();
    }
    let arrived = scene.service.arrived();
    let topics = arrived.iter().map(|one| one.headers["topic"].to_str().unwrap());
    let topics: Vec<&str> = topics.collect();
    assert_eq!(topics[0], topics[1]);
    assert_ne!(topics[0], topics[2]);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    assert!(topics.iter().all(|topic| topic.len() == 32 && topic.bytes().all(allowed)));
}

#[tokio::test]
async fn statuses_decide() {
    let scene = Scene::new().await;
    for status in [200, 201, 202] {
        scene.service.reply(status, &[]);
        scene.send().await.unwrap();
    }
    for (status, retryable, gone) in [
        (404, false, true),
        (410, false, true),
        (400, false, false),
        (401, false, false),
        (403, false, false),
        (413, false, false),
        (429, true, false),
        (500, true, false),
        (503, true, false),
    ] {
        scene.service.reply(status, &[("retry-after", "11")]);
        let error = scene.send().await.unwrap_err();
        assert_eq!((error.is_retryable(), error.is_gone()), (retryable, gone), "{status}");
        let asked = retryable.then_some(Duration::from_secs(11));
        assert_eq!(error.retry_after, asked, "{status}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("token"), "{shown} shows the endpoint");
    }
}

#[tokio::test]
async fn a_subscription_that_has_ended_is_not_called() {
    let mut scene = Scene::new().await;
    let json = json!({
        "endpoint": scene.service.url,
        "expirationTime": NOW.as_millis() as u64,
        "keys": scene.browser.hello,
    });
    scene.message.target =
        Target::WebPush(PushSubscription::parse(&json.to_string(), true).unwrap());
    let error = scene.send().await.unwrap_err();
    assert!(error.is_gone() && !error.is_retryable());
    assert_eq!(scene.service.arrived().len(), 0);
}

#[tokio::test]
async fn endpoints_lead_nowhere_inside() {
    let scene = Scene::new().await;
    let inside = HttpSettings { allow_private_addresses: false, ..testing::http_settings() };
    let error = sender(inside).send(&scene.message, NOW).await.unwrap_err();
    assert_eq!(error.kind, SendErrorKind::PrivateAddress);
    let encrypted = HttpSettings { allow_http: false, ..testing::http_settings() };
    let error = sender(encrypted).send(&scene.message, NOW).await.unwrap_err();
    assert_eq!(error.kind.as_str(), "unfit");
    assert_eq!(scene.service.arrived().len(), 0);
}

#[test]
fn urgency_follows_priority() {
    use Priority::{Critical, High, Low, Normal};
    assert_eq!([Low, Normal, High, Critical].map(urgency), ["low", "normal", "high", "high"]);
}

#[test]
fn the_contact_is_a_mail_address_or_a_page() {
    let new = |contact: &str| {
        let (public, private) = VapidKeys::generate().unwrap();
        WebPushSender::new(WebPushSettings {
            vapid: VapidKeys::parse(&public, &private).unwrap(),
            contact: contact.to_owned(),
            ttl: TTL,
            http: testing::http_settings(),
        })
    };
    for good in ["mailto:ops@example.com", "https://example.com/contact"] {
        assert!(new(good).is_ok(), "{good}");
    }
    for bad in
        ["", "ops@example.com", "mailto:ops", "http://example.com", "https://", "mailto: a@b"]
    {
        let error = new(bad).unwrap_err().to_string();
        assert!(error.contains("the contact for push services"), "{error}");
    }
}
