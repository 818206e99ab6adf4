//! What does a token cost, by algorithm, and what does the cache save?

#![allow(missing_docs, reason = "a benchmark has no interface")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use gateway_core::auth::{
    Authenticator, KeyAlgorithm, KeySet, SigningKey, TokenCache, TokenRules, VerificationKey, mint,
};
use rcgen::{KeyPair, RsaKeySize};
use serde_json::json;

const NOW: Duration = Duration::from_secs(1_800_000_000);
const SECRET: &[u8] = b"a secret of the benchmarks, 32 bytes or more";

fn pair(algorithm: KeyAlgorithm) -> (SigningKey, VerificationKey) {
    let keys = match algorithm {
        KeyAlgorithm::Es256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyAlgorithm::EdDsa => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        _ => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
    }
    .expect("a key");
    let signing = SigningKey::from_pem(algorithm, keys.serialize_pem().as_bytes());
    let verification = VerificationKey::from_pem(algorithm, keys.public_key_pem().as_bytes());
    (signing.expect("a private key"), verification.expect("a public key"))
}

fn token(key: &SigningKey, user: u64) -> String {
    let claims = json!({
        "sub": format!("user-{user}"), "iat": NOW.as_secs(), "exp": NOW.as_secs() + 3600,
        "caps": [{"channels": ["workflow:*"], "allow": ["sub", "pub"]}],
    });
    mint(key, &claims).expect("claims can be signed")
}

fn verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("auth");
    let secret = (
        SigningKey::from_secret(KeyAlgorithm::Hs256, SECRET).expect("long enough"),
        VerificationKey::from_secret(KeyAlgorithm::Hs256, SECRET).expect("long enough"),
    );
    let keys = [
        ("hs256", secret),
        ("es256", pair(KeyAlgorithm::Es256)),
        ("eddsa", pair(KeyAlgorithm::EdDsa)),
        ("rs256", pair(KeyAlgorithm::Rs256)),
    ];
    for (name, (signing, verification)) in keys {
        let authenticator =
            Authenticator::new(TokenRules::default(), KeySet::from(vec![verification]), None);
        let token = token(&signing, 1);
        group.bench_function(format!("verify_{name}"), |b| {
            b.iter(|| authenticator.verify(black_box(&token), NOW).expect("a good token"));
        });
    }
    group.finish();
}

fn cache(c: &mut Criterion) {
    let signing = SigningKey::from_secret(KeyAlgorithm::Hs256, SECRET).expect("long enough");
    let key = VerificationKey::from_secret(KeyAlgorithm::Hs256, SECRET).expect("long enough");
    let authenticator = Authenticator::new(TokenRules::default(), KeySet::from(vec![key]), None);
    let tokens: Vec<_> = (0..20_000).map(|user| token(&signing, user)).collect();
    let mut cache = TokenCache::new(10_000, 42, Duration::from_secs(30));
    for token in &tokens {
        let claims = authenticator.verify(token, NOW).expect("a good token");
        cache.insert(token, Arc::new(claims), NOW);
    }
    let kept = tokens.iter().rev().find(|token| cache.get(token, NOW).is_some());
    let kept = kept.expect("half of them are kept");
    c.bench_function("auth/cached", |b| {
        b.iter(|| cache.get(black_box(kept), NOW).expect("kept"));
    });
    let claims = Arc::new(authenticator.verify(&tokens[0], NOW).expect("a good token"));
    let mut next = tokens.iter().cycle();
    c.bench_function("auth/insert_into_full_cache", |b| {
        b.iter(|| {
            let token = next.next().expect("a cycle never ends");
            cache.insert(token, Arc::clone(&claims), NOW);
        });
    });
}

criterion_group!(benches, verify, cache);
criterion_main!(benches);
