//! Hazard: a token, key or key set nobody thought of panics the shard, or is accepted.
//!
//! Set-up: random text, and random damage to a good token.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use gateway_core::auth::{
    Authenticator, KeyAlgorithm, KeySet, SigningKey, TokenRules, VerificationKey, mint,
};
use proptest::prelude::*;
use serde_json::json;

const NOW: Duration = Duration::from_secs(1_800_000_000);
const SECRET: [u8; 64] = [0x5a; 64];

fn authenticator() -> Authenticator {
    let keys: Vec<_> = [KeyAlgorithm::Hs256, KeyAlgorithm::Hs512]
        .map(|algorithm| VerificationKey::from_secret(algorithm, &SECRET).unwrap())
        .into();
    Authenticator::new(TokenRules::default(), keys.into(), None)
}

fn sign(claims: &serde_json::Value) -> String {
    mint(&SigningKey::from_secret(KeyAlgorithm::Hs256, &SECRET).unwrap(), claims).unwrap()
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,20}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::hash_map(
                prop_oneof![
                    Just("channels".to_owned()),
                    Just("allow".to_owned()),
                    "[a-z]{0,8}".prop_map(Into::into),
                ],
                inner,
                0..5
            )
            .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

proptest! {
    #[test]
    fn random_text_is_refused(text in r"\PC{0,300}") {
        prop_assert!(authenticator().verify(&text, NOW).is_err());
        prop_assert!(authenticator().verify_channel(&text, NOW).is_err());
    }

    #[test]
    fn one_changed_byte_is_refused(at in 0_usize..100, byte in 0x20_u8..0x7f) {
        let token = sign(&json!({"sub": "ann", "exp": NOW.as_secs() + 60}));
        prop_assert!(authenticator().verify(&token, NOW).is_ok());
        let mut bytes = token.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(authenticator().verify(&changed, NOW).is_ok(), changed == token);
    }

    #[test]
    fn any_claim_of_any_type_stays_within_bounds(
        name in prop::sample::select(vec![
            "sub", "exp", "nbf", "iat", "jti", "iss", "aud", "channels", "caps", "info", "channel", "x",
        ]),
        value in any_json(),
    ) {
        let mut claims = json!({"sub": "ann", "exp": NOW.as_secs() + 60});
        claims[name] = value;
        let token = sign(&claims);
        if let Ok(read) = authenticator().verify(&token, NOW) {
            prop_assert!((1..=255).contains(&read.user.len()));
            prop_assert!(read.expires_at.unwrap() + Duration::from_secs(30) > NOW);
            prop_assert!(read.channels.iter().all(|channel| (1..=255).contains(&channel.len())));
            if let Some(info) = read.info {
                let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
                // Through text: the JSON reader may round a random float by its last bit.
                let sent: serde_json::Value =
                    serde_json::from_str(&claims["info"].to_string()).unwrap();
                prop_assert_eq!(info, sent);
            }
        }
        if let Ok(read) = authenticator().verify_channel(&token, NOW) {
            prop_assert_eq!(&*read.channel, claims["channel"].as_str().unwrap());
        }
    }

    #[test]
    fn random_keys_never_panic(text in r"\PC{0,200}", value in any_json()) {
        for algorithm in KeyAlgorithm::ALL {
            let _ = VerificationKey::from_pem(algorithm, text.as_bytes());
            let pem = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
            prop_assert!(VerificationKey::from_pem(algorithm, pem.as_bytes()).is_err());
        }
        prop_assert!(VerificationKey::from_jwk(&text, true).is_err());
        let document = json!({ "keys": [value] }).to_string();
        let (keys, skipped) = KeySet::from_jwks(&document, document.len(), true).unwrap();
        prop_assert_eq!((keys.len(), skipped.len()), (0, 1));
    }
}
