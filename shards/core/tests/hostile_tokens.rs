//! Hazard: a token that should be refused opens a connection.
//!
//! Set-up: an [`Authenticator`] with one key per algorithm (made here, for these tests only), an issuer, an audience
//! and a required `exp`. At least 200 distinct hostile tokens must all be refused, most with a known error; every
//! good token, which differs from some hostile one in a single point, must be accepted.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use gateway_core::auth::{
    AuthError, Authenticator, KeyAlgorithm, KeySet, SigningKey, TokenRules, VerificationKey, mint,
};
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::{CertificateParams, KeyPair, PublicKeyData, RsaKeySize};
use serde_json::json;

const NOW: Duration = Duration::from_secs(1_800_000_000);
const SECRET: &[u8; 64] = b"a test secret, sixty-four bytes long, known to this test alone!!";
const GOOD_CLAIMS: &str =
    r#"{"sub":"ann","iss":"https://issuer.test","aud":"gateway","exp":1800000600}"#;

/// Key pairs of one party, one per asymmetric kind.
struct Party {
    secret: Vec<u8>,
    rsa: KeyPair,
    ec: KeyPair,
    ed: KeyPair,
}

impl Party {
    fn new(secret: &[u8]) -> Self {
        Self {
            secret: secret.to_vec(),
            rsa: KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
            ec: KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
            ed: KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        }
    }

    fn pair(&self, algorithm: KeyAlgorithm) -> Option<&KeyPair> {
        match algorithm {
            KeyAlgorithm::Rs256 | KeyAlgorithm::Ps256 => Some(&self.rsa),
            KeyAlgorithm::Es256 => Some(&self.ec),
            KeyAlgorithm::EdDsa => Some(&self.ed),
            KeyAlgorithm::Hs256 | KeyAlgorithm::Hs384 | KeyAlgorithm::Hs512 => None,
        }
    }

    fn signing_key(&self, algorithm: KeyAlgorithm) -> SigningKey {
        match self.pair(algorithm) {
            Some(pair) => SigningKey::from_pem(algorithm, pair.serialize_pem().as_bytes()),
            None => SigningKey::from_secret(algorithm, &self.secret),
        }
        .unwrap()
    }

    fn verification_key(&self, algorithm: KeyAlgorithm) -> VerificationKey {
        match self.pair(algorithm) {
            Some(pair) => VerificationKey::from_pem(algorithm, pair.public_key_pem().as_bytes()),
            None => VerificationKey::from_secret(algorithm, &self.secret),
        }
        .unwrap()
        .with_id(Some(key_id(algorithm).into()))
    }

    /// The signature part over `message`.
    fn sign(&self, message: &str, algorithm: KeyAlgorithm) -> String {
        let pem = self.pair(algorithm).map(KeyPair::serialize_pem).unwrap_or_default();
        let (key, algorithm) = match algorithm {
            KeyAlgorithm::Hs256 => (EncodingKey::from_secret(&self.secret), Algorithm::HS256),
            KeyAlgorithm::Hs384 => (EncodingKey::from_secret(&self.secret), Algorithm::HS384),
            KeyAlgorithm::Hs512 => (EncodingKey::from_secret(&self.secret), Algorithm::HS512),
            KeyAlgorithm::Rs256 => {
                (EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(), Algorithm::RS256)
            }
            KeyAlgorithm::Ps256 => {
                (EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(), Algorithm::PS256)
            }
            KeyAlgorithm::Es256 => {
                (EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(), Algorithm::ES256)
            }
            KeyAlgorithm::EdDsa => {
                (EncodingKey::from_ed_pem(pem.as_bytes()).unwrap(), Algorithm::EdDSA)
            }
        };
        jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap()
    }

    /// A token with this exact header and payload text.
    fn forge(&self, header: &str, claims: &str, algorithm: KeyAlgorithm) -> String {
        let message = message(header, claims);
        let signature = self.sign(&message, algorithm);
        format!("{message}.{signature}")
    }

    /// A correctly signed HS256 token with this payload text.
    fn hs256(&self, claims: &str) -> String {
        self.forge(r#"{"alg":"HS256"}"#, claims, KeyAlgorithm::Hs256)
    }
}

fn parties() -> &'static (Party, Party) {
    static PARTIES: OnceLock<(Party, Party)> = OnceLock::new();
    PARTIES.get_or_init(|| (Party::new(SECRET), Party::new(&[b'x'; 64])))
}

fn issuer() -> &'static Party {
    &parties().0
}

fn attacker() -> &'static Party {
    &parties().1
}

fn key_id(algorithm: KeyAlgorithm) -> String {
    format!("key-{algorithm}")
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn message(header: &str, claims: &str) -> String {
    format!("{}.{}", encode(header), encode(claims))
}

fn rules() -> TokenRules {
    TokenRules {
        issuers: vec!["https://issuer.test".into()],
        audiences: vec!["gateway".into()],
        ..TokenRules::default()
    }
}

fn authenticator() -> Authenticator {
    let keys: Vec<_> =
        KeyAlgorithm::ALL.iter().map(|&algorithm| issuer().verification_key(algorithm)).collect();
    Authenticator::new(rules(), keys.into(), None)
}

/// Name, token, the error it must meet when it matters which.
#[derive(Default)]
struct Hostile(Vec<(String, String, Option<AuthError>)>);

impl Hostile {
    fn add(&mut self, name: impl Into<String>, token: String, error: impl Into<Option<AuthError>>) {
        self.0.push((name.into(), token, error.into()));
    }
}

fn header_of(algorithm: KeyAlgorithm) -> String {
    format!(r#"{{"alg":"{algorithm}","typ":"JWT"}}"#)
}

fn good(algorithm: KeyAlgorithm) -> String {
    issuer().forge(&header_of(algorithm), GOOD_CLAIMS, algorithm)
}

fn algorithm_names(list: &mut Hostile) {
    for name in ["none", "None", "NONE", "nOnE", "noNe", " none", "none\\u0000", ""] {
        let header = format!(r#"{{"alg":"{name}"}}"#);
        let message = message(&header, GOOD_CLAIMS);
        list.add(
            format!("alg {name:?}, no signature"),
            format!("{message}."),
            AuthError::Algorithm,
        );
        let signed = issuer().forge(&header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
        list.add(format!("alg {name:?}, signed"), signed, AuthError::Algorithm);
    }
    for name in [
        "hs256", "Hs256", "HS256 ", "HS1", "HS224", "RS384", "RS512", "PS512", "ES384", "ES512",
        "ES256K", "EDDSA", "Ed448", "dir", "A128KW", "RSA-OAEP",
    ] {
        let header = format!(r#"{{"alg":"{name}"}}"#);
        let token = issuer().forge(&header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
        list.add(format!("alg {name:?}"), token, AuthError::Algorithm);
    }
    for value in ["null", "0", "true", "[]", r#"["HS256"]"#, "{}"] {
        let header = format!(r#"{{"alg":{value}}}"#);
        let token = issuer().forge(&header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
        list.add(format!("alg {value}"), token, AuthError::Algorithm);
    }
    let token = issuer().forge(r#"{"typ":"JWT"}"#, GOOD_CLAIMS, KeyAlgorithm::Hs256);
    list.add("alg absent", token, AuthError::Algorithm);
    let twice = [
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","alg":"none"}"#,
        r#"{"alg":"HS256","\u0061lg":"HS256"}"#,
        r#"{"alg":"HS256","kid":"key-HS256","kid":"key-RS256"}"#,
    ];
    for header in twice {
        let token = issuer().forge(header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
        list.add(format!("header {header}"), token, AuthError::Malformed);
    }
}

/// The public half of a key pair used as an HMAC secret, in every form an attacker can have it.
fn key_confusion(list: &mut Hostile) {
    let mut forms: Vec<(String, Vec<u8>)> = Vec::new();
    for algorithm in [KeyAlgorithm::Rs256, KeyAlgorithm::Es256, KeyAlgorithm::EdDsa] {
        let pair = issuer().pair(algorithm).unwrap();
        let pem = pair.public_key_pem();
        forms.push((format!("{algorithm} PEM"), pem.clone().into_bytes()));
        forms.push((format!("{algorithm} PEM trimmed"), pem.trim_end().as_bytes().to_vec()));
        forms.push((format!("{algorithm} PEM, LF"), pem.replace("\r\n", "\n").into_bytes()));
        forms.push((format!("{algorithm} DER"), pair.subject_public_key_info()));
        forms.push((format!("{algorithm} raw"), pair.der_bytes().to_vec()));
        forms.push((format!("{algorithm} base64"), STANDARD.encode(pair.der_bytes()).into_bytes()));
        let certificate =
            CertificateParams::new(vec!["issuer.test".to_owned()]).unwrap().self_signed(pair);
        forms.push((format!("{algorithm} certificate"), certificate.unwrap().pem().into_bytes()));
    }
    forms.push(("empty".to_owned(), Vec::new()));
    forms.push(("NUL".to_owned(), vec![0; 32]));
    for (form, secret) in forms {
        for (name, algorithm) in [("HS256", Algorithm::HS256), ("HS512", Algorithm::HS512)] {
            let message = message(&format!(r#"{{"alg":"{name}"}}"#), GOOD_CLAIMS);
            let key = EncodingKey::from_secret(&secret);
            let signature =
                jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
            let token = format!("{message}.{signature}");
            list.add(format!("{form} as the {name} secret"), token, AuthError::Signature);
        }
    }
}

fn key_ids(list: &mut Hostile) {
    let long = "k".repeat(1_000);
    let ids = [
        "",
        " ",
        "unknown",
        "../../dev/null",
        "/dev/null",
        "..\\\\..\\\\windows\\\\win.ini",
        "' OR '1'='1",
        "x' UNION SELECT 'secret' --",
        "; DROP TABLE keys",
        "https://evil.test/jwks.json",
        "file:///etc/passwd",
        "key-HS256\\u0000",
        "\\u0000",
        "key-hs256",
        "KEY-HS256",
        " key-HS256",
        "$(id)",
        "|| id",
        "%00",
        "key-RS256",
        "\u{1f511}",
        &long,
    ];
    for id in ids {
        let header = format!(r#"{{"alg":"HS256","kid":"{id}"}}"#);
        let token = issuer().forge(&header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
        let short: String = id.chars().take(40).collect();
        list.add(format!("kid {short:?}"), token, AuthError::UnknownKey);
    }
    for value in ["null", "0", "true", r#"["key-HS256"]"#, r#"{"a":1}"#] {
        let header = format!(r#"{{"alg":"HS256","kid":{value}}}"#);
        let token = issuer().forge(&header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
        list.add(format!("kid {value}"), token, AuthError::Malformed);
    }
    let header = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(64 * 1024));
    let token = issuer().forge(&header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
    list.add("kid of 64 KiB", token, AuthError::TooLong);
}

fn header_parameters(list: &mut Hostile) {
    let x = encode(attacker().ed.der_bytes());
    let jwk = format!(r#""jwk":{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}"#);
    let certificate = CertificateParams::new(vec!["evil.test".to_owned()])
        .unwrap()
        .self_signed(&attacker().ed)
        .unwrap();
    let chain = format!(r#""x5c":["{}"]"#, STANDARD.encode(certificate.der()));
    for (name, parameter) in [
        ("jwk", jwk.as_str()),
        ("x5c", chain.as_str()),
        ("jku", r#""jku":"https://evil.test/jwks.json""#),
        ("jku local", r#""jku":"file:///tmp/jwks.json""#),
        ("x5u", r#""x5u":"https://evil.test/chain.pem""#),
        ("x5t", r#""x5t":"AAAA""#),
    ] {
        let header = format!(r#"{{"alg":"EdDSA",{parameter}}}"#);
        let token = attacker().forge(&header, GOOD_CLAIMS, KeyAlgorithm::EdDsa);
        list.add(format!("{name}, the attacker's key"), token, AuthError::Signature);
    }
    for parameter in [
        r#""crit":["exp"]"#,
        r#""crit":[]"#,
        r#""crit":null"#,
        r#""crit":["b64"],"b64":false"#,
        r#""crit":["https://evil.test/x"],"https://evil.test/x":1"#,
        r#""b64":false"#,
        r#""b64":true"#,
        r#""zip":"DEF""#,
        r#""zip":"GZIP""#,
        r#""enc":"A256GCM""#,
        r#""enc":null"#,
        r#""epk":{}"#,
        r#""p2c":2147483647"#,
        r#""p2s":"AA""#,
        r#""iv":"AA""#,
        r#""tag":"AA""#,
    ] {
        let header = format!(r#"{{"alg":"HS256",{parameter}}}"#);
        let token = issuer().forge(&header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
        list.add(format!("header {parameter}"), token, AuthError::Header);
    }
}

/// Every header with every other algorithm's signature, and with the right algorithm of a foreign key.
fn foreign_signatures(list: &mut Hostile) {
    for named in KeyAlgorithm::ALL {
        for used in KeyAlgorithm::ALL {
            if named != used {
                let token = issuer().forge(&header_of(named), GOOD_CLAIMS, used);
                list.add(format!("{named} signed by {used}"), token, AuthError::Signature);
            }
        }
        let token = attacker().forge(&header_of(named), GOOD_CLAIMS, named);
        list.add(format!("{named} of a foreign key"), token, AuthError::Signature);
        let header = format!(r#"{{"alg":"{named}","kid":"{}"}}"#, key_id(named));
        let token = attacker().forge(&header, GOOD_CLAIMS, named);
        list.add(format!("{named} of a foreign key, right kid"), token, AuthError::Signature);
    }
}

fn damaged_signatures(list: &mut Hostile) {
    for algorithm in KeyAlgorithm::ALL {
        let token = good(algorithm);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut variants = vec![
            ("stripped", Vec::new()),
            ("zero", vec![0; bytes.len()]),
            ("cut by one", bytes[..bytes.len() - 1].to_vec()),
            ("half", bytes[..bytes.len() / 2].to_vec()),
            ("one byte", bytes[..1].to_vec()),
            ("longer", [bytes.as_slice(), &[0]].concat()),
            ("twice", [bytes.as_slice(), bytes.as_slice()].concat()),
            ("reversed", bytes.iter().rev().copied().collect()),
        ];
        if algorithm == KeyAlgorithm::Es256 {
            let one = [[0; 31].as_slice(), &[1]].concat();
            variants.push(("r = 0", [[0; 32].as_slice(), &bytes[32..]].concat()));
            variants.push(("s = 0", [&bytes[..32], [0; 32].as_slice()].concat()));
            variants.push(("r = s = 1", [one.as_slice(), one.as_slice()].concat()));
            variants.push(("r = s = 2^256-1", vec![0xff; 64]));
            variants.push(("DER", vec![0x30, 6, 2, 1, 1, 2, 1, 1]));
        }
        if algorithm == KeyAlgorithm::EdDsa {
            variants.push(("S + L", [&bytes[..32], &plus_group_order(&bytes[32..])].concat()));
        }
        for (name, variant) in variants {
            let token = format!("{signed}.{}", encode(variant));
            list.add(format!("{algorithm} signature {name}"), token, AuthError::Signature);
        }
    }
}

/// The other encoding of an Ed25519 scalar, which a lax verifier takes for a second valid signature.
fn plus_group_order(scalar: &[u8]) -> Vec<u8> {
    let mut order = [0_u8; 32];
    order[..16].copy_from_slice(&[
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14,
    ]);
    order[31] = 0x10;
    let mut carry = 0_u16;
    scalar
        .iter()
        .zip(order)
        .map(|(&a, b)| {
            let sum = u16::from(a) + u16::from(b) + carry;
            carry = sum >> 8;
            sum as u8
        })
        .collect()
}

fn flipped_bits(list: &mut Hostile) {
    for algorithm in [KeyAlgorithm::Hs256, KeyAlgorithm::Es256, KeyAlgorithm::Rs256] {
        let token = good(algorithm);
        let parts: Vec<Vec<u8>> =
            token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
        for part in 0..3 {
            for step in 0..6 {
                let mut flipped = parts.clone();
                let at = flipped[part].len() * step / 6;
                flipped[part][at] ^= 1 << (step % 8);
                let text: Vec<_> = flipped.iter().map(encode).collect();
                let error = (part > 0).then_some(AuthError::Signature);
                list.add(format!("{algorithm} bit {step} of part {part}"), text.join("."), error);
            }
        }
    }
}

fn shapes(list: &mut Hostile) {
    let token = good(KeyAlgorithm::Hs256);
    let parts: Vec<&str> = token.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let malformed = [
        ("one part", header.to_owned()),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{token}.")),
        ("four parts, content", format!("{token}.{signature}")),
        ("five parts (JWE)", format!("{header}.{payload}.{payload}.{payload}.{signature}")),
        ("dots", "..".to_owned()),
        ("one dot", ".".to_owned()),
        ("many dots", ".".repeat(4_000)),
        ("no header", format!(".{payload}.{signature}")),
        ("no payload", format!("{header}..{signature}")),
        ("leading space", format!(" {token}")),
        ("trailing space", format!("{token} ")),
        ("trailing newline", format!("{token}\n")),
        ("newline inside", format!("{header}.\n{payload}.{signature}")),
        ("tab inside", format!("{header}\t.{payload}.{signature}")),
        ("NUL at the end", format!("{token}\0")),
        ("NUL inside", format!("{header}.{payload}\0.{signature}")),
        ("unicode", format!("{header}.{payload}.{signature}\u{e9}")),
        ("unicode dot", token.replace('.', "\u{3002}")),
        ("full-width letters", format!("\u{ff45}{}", &token[1..])),
        ("padded header", format!("{header}=.{payload}.{signature}")),
        ("padded signature", format!("{header}.{payload}.{signature}=")),
        ("percent-encoded", token.replace('.', "%2E")),
        ("quoted", format!("\"{token}\"")),
        ("bearer", format!("Bearer {token}")),
        ("plus and slash", format!("{header}.{payload}.+/{}", &signature[2..])),
    ];
    for (name, text) in malformed {
        list.add(name, text, AuthError::Malformed);
    }
    list.add("empty", String::new(), AuthError::Missing);
    list.add("1 MiB", format!("{token}{}", "A".repeat(1024 * 1024)), AuthError::TooLong);
    list.add("1 MiB of dots", ".".repeat(1024 * 1024), AuthError::TooLong);
    // Correctly signed over a text that is no canonical base64url.
    let hidden = r#"{"sub":"ann?>","iss":"https://issuer.test","aud":"gateway","exp":1800000600}"#;
    for (name, text) in
        [("padded", URL_SAFE.encode(hidden)), ("standard alphabet", STANDARD.encode(hidden))]
    {
        assert!(text.contains(['=', '+', '/']), "{name} must differ from base64url");
        let message = format!("{}.{text}", encode(r#"{"alg":"HS256"}"#));
        let signature = issuer().sign(&message, KeyAlgorithm::Hs256);
        list.add(
            format!("payload {name}, signed"),
            format!("{message}.{signature}"),
            AuthError::Malformed,
        );
    }
    header_shapes(list);
}

fn header_shapes(list: &mut Hostile) {
    for header in [
        "",
        "{",
        "[]",
        "null",
        "7",
        "\"HS256\"",
        "{\"alg\":\"HS256\"}x",
        "{alg:'HS256'}",
        "\u{feff}{\"alg\":\"HS256\"}",
    ] {
        let token = issuer().forge(header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
        list.add(format!("header {header:?}"), token, AuthError::Malformed);
    }
    let deep = format!(r#"{{"alg":"HS256","x":{}{}}}"#, "[".repeat(2_500), "]".repeat(2_500));
    list.add(
        "deep header",
        issuer().forge(&deep, GOOD_CLAIMS, KeyAlgorithm::Hs256),
        AuthError::Malformed,
    );
}

/// Good claims without one, and that one given as raw JSON.
fn claims_with(name: &str, value: &str) -> String {
    let rest: Vec<String> = [
        ("sub", r#""ann""#),
        ("iss", r#""https://issuer.test""#),
        ("aud", r#""gateway""#),
        ("exp", "1800000600"),
    ]
    .iter()
    .filter(|(known, _)| *known != name)
    .map(|(known, value)| format!(r#""{known}":{value}"#))
    .collect();
    if value.is_empty() {
        format!("{{{}}}", rest.join(","))
    } else {
        format!(r#"{{{},"{name}":{value}}}"#, rest.join(","))
    }
}

/// Claims of wrong value or type: name, the error, and the JSON texts that must meet it; an empty text is an absent
/// claim.
#[rustfmt::skip]
const BAD_CLAIMS: &[(&str, AuthError, &[&str])] = &[
    ("exp", AuthError::Claims, &[
        "", "null", "true", "\"1800000600\"", "\"\"", "\"never\"", "[]", "[1800000600]", "{}", "-1", "-0", "1e400",
        "-1e400", "1800000600000", "1e18", "18446744073709551616", "1e308",
    ]),
    ("exp", AuthError::Expired, &["0", "1", "1799999970", "1799999969.9", "1.7e9", "0.0", "1e-400"]),
    ("nbf", AuthError::NotYetValid, &["1800000031", "1800000030.5", "2e9", "253402300799"]),
    ("nbf", AuthError::Claims, &[
        "null", "\"0\"", "\"1800000031\"", "-1", "1e400", "[]", "{}", "false", "1800000031000",
    ]),
    ("iat", AuthError::NotYetValid, &["1800000031", "3e9"]),
    ("iat", AuthError::Claims, &["null", "\"now\"", "-5", "1e400", "[1]", "1800000000000"]),
    ("iss", AuthError::Issuer, &[
        "", "\"\"", "\"https://evil.test\"", "\"https://issuer.test/\"", "\"HTTPS://ISSUER.TEST\"",
        "\"https://issuer.test\\u0000\"",
    ]),
    ("iss", AuthError::Claims, &["null", "1", "true", "[\"https://issuer.test\"]", "{}"]),
    ("aud", AuthError::Audience, &[
        "", "\"\"", "\"other\"", "\"Gateway\"", "\"gateway \"", "[]", "[\"other\"]", "[\"other\",\"gatewa\"]",
    ]),
    ("aud", AuthError::Claims, &[
        "null", "1", "{}", "{\"gateway\":1}", "[1]", "[\"gateway\",1]", "[[\"gateway\"]]", "[null]",
    ]),
    ("sub", AuthError::Claims, &[
        "", "null", "\"\"", "1", "1.5", "true", "[]", "[\"ann\"]", "{\"id\":\"ann\"}", "\"a\\u0000b\"", "\"a\\nb\"",
        "\"\\u007f\"", "\"\\u0085\"", "\"\\ud800\"",
    ]),
    ("jti", AuthError::Claims, &["null", "1", "\"\"", "[]", "\"\\u0000\""]),
    ("channels", AuthError::Claims, &[
        "null", "\"a\"", "{}", "[1]", "[\"\"]", "[null]", "[[\"a\"]]", "[\"a\\u0000\"]",
    ]),
    ("caps", AuthError::Claims, &[
        "null", "\"sub\"", "{}", "[1]", "[{}]", "[\"sub\"]", r#"[{"channels":["*"],"allow":["root"]}]"#,
        r#"[{"channels":["a*b"],"allow":["sub"]}]"#, r#"[{"channels":"*","allow":["sub"]}]"#,
    ]),
    ("info", AuthError::Claims, &["null", "1", "\"x\"", "[]", "true"]),
    ("info", AuthError::Malformed, &[
        r#"{"a":1,"a":2}"#, r#"{"b":[{"x":1,"\u0078":2}]}"#, r#"{"a":1e400}"#,
    ]),
    ("channel", AuthError::Channel, &["\"chat:room-7\"", "null"]),
    ("other", AuthError::Malformed, &[
        "NaN", "Infinity", "-Infinity", "01", "0x1", "'a'", "{\"a\":1,\"a\":1}",
    ]),
];

/// Whole payloads that are no acceptable JSON object.
const BAD_PAYLOADS: &[&str] = &[
    "",
    "null",
    "[]",
    "7",
    "\"x\"",
    "{",
    "{}{}",
    r#"{"sub":"ann","sub":"root","iss":"https://issuer.test","aud":"gateway","exp":1800000600}"#,
    r#"{"sub":"ann","s\u0075b":"root","iss":"https://issuer.test","aud":"gateway","exp":1800000600}"#,
    r#"{"exp":1,"sub":"ann","iss":"https://issuer.test","aud":"gateway","exp":1800000600}"#,
    r#"{"sub":"ann","iss":"https://issuer.test","aud":"gateway","exp":NaN}"#,
    r#"{"sub":"ann","iss":"https://issuer.test","aud":"gateway","exp":1800000600,}"#,
];

/// Bad claims in tokens with a good signature.
fn bad_claims(list: &mut Hostile) {
    let mut add = |name: &str, value: &str, error: AuthError| {
        let token = issuer().hs256(&claims_with(name, value));
        let short: String = value.chars().take(40).collect();
        list.add(format!("{name}: {short:?}"), token, error);
    };
    for (name, error, values) in BAD_CLAIMS {
        for value in *values {
            add(name, value, *error);
        }
    }
    let long = format!("\"{}\"", "u".repeat(256));
    let many: Vec<String> = (0..129).map(|n| format!("\"c{n}\"")).collect();
    add("sub", &long, AuthError::Claims);
    add("jti", &long, AuthError::Claims);
    add("channels", &format!("[{}]", many.join(",")), AuthError::Claims);
    add("info", &format!(r#"{{"x":"{}"}}"#, "i".repeat(4 * 1024)), AuthError::Claims);
    add("other", &format!("{}{}", "[".repeat(100), "]".repeat(100)), AuthError::Malformed);
    for payload in BAD_PAYLOADS {
        list.add(format!("payload {payload:?}"), issuer().hs256(payload), AuthError::Malformed);
    }
    let padded = format!("{GOOD_CLAIMS}{}", " ".repeat(8 * 1024));
    list.add("payload above the limit", issuer().hs256(&padded), AuthError::TooLong);
}

fn hostile() -> Vec<(String, String, Option<AuthError>)> {
    let mut list = Hostile::default();
    algorithm_names(&mut list);
    key_confusion(&mut list);
    key_ids(&mut list);
    header_parameters(&mut list);
    foreign_signatures(&mut list);
    damaged_signatures(&mut list);
    flipped_bits(&mut list);
    shapes(&mut list);
    bad_claims(&mut list);
    list.0
}

#[test]
fn at_least_200_hostile_tokens_and_none_is_accepted() {
    let authenticator = authenticator();
    let list = hostile();
    let distinct: BTreeSet<&str> = list.iter().map(|(_, token, _)| token.as_str()).collect();
    assert!(distinct.len() >= 200, "only {} distinct tokens", distinct.len());
    let mut wrong = Vec::new();
    for (name, token, expected) in &list {
        match (authenticator.verify(token, NOW), expected) {
            (Ok(claims), _) => wrong.push(format!("ACCEPTED {name} as {:?}", claims.user)),
            (Err(error), Some(expected)) if error != *expected => {
                wrong.push(format!("{name}: {error:?} instead of {expected:?}"));
            }
            (Err(_), _) => {}
        }
        if authenticator.verify_channel(token, NOW).is_ok() && !name.starts_with("channel:") {
            wrong.push(format!("ACCEPTED {name} as a channel token"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), list.len(), wrong.join("\n"));
}

/// A large limit must not open what the small one happens to hide.
#[test]
fn deep_nesting_is_refused_whatever_the_length_limit() {
    let rules = TokenRules { token_bytes_max: 4 << 20, ..rules() };
    let key = issuer().verification_key(KeyAlgorithm::Hs256);
    let authenticator = Authenticator::new(rules, vec![key].into(), None);
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        for depth in [20, 10_000, 100_000] {
            let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            for name in ["info", "other", "sub", "aud"] {
                let token = issuer().hs256(&claims_with(name, &nested));
                let error = authenticator.verify(&token, NOW).unwrap_err();
                assert_eq!(error, AuthError::Malformed, "{name}, depth {depth}");
            }
            let header = format!(r#"{{"alg":"HS256","x":{nested}}}"#);
            let token = issuer().forge(&header, GOOD_CLAIMS, KeyAlgorithm::Hs256);
            assert_eq!(authenticator.verify(&token, NOW).unwrap_err(), AuthError::Malformed);
        }
    }
}

#[test]
fn good_tokens_of_every_algorithm_and_key_form() {
    let authenticator = authenticator();
    for algorithm in KeyAlgorithm::ALL {
        assert_eq!(&*authenticator.verify(&good(algorithm), NOW).unwrap().user, "ann");
        let key = issuer().signing_key(algorithm).with_id(Some(key_id(algorithm).into()));
        let claims: serde_json::Value = serde_json::from_str(GOOD_CLAIMS).unwrap();
        let token = mint(&key, &claims).unwrap();
        assert_eq!(&*authenticator.verify(&token, NOW).unwrap().user, "ann", "{algorithm}");
    }
    for algorithm in [KeyAlgorithm::Rs256, KeyAlgorithm::Es256, KeyAlgorithm::EdDsa] {
        let pair = issuer().pair(algorithm).unwrap();
        let certificate = CertificateParams::new(vec!["issuer.test".to_owned()])
            .unwrap()
            .self_signed(pair)
            .unwrap();
        let key = VerificationKey::from_pem(algorithm, certificate.pem().as_bytes()).unwrap();
        let authenticator = Authenticator::new(rules(), vec![key].into(), None);
        assert!(authenticator.verify(&good(algorithm), NOW).is_ok(), "{algorithm} certificate");
        let private = pair.serialize_pem();
        assert!(VerificationKey::from_pem(algorithm, private.as_bytes()).is_err());
    }
    let pkcs1 = format!(
        "-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n",
        STANDARD.encode(issuer().rsa.der_bytes())
    );
    let key = VerificationKey::from_pem(KeyAlgorithm::Ps256, pkcs1.as_bytes()).unwrap();
    let authenticator = Authenticator::new(rules(), vec![key].into(), None);
    assert!(authenticator.verify(&good(KeyAlgorithm::Ps256), NOW).is_ok());
}

#[test]
fn keys_of_the_wrong_kind_are_refused_when_they_are_read() {
    let asymmetric =
        [KeyAlgorithm::Rs256, KeyAlgorithm::Ps256, KeyAlgorithm::Es256, KeyAlgorithm::EdDsa];
    for algorithm in asymmetric {
        for other in asymmetric {
            let pem = issuer().pair(other).unwrap().public_key_pem();
            let same_kind =
                std::ptr::eq(issuer().pair(algorithm).unwrap(), issuer().pair(other).unwrap());
            let read = VerificationKey::from_pem(algorithm, pem.as_bytes());
            assert_eq!(read.is_ok(), same_kind, "{algorithm} from a {other} key");
        }
    }
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().public_key_pem();
    assert!(VerificationKey::from_pem(KeyAlgorithm::Es256, p384.as_bytes()).is_err());
}

#[test]
fn keys_of_a_key_set_check_tokens() {
    let ec = encode(&issuer().ec.der_bytes()[1..33]);
    let ec_y = encode(&issuer().ec.der_bytes()[33..]);
    let ed = encode(issuer().ed.der_bytes());
    // PKCS#1: a SEQUENCE of the 257-byte modulus INTEGER and the exponent 65537.
    let rsa = issuer().rsa.der_bytes();
    let modulus = encode(&rsa[9..rsa.len() - 5]);
    let document = json!({"keys": [
        {"kty": "RSA", "kid": "r", "n": modulus, "e": "AQAB", "use": "sig"},
        {"kty": "RSA", "kid": "p", "alg": "PS256", "n": modulus, "e": "AQAB", "key_ops": ["verify"]},
        {"kty": "EC", "kid": "e", "crv": "P-256", "x": ec, "y": ec_y},
        {"kty": "OKP", "kid": "d", "crv": "Ed25519", "x": ed},
        {"kty": "RSA", "kid": "enc", "n": modulus, "e": "AQAB", "use": "enc"},
    ]});
    let (keys, skipped) = KeySet::from_jwks(&document.to_string(), 64 * 1024, false).unwrap();
    assert_eq!((keys.len(), skipped.len()), (4, 1), "{skipped:?}");
    let authenticator = Authenticator::new(rules(), keys, None);
    for (id, algorithm) in [
        ("r", KeyAlgorithm::Rs256),
        ("p", KeyAlgorithm::Ps256),
        ("e", KeyAlgorithm::Es256),
        ("d", KeyAlgorithm::EdDsa),
    ] {
        let header = format!(r#"{{"alg":"{algorithm}","kid":"{id}"}}"#);
        let token = issuer().forge(&header, GOOD_CLAIMS, algorithm);
        assert_eq!(authenticator.verify(&token, NOW).map(|claims| claims.user), Ok("ann".into()));
        let header = format!(r#"{{"alg":"{algorithm}","kid":"enc"}}"#);
        let token = issuer().forge(&header, GOOD_CLAIMS, algorithm);
        assert_eq!(authenticator.verify(&token, NOW), Err(AuthError::UnknownKey));
    }
    assert_eq!(authenticator.verify(&good(KeyAlgorithm::Hs256), NOW), Err(AuthError::Algorithm));
}

#[test]
fn every_claim_is_read() {
    let claims = json!({
        "sub": "user-7", "jti": "t-1", "iat": 1_799_999_000.5, "nbf": 1_800_000_030, "exp": 1_800_000_600,
        "iss": "https://issuer.test", "aud": ["x", "gateway"], "channels": ["chat:a", "chat:b", "chat:a"],
        "caps": [{"channels": ["workflow:*"], "allow": ["sub", "pub"]}],
        "info": {"name": "Ann \"A\"", "tags": [1, 2]},
    });
    let token = issuer().hs256(&serde_json::to_string_pretty(&claims).unwrap());
    let read = authenticator().verify(&token, NOW).unwrap();
    assert_eq!(&*read.user, "user-7");
    assert_eq!(read.token_id.as_deref(), Some("t-1"));
    assert_eq!(read.issued_at, Some(Duration::from_millis(1_799_999_000_500)));
    assert_eq!(read.expires_at, Some(Duration::from_secs(1_800_000_600)));
    assert_eq!(*read.channels, ["chat:a".into(), "chat:b".into()]);
    assert!(read.capabilities.allows("workflow:9", gateway_core::auth::Permission::Publish));
    assert_eq!(&read.info.unwrap()[..], br#"{"name":"Ann \"A\"","tags":[1,2]}"#);
}

#[test]
fn times_are_judged_with_the_leeway() {
    let authenticator = authenticator();
    let verify = |exp: u64| {
        authenticator.verify(&issuer().hs256(&claims_with("exp", &exp.to_string())), NOW).is_ok()
    };
    assert!(verify(1_799_999_971) && !verify(1_799_999_970));
    let later = NOW + Duration::from_secs(10_000);
    assert_eq!(authenticator.verify(&good(KeyAlgorithm::Hs256), later), Err(AuthError::Expired));
    let rules = TokenRules { require_exp: false, ..rules() };
    let key = issuer().verification_key(KeyAlgorithm::Hs256);
    let lenient = Authenticator::new(rules, vec![key].into(), None);
    let endless = lenient.verify(&issuer().hs256(&claims_with("exp", "")), NOW).unwrap();
    assert_eq!(endless.expires_at, None);
    let text = lenient.verify(&issuer().hs256(&claims_with("exp", "\"1\"")), NOW);
    assert_eq!(text, Err(AuthError::Claims), "a string is not an absent exp");
}

#[test]
fn channel_tokens() {
    let authenticator = authenticator();
    let with = |more: &str| {
        let claims = format!("{},{more}}}", GOOD_CLAIMS.strip_suffix('}').unwrap());
        authenticator.verify_channel(&issuer().hs256(&claims), NOW)
    };
    let claims = with(r#""channel":"chat:private","caps":["pub"],"info":{ "a": 1 }"#).unwrap();
    assert_eq!((&*claims.channel, claims.user.as_deref()), ("chat:private", Some("ann")));
    assert!(claims.publish);
    assert_eq!(claims.info.as_deref(), Some(br#"{"a":1}"#.as_slice()));
    assert!(!with(r#""channel":"chat:private","caps":["sub"]"#).unwrap().publish);
    for more in [
        r#""channel":"""#,
        r#""channel":1"#,
        r#""channel":null"#,
        r#""channel":["a"]"#,
        r#""channel":"a","caps":["root"]"#,
        r#""channel":"a","caps":[{"channels":["*"],"allow":["pub"]}]"#,
        r#""channel":"a","info":[]"#,
        r#""chan":"a""#,
    ] {
        assert_eq!(with(more), Err(AuthError::Claims), "{more}");
    }
    let anyone = issuer().hs256(&claims_with("sub", "").replace('{', r#"{"channel":"a","#));
    assert_eq!(authenticator.verify_channel(&anyone, NOW).unwrap().user, None);
    let separate = vec![attacker().verification_key(KeyAlgorithm::Hs256)].into();
    let main = vec![issuer().verification_key(KeyAlgorithm::Hs256)].into();
    let authenticator = Authenticator::new(rules(), main, Some(separate));
    let claims = claims_with("channel", "\"a\"");
    assert!(authenticator.verify_channel(&attacker().hs256(&claims), NOW).is_ok());
    let own = authenticator.verify_channel(&issuer().hs256(&claims), NOW);
    assert_eq!(own, Err(AuthError::Signature));
}

#[test]
fn without_keys_nothing_is_accepted() {
    let authenticator = Authenticator::new(rules(), KeySet::default(), None);
    assert_eq!(authenticator.verify(&good(KeyAlgorithm::Hs256), NOW), Err(AuthError::NoKeys));
    assert_eq!(authenticator.verify("", NOW), Err(AuthError::Missing));
}

#[test]
fn debug_of_an_authenticator_shows_no_secret() {
    let text = format!("{:?}", authenticator());
    assert!(text.contains("key-HS256"));
    assert!(!text.contains("97, 32, 116, 101, 115, 116"), "{text}");
    assert!(!text.contains("a test secret"), "{text}");
}
