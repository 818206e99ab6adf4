//! Against a real mail server, `tests/clients/smtp_server.py`.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::notify::senders::testing::{self, LONG, NOW, Program, TestCertificate};

/// Shorter than the mail server's patience, longer than it needs.
const SHORT: Duration = Duration::from_millis(300);

fn settings(port: u16) -> SmtpSettings {
    SmtpSettings {
        host: "localhost".to_owned(),
        port,
        security: SmtpSecurity::None,
        credentials: None,
        from: "Arch Mesh <gateway@example.com>".to_owned(),
        reply_to: Some("help@example.com".to_owned()),
        hello_name: Some("gateway.example.com".to_owned()),
        ca_file: None,
        unsubscribe_url: Some("https://example.com/unsubscribe?list=notifications".to_owned()),
        deadline: LONG,
        connections_max: 2,
        idle_max: LONG,
    }
}

fn plain() -> (Program, SmtpSender) {
    let server = Program::start("smtp_server.py", &json!({}));
    let sender = SmtpSender::new(settings(server.port())).unwrap();
    (server, sender)
}

fn to(address: &str) -> Outgoing {
    let mut message = testing::outgoing("d1");
    message.target = Target::Email(address.to_owned());
    message
}

async fn send(sender: &SmtpSender, address: &str) -> Result<Sent, SendError> {
    sender.send(&to(address), NOW).await
}

async fn failure(sender: &SmtpSender, address: &str) -> SendError {
    let error = send(sender, address).await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("example.net"), "{shown} shows the address");
    error
}

fn header<'a>(mail: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = mail["headers"].as_array().unwrap().iter();
    headers.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_mail_arrives_with_both_parts_and_its_headers() {
    let (mut server, sender) = plain();
    let sent = send(&sender, "ann@example.net").await.unwrap();
    assert_eq!(sent.answer.to_string(), "SMTP 250 2.0.0");
    let state = server.ask(&json!("state"));
    let mail = &state["mails"][0];
    let rendered = to("").email.unwrap();
    assert_eq!(mail["from"], "gateway@example.com");
    assert_eq!(mail["to"], json!(["ann@example.net"]));
    assert_eq!(mail["hello"], "gateway.example.com");
    assert_eq!(mail["type"], "multipart/alternative");
    assert_eq!(mail["text"], rendered.text);
    assert_eq!(mail["html"], rendered.html.unwrap());
    for (name, value) in [
        ("From", "Arch Mesh <gateway@example.com>"),
        ("To", "ann@example.net"),
        ("Reply-To", "help@example.com"),
        ("Subject", rendered.subject.as_str()),
        ("Message-ID", "<d1@example.com>"),
        ("Auto-Submitted", "auto-generated"),
        ("List-Unsubscribe", "<https://example.com/unsubscribe?list=notifications>"),
        ("Date", "Mon, 24 Nov 2025 16:00:00 +0000"),
    ] {
        assert_eq!(header(mail, name), [value]);
    }
}

#[tokio::test]
async fn a_mail_without_html_has_one_part() {
    let (mut server, sender) = plain();
    let mut message = to("ann@example.net");
    message.email.as_mut().unwrap().html = None;
    sender.send(&message, NOW).await.unwrap();
    let mail = &server.ask(&json!("state"))["mails"][0];
    assert_eq!((&mail["type"], &mail["html"]), (&json!("text/plain"), &Value::Null));
    // The library ends the only part with empty lines of its own.
    let text = mail["text"].as_str().unwrap();
    assert_eq!(text.trim_end(), message.email.unwrap().text.trim_end());
}

#[tokio::test]
async fn a_repeated_mail_has_the_same_id() {
    let (mut server, sender) = plain();
    let first = failure(&sender, "later@example.net").await;
    assert_eq!(first.kind.as_str(), "unavailable");
    assert!(first.is_retryable() && !first.is_gone());
    assert!(first.to_string().contains("SMTP 451 4.7.1"), "{first}");
    send(&sender, "later@example.net").await.unwrap();
    send(&sender, "later@example.net").await.unwrap();
    let mails = &server.ask(&json!("state"))["mails"];
    assert_eq!(header(&mails[0], "Message-ID"), header(&mails[1], "Message-ID"));
    assert_eq!(mails.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_subject_cannot_add_headers() {
    let (mut server, sender) = plain();
    let mut message = to("ann@example.net");
    message.email.as_mut().unwrap().subject = "Hi\r\nBcc: eve@example.net\r\n\r\nbody".to_owned();
    sender.send(&message, NOW).await.unwrap();
    let mail = &server.ask(&json!("state"))["mails"][0];
    assert_eq!(header(mail, "Bcc"), Vec::<&str>::new());
    assert_eq!(header(mail, "Subject"), ["Hi  Bcc: eve@example.net    body"]);
    assert_eq!(mail["to"], json!(["ann@example.net"]));
    let error = failure(&sender, "ann@example.net\r\nRCPT TO:<eve@example.net>").await;
    assert_eq!(error.kind.as_str(), "unfit");
}

#[tokio::test]
async fn replies_decide_what_a_failure_means() {
    let (mut server, sender) = plain();
    for (name, kind, retryable, gone) in [
        ("gone", "gone", false, true),
        ("nobody", "gone", false, true),
        ("policy", "refused", false, false),
        ("full", "unavailable", true, false),
        ("reject", "refused", false, false),
    ] {
        let error = failure(&sender, &format!("{name}@example.net")).await;
        assert_eq!(error.kind.as_str(), kind, "{name}");
        assert_eq!((error.is_retryable(), error.is_gone()), (retryable, gone), "{name}");
    }
    send(&sender, "ann@example.net").await.unwrap();
    let state = server.ask(&json!("state"));
    assert_eq!(state["mails"].as_array().unwrap().len(), 1);
    assert_eq!(state["sessions"], 1, "a refused recipient does not cost the connection");
}

#[tokio::test]
async fn a_mail_that_timed_out_leaves_the_next_one_alone() {
    let mut server = Program::start("smtp_server.py", &json!({}));
    let settings = SmtpSettings { connections_max: 1, deadline: SHORT, ..settings(server.port()) };
    let sender = SmtpSender::new(settings).unwrap();
    let error = failure(&sender, "stall@example.net").await;
    assert_eq!(error.kind, SendErrorKind::Timeout);
    assert!(error.is_retryable());
    // Now the reply comes after all. On the same connection it would be taken for one to the next mail.
    server.ask(&json!("release"));
    let sender = SmtpSender { deadline: LONG, ..sender };
    assert!(failure(&sender, "gone@example.net").await.is_gone());
    let sent = send(&sender, "ann@example.net").await.unwrap();
    assert_eq!(sent.answer.to_string(), "SMTP 250 2.0.0");
    assert_eq!(server.ask(&json!("state"))["sessions"], 2);
}

#[tokio::test]
async fn connections_are_bounded_and_used_again() {
    let (mut server, sender) = plain();
    let sender = std::sync::Arc::new(sender);
    let sends = (0..8).map(|_| {
        let sender = std::sync::Arc::clone(&sender);
        tokio::spawn(async move { send(&sender, "ann@example.net").await })
    });
    for sent in sends.collect::<Vec<_>>() {
        sent.await.unwrap().unwrap();
    }
    let state = server.ask(&json!("state"));
    assert_eq!(state["mails"].as_array().unwrap().len(), 8);
    assert!(state["sessions"].as_u64() <= Some(2), "{}", state["sessions"]);
    assert!(state["open_most"].as_u64() <= Some(2), "{}", state["open_most"]);
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced() {
    let (mut server, sender) = plain();
    send(&sender, "ann@example.net").await.unwrap();
    server.ask(&json!("drop"));
    send(&sender, "ann@example.net").await.unwrap();
    assert_eq!(server.ask(&json!("state"))["sessions"], 2);
}

#[tokio::test]
async fn a_connection_is_not_kept_longer_than_said() {
    let mut server = Program::start("smtp_server.py", &json!({}));
    let sender =
        SmtpSender::new(SmtpSettings { idle_max: Duration::ZERO, ..settings(server.port()) });
    let sender = sender.unwrap();
    for _ in 0..2 {
        send(&sender, "ann@example.net").await.unwrap();
    }
    assert_eq!(server.ask(&json!("state"))["sessions"], 2);
}

#[tokio::test]
async fn an_address_outside_ascii_goes_where_the_relay_takes_it() {
    let (mut server, sender) = plain();
    send(&sender, "j\u{fc}rgen@example.net").await.unwrap();
    let mail = &server.ask(&json!("state"))["mails"][0];
    assert_eq!(mail["to"], json!(["j\u{fc}rgen@example.net"]));
    assert!(mail["options"].as_array().unwrap().contains(&json!("SMTPUTF8")));
}

fn encrypted(tls: &str, certificate: &TestCertificate) -> Program {
    let options = json!({
        "tls": tls,
        "cert": certificate.certificate(),
        "key": certificate.key(),
        "user": "gateway",
        "password": "correct horse",
    });
    Program::start("smtp_server.py", &options)
}

fn encrypted_settings(port: u16, security: SmtpSecurity, password: &str) -> SmtpSettings {
    let password = Secret::new(password.to_owned());
    let credentials = Some(SmtpCredentials { user: "gateway".to_owned(), password });
    SmtpSettings { security, credentials, ..settings(port) }
}

async fn check_encrypted(tls: &str, security: SmtpSecurity) {
    let certificate = TestCertificate::new();
    let mut server = encrypted(tls, &certificate);
    let mut settings = encrypted_settings(server.port(), security, "correct horse");
    let stranger = SmtpSender::new(settings.clone()).unwrap();
    let error = failure(&stranger, "ann@example.net").await;
    assert_eq!(error.kind.as_str(), "connect", "an unknown certificate is not trusted");

    settings.ca_file = Some(certificate.certificate());
    let sender = SmtpSender::new(settings.clone()).unwrap();
    send(&sender, "ann@example.net").await.unwrap();
    let mail = &server.ask(&json!("state"))["mails"][0];
    assert_eq!((&mail["encrypted"], &mail["login"]), (&json!(true), &json!("gateway")));

    settings.credentials.as_mut().unwrap().password = Secret::new("wrong horse".to_owned());
    let sender = SmtpSender::new(settings).unwrap();
    let error = failure(&sender, "ann@example.net").await;
    assert_eq!(
        error.to_string().split(';').next(),
        Some("login was not accepted (SMTP 535 5.7.8)")
    );
    let shown = format!("{error:?} {sender:?}");
    assert!(!shown.contains("horse"), "{shown} shows the password");
}

#[tokio::test]
async fn starttls_and_login_work() {
    check_encrypted("starttls", SmtpSecurity::StartTls).await;
}

#[tokio::test]
async fn tls_from_the_first_byte_and_login_work() {
    check_encrypted("tls", SmtpSecurity::Tls).await;
}

#[tokio::test]
async fn starttls_is_never_given_up() {
    let mut server = Program::start("smtp_server.py", &json!({}));
    let settings = encrypted_settings(server.port(), SmtpSecurity::StartTls, "correct horse");
    let sender = SmtpSender::new(settings).unwrap();
    let error = failure(&sender, "ann@example.net").await;
    assert!(error.to_string().contains("STARTTLS is not supported"), "{error}");
    assert_eq!(server.ask(&json!("state"))["mails"], json!([]));
}

#[tokio::test]
async fn a_relay_that_is_away_is_worth_another_attempt() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let sender = SmtpSender::new(settings(port)).unwrap();
    let error = failure(&sender, "ann@example.net").await;
    assert_eq!(error.kind.as_str(), "connect");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let check = |change: fn(&mut SmtpSettings), expected: &str| {
        let mut settings = settings(25);
        change(&mut settings);
        let error = SmtpSender::new(settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    };
    check(|s| s.from = "gateway".to_owned(), "the sender of mails is not an address");
    check(|s| s.from = "a@b.example\r\nBcc: c@d.example".to_owned(), "the sender of mails");
    check(|s| s.reply_to = Some(String::new()), "the reply address of mails");
    check(|s| s.hello_name = Some("a b".to_owned()), "the HELO name");
    check(|s| s.hello_name = Some("a\r\nMAIL".to_owned()), "the HELO name");
    check(
        |s| s.unsubscribe_url = Some("https://a.example/>, <x".to_owned()),
        "the unsubscribe URL",
    );
    check(|s| s.unsubscribe_url = Some("javascript:x".to_owned()), "the unsubscribe URL");
    check(
        |s| {
            s.host = "mail.example".to_owned();
            s.credentials = Some(SmtpCredentials {
                user: "u".to_owned(),
                password: Secret::new("p".to_owned()),
            });
        },
        "use starttls or tls",
    );
    check(
        |s| {
            s.security = SmtpSecurity::Tls;
            s.ca_file = Some(PathBuf::from("absent.pem"));
        },
        "CA file absent.pem cannot be read",
    );
}

#[tokio::test]
async fn another_target_is_no_mail() {
    let sender = SmtpSender::new(settings(25)).unwrap();
    let error = sender.send(&testing::outgoing("d1"), NOW).await.unwrap_err();
    assert_eq!(error.kind, SendErrorKind::Unfit("a mail needs an email address"));
}
