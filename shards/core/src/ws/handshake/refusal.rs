//! The HTTP answer to a request that does not become a WebSocket.

use std::time::Duration;

/// An HTTP answer instead of an upgrade; the connection closes after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Stable snake_case word for logs and metrics; in upper case the `code` of the body.
    pub reason: &'static str,
    /// What is wrong, for people.
    pub message: String,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// URL of a node that may take the client.
    pub location: Option<Box<str>>,
    /// Further headers, such as `Sec-WebSocket-Version` with 426.
    pub extra_headers: Vec<(&'static str, &'static str)>,
}

impl Refusal {
    /// A refusal without further headers.
    pub fn new(status: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        let extra_headers = Vec::new();
        Self { status, reason, message, retry_after: None, location: None, extra_headers }
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.extra_headers.push((name, value));
        self
    }

    /// Tells when to try again.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// Names a node that may take the client. A text that could not stand in a header is left out.
    #[must_use]
    pub fn with_location(mut self, url: &str) -> Self {
        self.location = url.bytes().all(|byte| byte.is_ascii_graphic()).then(|| url.into());
        self
    }

    /// The whole HTTP/1.1 response.
    pub fn to_http(&self) -> Vec<u8> {
        let code = self.reason.to_ascii_uppercase();
        let mut body = serde_json::json!({ "error": { "code": code, "message": self.message } });
        if let Some(url) = &self.location {
            body["url"] = (&**url).into();
        }
        let body = body.to_string();
        let mut out = format!(
            "HTTP/1.1 {} {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n",
            self.status,
            phrase(self.status),
            body.len()
        );
        if let Some(retry_after) = self.retry_after {
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            out.push_str("Retry-After: ");
            out.push_str(&seconds.to_string());
            out.push_str("\r\n");
        }
        if let Some(url) = &self.location {
            out.push_str("Location: ");
            out.push_str(url);
            out.push_str("\r\n");
        }
        for (name, value) in &self.extra_headers {
            out.push_str(name);
            out.push_str(": ");
            out.push_str(value);
            out.push_str("\r\n");
        }
        out.push_str("\r\n");
        out.push_str(&body);
        out.into_bytes()
    }
}

/// Reason phrase of the statuses that refuse a WebSocket.
fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn response_is_complete_and_escaped() {
        let refusal = Refusal::new(503, "node_full", "say \"later\"\n")
            .with_retry_after(Duration::from_millis(1_001))
            .with_header("X-Test", "yes")
            .with_location("wss://b.example/ws?a=b");
        let text = String::from_utf8(refusal.to_http()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        let lines: Vec<_> = head.lines().collect();
        assert!(lines.contains(&"Connection: close"));
        assert!(lines.contains(&"Content-Type: application/json"));
        assert!(lines.contains(&"Retry-After: 2"));
        assert!(lines.contains(&"X-Test: yes"));
        assert!(lines.contains(&"Location: wss://b.example/ws?a=b"));
        assert!(lines.contains(&format!("Content-Length: {}", body.len()).as_str()));
        let value: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["error"]["code"], "NODE_FULL");
        assert_eq!(value["error"]["message"], "say \"later\"\n");
        assert_eq!(value["url"], "wss://b.example/ws?a=b");
    }

    #[test]
    fn a_location_adds_no_header_of_its_own() {
        for bad in ["wss://b/\r\nSet-Cookie: a=b", "wss://b/ ws", "wss://b/\u{e4}"] {
            assert_eq!(Refusal::new(503, "node_full", "later").with_location(bad).location, None);
        }
    }
}
