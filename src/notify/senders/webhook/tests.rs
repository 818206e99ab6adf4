//! Against a service of this process, and against one that checks signatures with Python's standard library.
#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::notify::senders::testing::{self, NOW, Program, Service, TestCertificate};

const TOLERANCE: Duration = Duration::from_mins(5);

fn secret(byte: u8) -> Secret<String> {
    Secret::new(format!("whsec_{}", STANDARD.encode([byte; 32])))
}

fn settings(url: &str, secrets: Vec<Secret<String>>) -> WebhookSettings {
    WebhookSettings { url: Secret::new(url.to_owned()), secrets, http: testing::http_settings() }
}

async fn sender() -> (Service, WebhookSender) {
    let service = Service::start().await;
    let settings = settings(&format!("{}/hooks/token", service.url), vec![secret(1)]);
    let sender = WebhookSender::new(settings).unwrap();
    (service, sender)
}

#[tokio::test]
async fn a_request_is_signed_with_every_secret_and_complete() {
    let service = Service::start().await;
    let sender = WebhookSender::new(settings(&service.url, vec![secret(1), secret(2)])).unwrap();
    let sent = sender.send(&testing::outgoing("d1"), NOW).await.unwrap();
    assert_eq!(sent.answer.to_string(), "HTTP 200");
    let arrived = service.arrived().remove(0);
    assert_eq!(arrived.headers["webhook-id"], "d1");
    assert_eq!(arrived.headers["webhook-timestamp"], "1764000000");
    assert_eq!(arrived.headers["content-type"], "application/json");
    for byte in [1, 2] {
        let secrets = [SigningSecret::parse(secret(byte).expose()).unwrap()];
        verify(&secrets, &arrived.headers, &arrived.body, NOW, TOLERANCE).unwrap();
    }
    let body: Value = serde_json::from_slice(&arrived.body).unwrap();
    let message = testing::outgoing("d1");
    assert_eq!(
        body,
        json!({
            "type": "notification.webhook",
            "timestamp": 1_764_000_000_500u64,
            "data": {
                "id": "d1",
                "notification_id": "n1",
                "user_id": "user-7",
                "category": "workflow_failed",
                "priority": "high",
                "title": message.title,
                "message": message.message,
                "action": {"label": "Open", "url": "https://app.example/runs/7"},
                "metadata": {"run": 7},
            },
        })
    );
}

#[tokio::test]
async fn a_text_message_names_the_phone() {
    let (service, sender) = sender().await;
    let mut message = testing::outgoing("d1");
    message.target = Target::Phone("+15550100".to_owned());
    (message.action, message.metadata) = (None, None);
    sender.send(&message, NOW).await.unwrap();
    let body: Value = serde_json::from_slice(&service.arrived()[0].body).unwrap();
    assert_eq!(body["type"], "notification.sms");
    assert_eq!(body["data"]["phone"], "+15550100");
    let data = body["data"].as_object().unwrap();
    assert!(!data.contains_key("action") && !data.contains_key("metadata"), "{data:?}");
}

#[tokio::test]
async fn a_second_attempt_has_the_same_id_and_its_own_time() {
    let (service, sender) = sender().await;
    service.reply(503, &[("retry-after", "7")]);
    let message = testing::outgoing("d1");
    let error = sender.send(&message, NOW).await.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
    sender.send(&message, NOW + Duration::from_secs(7)).await.unwrap();
    let [first, second] = [0, 1].map(|index| service.arrived()[index].headers.clone());
    assert_eq!(first["webhook-id"], second["webhook-id"]);
    assert_eq!(second["webhook-timestamp"], "1764000007");
    assert_ne!(first["webhook-signature"], second["webhook-signature"]);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_told_from_one_that_refuses() {
    let (service, sender) = sender().await;
    for (status, gone) in [(410, true), (404, false), (400, false), (302, false)] {
        service.reply(status, &[]);
        let error = sender.send(&testing::outgoing("d1"), NOW).await.unwrap_err();
        assert_eq!((error.is_retryable(), error.is_gone()), (false, gone), "{status}");
        let shown = format!("{error} {error:?} {sender:?}");
        assert!(!shown.contains("token") && !shown.contains("whsec"), "{shown}");
    }
}

#[tokio::test]
async fn a_foreign_receiver_accepts_the_signature_over_tls() {
    let certificate = TestCertificate::new();
    let options = json!({
        "cert": certificate.certificate(),
        "key": certificate.key(),
        "secret": secret(2).expose(),
    });
    let mut receiver = Program::start("webhook_receiver.py", &options);
    let url = format!("https://localhost:{}/hooks/token", receiver.port());
    let with = |secrets, ca_file| {
        let mut settings = settings(&url, secrets);
        settings.http.ca_file = ca_file;
        settings.http.allow_http = false;
        WebhookSender::new(settings).unwrap()
    };
    let message = testing::outgoing("d1");
    let stranger = with(vec![secret(2)], None);
    let error = stranger.send(&message, NOW).await.unwrap_err();
    assert_eq!(error.kind.as_str(), "connect", "an unknown certificate is not trusted");

    let known = Some(certificate.certificate());
    with(vec![secret(1), secret(2)], known.clone()).send(&message, NOW).await.unwrap();
    let error = with(vec![secret(3)], known).send(&message, NOW).await.unwrap_err();
    assert_eq!(error.to_string().split(';').next(), Some("refused for good (HTTP 401)"));
    let arrived = receiver.ask(&json!("state"));
    let good: Vec<&Value> = arrived.as_array().unwrap().iter().map(|one| &one["good"]).collect();
    assert_eq!(good, [&json!(true), &json!(false)]);
    assert_eq!(arrived[0]["body"]["data"]["message"], message.message);
}

#[tokio::test]
async fn other_targets_do_not_go_to_webhooks() {
    let (service, sender) = sender().await;
    let mut message = testing::outgoing("d1");
    message.target = Target::Email("ann@example.net".to_owned());
    let error = sender.send(&message, NOW).await.unwrap_err();
    assert_eq!(error.kind.as_str(), "unfit");
    assert_eq!(service.arrived().len(), 0);
}

#[test]
fn settings_that_cannot_work_are_refused_and_not_repeated() {
    let check = |url: &str, secrets: Vec<Secret<String>>, allow_http: bool, expected: &str| {
        let mut settings = settings(url, secrets);
        settings.http.allow_http = allow_http;
        let error = WebhookSender::new(settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
        assert!(!error.contains("token"), "{error}");
    };
    check("token", vec![secret(1)], true, "has no URL");
    check("http://a.example/token", vec![secret(1)], false, "needs an https URL");
    check("https://u:token@a.example/", vec![secret(1)], true, "without user and password");
    check("https://a.example/token", vec![], false, "one to four");
    check("https://a.example/token", vec![secret(1); 5], false, "one to four");
    let bad = Secret::new("whsec_token".to_owned());
    check("https://a.example/token", vec![secret(1), bad], false, "24 to 64 bytes");
}
