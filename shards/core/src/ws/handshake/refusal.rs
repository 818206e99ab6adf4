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
    /// Further headers, such as `Sec-WebSocket-Version` with 426.
    pub extra_headers: Vec<(&'static str, &'static str)>,
}

impl Refusal {
    /// A refusal without further headers.
    pub fn new(status: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, reason, message, retry_after: None, extra_headers: Vec::new() }
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

    /// The whole HTTP/1.1 response.
    pub fn to_http(&self) -> Vec<u8> {
        let code = self.reason.to_ascii_uppercase();
        let body =
            serde_json::json!({ "error": { "code": code, "message": self.message } }).to_string();
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
            .with_header("X-Test", "yes");
        let text = String::from_utf8(refusal.to_http()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        let lines: Vec<_> = head.lines().collect();
        assert!(lines.contains(&"Connection: close"));
        assert!(lines.contains(&"Content-Type: application/json"));
        assert!(lines.contains(&"Retry-After: 2"));
        assert!(lines.contains(&"X-Test: yes"));
        assert!(lines.contains(&format!("Content-Length: {}", body.len()).as_str()));
        let value: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["error"]["code"], "NODE_FULL");
        assert_eq!(value["error"]["message"], "say \"later\"\n");
    }
}
