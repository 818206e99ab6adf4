//! `archmesh token`: a signed token for development and tests.
//!
//! Signs only with a configured shared secret. A gateway that has public keys only cannot sign, which is their point.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value, json};

use crate::cli::{ConfigArgs, output};
use crate::config::sections::Algorithm;
use crate::config::value::{Kind, Raw, Value as ConfigValue};
use crate::config::{Config, Secret, TokenKey};

/// What the token says.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// User id.
    #[arg(long, value_name = "ID", value_parser = parse_user)]
    user: String,
    /// Channel that the server subscribes the connection to; may be given several times.
    #[arg(long = "channel", value_name = "CHANNEL", conflicts_with = "channel_token")]
    channels: Vec<String>,
    /// How long the token is valid.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_lifetime)]
    expires_in: Duration,
    /// JSON object shown in presence.
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    info: Option<Value>,
    /// JSON array of capabilities: for a connection `[{"channels":["chat:*"],"allow":["sub","pub"]}]`, for a channel
    /// token `["pub"]`.
    #[arg(long, value_name = "JSON", value_parser = parse_array)]
    caps: Option<Value>,
    /// Make a token for this channel instead of one for a connection.
    #[arg(long, value_name = "CHANNEL")]
    channel_token: Option<String>,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error(
        "only public keys are configured, and a token is signed with a secret: have the service that holds the private \
         key make it, or set JWT_SECRET for development"
    )]
    NoSecret,
    #[error("no key is configured: set JWT_SECRET")]
    NoKey,
    #[error("the token cannot be signed: {0}")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

fn parse_user(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn parse_lifetime(text: &str) -> Result<Duration, String> {
    const KIND: Kind = Kind::Duration(1_000, 10 * 365 * 86_400_000);
    match KIND.parse(&Raw::Text(text.to_owned())) {
        Ok(ConfigValue::Duration(lifetime)) => Ok(lifetime),
        Ok(_) => Err(format!("expected {}", KIND.expected())),
        Err(problem) => Err(format!("{problem}; expected {}", KIND.expected())),
    }
}

fn parse_object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("expected a JSON object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_array(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Array(_)) => Ok(value),
        Ok(_) => Err("expected a JSON array".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Prints the token.
pub fn run(args: &TokenArgs, config: &Config) -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match token(args, config, now) {
        Ok(token) => output::print(&format!("{token}\n")),
        Err(error) => {
            output::fail(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// A development token for a connection of `user`, for whoever starts a development node and wants to greet with one.
/// `None` when no secret is configured.
pub fn development_token(config: &Config, user: &str, now_unix: Duration) -> Option<String> {
    let (algorithm, secret) = signing_key(config, false).ok()?;
    let claims = claims(config, user, Duration::from_secs(86_400), now_unix);
    sign(algorithm, &secret, &Value::Object(claims)).ok()
}

fn token(args: &TokenArgs, config: &Config, now_unix: Duration) -> Result<String, TokenError> {
    let (algorithm, secret) = signing_key(config, args.channel_token.is_some())?;
    let mut claims = claims(config, &args.user, args.expires_in, now_unix);
    if let Some(channel) = &args.channel_token {
        claims.insert("channel".to_owned(), json!(channel));
    }
    if !args.channels.is_empty() {
        claims.insert("channels".to_owned(), json!(args.channels));
    }
    for (name, value) in [("info", &args.info), ("caps", &args.caps)] {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value.clone());
        }
    }
    sign(algorithm, &secret, &Value::Object(claims))
}

fn claims(
    config: &Config,
    user: &str,
    lifetime: Duration,
    now_unix: Duration,
) -> Map<String, Value> {
    let now = now_unix.as_secs();
    let mut claims = Map::new();
    claims.insert(config.auth.user_claim.clone(), json!(user));
    claims.insert("iat".to_owned(), json!(now));
    claims.insert("exp".to_owned(), json!(now + lifetime.as_secs()));
    if let Some(issuer) = config.auth.issuers.first() {
        claims.insert("iss".to_owned(), json!(issuer));
    }
    if let Some(audience) = config.auth.audiences.first() {
        claims.insert("aud".to_owned(), json!(audience));
    }
    claims
}

fn signing_key(config: &Config, channel: bool) -> Result<(Algorithm, Secret<Vec<u8>>), TokenError> {
    if let (true, Some(secret)) = (channel, &config.auth.channel_token_secret) {
        return Ok((Algorithm::Hs256, Secret::new(secret.expose().clone().into_bytes())));
    }
    let found = config.token_keys.iter().find_map(|key| match key {
        TokenKey::Secret { algorithm, secret } => Some((*algorithm, secret.clone())),
        _ => None,
    });
    let missing =
        if config.token_keys.is_empty() { TokenError::NoKey } else { TokenError::NoSecret };
    found.ok_or(missing)
}

fn sign(
    algorithm: Algorithm,
    secret: &Secret<Vec<u8>>,
    claims: &Value,
) -> Result<String, TokenError> {
    let algorithm = match algorithm {
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::Hs384 => jsonwebtoken::Algorithm::HS384,
        Algorithm::Hs512 => jsonwebtoken::Algorithm::HS512,
        Algorithm::Rs256 | Algorithm::Ps256 | Algorithm::Es256 | Algorithm::EdDsa => {
            return Err(TokenError::NoSecret);
        }
    };
    let key = EncodingKey::from_secret(secret.expose());
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).map_err(TokenError::Sign)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;
    use crate::config::{DEVELOPMENT_JWT_SECRET, Sources};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TokenArgs,
    }

    fn args(line: &[&str]) -> TokenArgs {
        Line::try_parse_from([&["token"], line].concat()).unwrap().args
    }

    fn config(variables: &[(&str, &str)]) -> Config {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&Sources { variables, ..Sources::default() }).unwrap().config
    }

    fn now() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_connection_token_says_what_was_asked() {
        let config = config(&[
            ("JWT_ALGORITHM", "HS512"),
            ("JWT_ISSUER", "me"),
            ("JWT_AUDIENCE", "you,them"),
        ]);
        let args = args(&[
            "--user",
            "u1",
            "--channel",
            "chat:1",
            "--expires-in",
            "5m",
            "--info",
            r#"{"name":"Ada"}"#,
            "--caps",
            r#"[{"channels":["chat:*"],"allow":["pub"]}]"#,
        ]);
        let token = token(&args, &config, now()).unwrap();
        let mut validation = Validation::new(jsonwebtoken::Algorithm::HS512);
        validation.set_audience(&["you"]);
        validation.set_issuer(&["me"]);
        let key = DecodingKey::from_secret(DEVELOPMENT_JWT_SECRET.as_bytes());
        let claims = jsonwebtoken::decode::<Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(claims["sub"], "u1");
        assert_eq!(claims["channels"], json!(["chat:1"]));
        assert_eq!(claims["info"]["name"], "Ada");
        assert_eq!(claims["caps"][0]["allow"], json!(["pub"]));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 300);
    }

    #[test]
    fn a_channel_token_uses_its_own_secret() {
        let secret = "a-secret-of-channel-tokens-only-0123456789";
        let config = config(&[("ARCHMESH__AUTH__CHANNEL_TOKEN_SECRET", secret)]);
        let args = args(&["--user", "u1", "--channel-token", "team:1"]);
        let token = token(&args, &config, now()).unwrap();
        let key = DecodingKey::from_secret(secret.as_bytes());
        let claims =
            jsonwebtoken::decode::<Value>(&token, &key, &Validation::default()).unwrap().claims;
        assert_eq!((&claims["channel"], &claims["sub"]), (&json!("team:1"), &json!("u1")));
    }

    #[test]
    fn public_keys_cannot_sign() {
        let config = config(&[("JWT_JWKS_URL", "https://id.example.com/keys")]);
        let error = token(&args(&["--user", "u1"]), &config, now()).unwrap_err();
        assert!(matches!(error, TokenError::NoSecret));
        assert!(error.to_string().contains("JWT_SECRET"), "the mend is named: {error}");
    }

    #[test]
    fn bad_arguments_are_refused() {
        for line in [
            &["--user", ""][..],
            &["--user", "a", "--expires-in", "60"],
            &["--user", "a", "--expires-in", "0s"],
            &["--user", "a", "--info", "[]"],
            &["--user", "a", "--caps", "{}"],
            &["--user", "a", "--channel", "b", "--channel-token", "c"],
        ] {
            assert!(Line::try_parse_from([&["token"], line].concat()).is_err(), "{line:?}");
        }
    }
}
