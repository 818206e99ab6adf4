//! Names in Redis: keys and pub/sub channels of a channel. All of one channel have its name in braces, so that a Redis
//! Cluster keeps them together.

use std::borrow::Cow;

/// Names under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

/// Keys of one channel, in the order of the scripts.
#[derive(Debug)]
pub(super) struct ChannelKeys {
    pub meta: String,
    pub stream: String,
    pub members: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The pub/sub channel.
    pub(super) fn topic(&self, channel: &str) -> String {
        format!("{}:{{{}}}", self.prefix, escape(channel))
    }

    pub(super) fn keys(&self, channel: &str) -> ChannelKeys {
        let topic = self.topic(channel);
        ChannelKeys {
            meta: format!("{topic}:meta"),
            stream: format!("{topic}:stream"),
            members: format!("{topic}:members"),
        }
    }

    pub(super) fn idempotency_key(&self, channel: &str, key: &str) -> String {
        format!("{}:key:{key}", self.topic(channel))
    }

    /// The pub/sub channel of the probe of one node.
    pub(super) fn probe(&self, node: u64) -> String {
        format!("{}:probe:{{{node:016x}}}", self.prefix)
    }

    /// The channel that a pub/sub channel stands for.
    pub(super) fn channel<'a>(&self, topic: &'a str) -> Option<Cow<'a, str>> {
        let rest = topic.strip_prefix(&self.prefix)?.strip_prefix(":{")?;
        Some(unescape(rest.strip_suffix('}')?))
    }
}

/// Braces would end the part that a Redis Cluster hashes.
fn escape(channel: &str) -> Cow<'_, str> {
    if !channel.contains(['{', '}', '%']) {
        return Cow::Borrowed(channel);
    }
    Cow::Owned(channel.replace('%', "%25").replace('{', "%7B").replace('}', "%7D"))
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("%7D", "}").replace("%7B", "{").replace("%25", "%"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn topics_name_their_channel() {
        let names = Names::new("a:b");
        for channel in ["chat:1", "}", "{}", "%7B", "x%y{z}", "räume/7"] {
            let topic = names.topic(channel);
            assert_eq!(names.channel(&topic).unwrap(), channel);
            assert_eq!(topic.matches(['{', '}']).count(), 2, "{topic}");
        }
        assert_eq!(names.topic("chat:1"), "a:b:{chat:1}");
        assert_eq!(names.keys("chat:1").meta, "a:b:{chat:1}:meta");
        for other in ["a:b:probe:{01}", "a:{chat}", "a:b:{chat", "b:{chat}"] {
            assert_eq!(names.channel(other), None, "{other}");
        }
    }
}
