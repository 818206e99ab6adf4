//! Rules about hooks and the namespaces that use them.

use gateway_core::settings::Access;
use reqwest::Url;

use super::Checker;
use crate::config::sections::OnFailure;
use crate::notify::senders::SigningSecret;

impl Checker<'_> {
    pub(super) fn hooks(&mut self) {
        let config = self.config;
        for (key, url) in [
            ("hooks.connect.url", &config.hook_connect.url),
            ("hooks.subscribe.url", &config.hook_subscribe.url),
            ("hooks.publish.url", &config.hook_publish.url),
            ("hooks.rpc.url", &config.hook_rpc.url),
        ] {
            self.require(
                url.as_deref().is_none_or(is_plain_url),
                &[key],
                "is no URL that can be posted to, or holds a user or a password",
                "give one such as http://app.internal:3000/hooks; hooks.secrets proves who asks",
            );
        }
        self.require(
            config.hooks.secrets.iter().all(|s| SigningSecret::parse(s.expose()).is_some()),
            &["hooks.secrets"],
            "has a secret that is not whsec_ and the base64 form of 24 to 64 bytes",
            "make one: echo whsec_$(openssl rand -base64 32)",
        );
        self.require(
            config.hook_connect.url.is_none()
                || config.hook_connect.timeout < config.limits.auth_timeout,
            &["hooks.connect.timeout", "limits.auth_timeout"],
            "is not shorter than limits.auth_timeout, which would end the connection first",
            "lower it, or raise limits.auth_timeout",
        );
        self.require(
            config.hooks.answer_bytes_max <= config.outbox.connection_bytes_max,
            &["hooks.answer_bytes_max", "outbox.connection_bytes_max"],
            "is more than a client's outbox takes",
            "lower it, or raise outbox.connection_bytes_max",
        );
        self.hooked_namespaces();
    }

    fn hooked_namespaces(&mut self) {
        let config = self.config;
        for (name, namespace) in &config.namespaces {
            let (subscribe, publish) = (&config.hook_subscribe, &config.hook_publish);
            for (field, hook_field, access, asks, url, on_failure) in [
                (
                    "subscribe",
                    "subscribe_hook",
                    namespace.subscribe,
                    namespace.subscribe_hook,
                    &subscribe.url,
                    subscribe.on_failure,
                ),
                (
                    "publish",
                    "publish_hook",
                    namespace.publish,
                    namespace.publish_hook,
                    &publish.url,
                    publish.on_failure,
                ),
            ] {
                let rule = format!("namespaces.{name}.{field}");
                let hook = format!("namespaces.{name}.{hook_field}");
                let (url_key, failure_key) =
                    (format!("hooks.{field}.url"), format!("hooks.{field}.on_failure"));
                self.require(
                    !asks || url.is_some(),
                    &[&hook, &url_key],
                    &format!("needs an application to ask, and {url_key} is not set"),
                    &format!("set {url_key}, or {hook_field} = false"),
                );
                self.require(
                    access != Access::Hook || url.is_some(),
                    &[&rule, &url_key],
                    &format!("lets the application decide, and {url_key} is not set"),
                    &format!("set {url_key}, or choose another rule"),
                );
                self.require(
                    access != Access::Hook || on_failure == OnFailure::Deny,
                    &[&rule, &failure_key],
                    &format!("lets only the application decide, and {failure_key} would let everybody in without it"),
                    &format!("set {failure_key} = \"deny\", or choose another rule"),
                );
            }
        }
    }
}

fn is_plain_url(text: &str) -> bool {
    Url::parse(text)
        .is_ok_and(|url| url.has_host() && url.username().is_empty() && url.password().is_none())
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sources};

    /// Exactly one error must be found, and it must hold all words; none when there are no words.
    fn check(assignments: &[(&str, &str)], words: &[&str]) {
        let variables = assignments.iter().map(|(key, value)| {
            (format!("ARCHMESH__{}", key.replace('.', "__").to_uppercase()), (*value).to_owned())
        });
        let loaded =
            Config::load(&Sources { variables: variables.collect(), ..Sources::default() });
        match loaded {
            Ok(_) => assert!(words.is_empty(), "{assignments:?} is taken"),
            Err(errors) => {
                let text = errors.to_string();
                assert_eq!(errors.0.len(), 1, "{text}");
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
                assert!(!words.is_empty(), "{text}");
            }
        }
    }

    const URL: &str = "http://127.0.0.1:3000/";

    #[test]
    fn what_cannot_work_is_refused_with_a_mend() {
        let subscribe = ("hooks.subscribe.url", URL);
        check(&[subscribe, ("namespaces.chat.subscribe_hook", "true")], &[]);
        check(&[subscribe, ("namespaces.chat.subscribe", "hook")], &[]);
        check(
            &[("namespaces.chat.subscribe_hook", "true")],
            &["namespaces.chat.subscribe_hook", "set hooks.subscribe.url"],
        );
        check(
            &[("namespaces.chat.publish", "hook")],
            &["namespaces.chat.publish", "set hooks.publish.url"],
        );
        let open = ("hooks.subscribe.on_failure", "allow");
        check(
            &[subscribe, open, ("namespaces.chat.subscribe", "hook")],
            &["let everybody in", "deny"],
        );
        check(&[subscribe, open, ("namespaces.chat.subscribe_hook", "true")], &[]);
        check(
            &[("hooks.connect.url", URL), ("hooks.connect.timeout", "60s")],
            &["hooks.connect.timeout", "limits.auth_timeout"],
        );
        check(&[("hooks.connect.timeout", "60s")], &[]);
        check(&[("hooks.rpc.url", "http://user:secret@app/")], &["hooks.rpc.url", "password"]);
        check(&[("hooks.rpc.url", "ftp://app/")], &["hooks.rpc.url"]);
        check(&[("hooks.secrets", "hunter2")], &["hooks.secrets", "openssl rand"]);
        check(&[("hooks.answer_bytes_max", "8MiB")], &["hooks.answer_bytes_max", "outbox"]);
    }
}
