//! Tokens and keys: no input may panic, nothing unsigned is accepted, and what a signed token yields is within the
//! promised bounds.

#![no_main]

use std::time::Duration;

use gateway_core::auth::{
    Authenticator, KeyAlgorithm, KeySet, Permission, SigningKey, TokenRules, VerificationKey, mint,
};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

const NOW: Duration = Duration::from_secs(1_800_000_000);
const SECRET: [u8; 32] = [0x5a; 32];

fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.chars().any(char::is_control)
}

fuzz_target!(|bytes: &[u8]| {
    for algorithm in KeyAlgorithm::ALL {
        let _ = VerificationKey::from_pem(algorithm, bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok((keys, _)) = KeySet::from_jwks(text, 65_536, false) {
        assert!(keys.iter().all(|key| !key.algorithm.is_symmetric()));
    }
    let key = VerificationKey::from_secret(KeyAlgorithm::Hs256, &SECRET).expect("32 bytes");
    let rules = TokenRules { require_exp: false, ..TokenRules::default() };
    let authenticator = Authenticator::new(rules, vec![key].into(), None);
    assert!(authenticator.verify(text, NOW).is_err(), "nobody signed this");
    assert!(authenticator.verify_channel(text, NOW).is_err(), "nobody signed this");

    let Ok(claims) = serde_json::from_str::<&RawValue>(text) else { return };
    let key = SigningKey::from_secret(KeyAlgorithm::Hs256, &SECRET).expect("32 bytes");
    let token = mint(&key, &claims).expect("any JSON can be signed");
    if let Ok(claims) = authenticator.verify(&token, NOW) {
        assert!(is_name(&claims.user));
        assert!(claims.expires_at.is_none_or(|end| end + Duration::from_secs(30) > NOW));
        assert!(claims.channels.len() <= 128 && claims.channels.iter().all(|name| is_name(name)));
        assert!(claims.info.is_none_or(|info| info.len() <= 4096));
        claims.capabilities.allows("chat:a", Permission::Publish);
        assert!(authenticator.verify_channel(&token, NOW).is_err(), "a connection token");
    } else if let Ok(claims) = authenticator.verify_channel(&token, NOW) {
        assert!(is_name(&claims.channel));
        assert!(claims.user.is_none_or(|user| is_name(&user)));
    }
});
