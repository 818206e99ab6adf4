//! Encryption of a push message for one browser: RFC 8291 over the one-record form of RFC 8188 (`aes128gcm`).

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

use super::subscription::PushSubscription;

/// Length of the one record, as far as push services must take it.
const RECORD_BYTES: u32 = 4096;
const SALT_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// Uncompressed point of P-256.
const POINT_BYTES: usize = 65;
/// Salt, length of the record, length of the key's name, and the key as that name.
const HEADER_BYTES: usize = SALT_BYTES + 4 + 1 + POINT_BYTES;
/// Ends the last record.
const LAST_RECORD: u8 = 2;
/// Most bytes of plaintext for which a body stays within 4096 bytes.
pub(super) const PLAINTEXT_BYTES_MAX: usize = RECORD_BYTES as usize - HEADER_BYTES - TAG_BYTES - 1;

/// A length, as HKDF wants it.
#[derive(Clone, Copy)]
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// What must be new for every message.
struct Fresh {
    private_key: PrivateKey,
    salt: [u8; SALT_BYTES],
}

/// Body of the request; nothing when the plaintext is too long or a key is unusable.
pub(super) fn encrypt(plaintext: &[u8], subscription: &PushSubscription) -> Option<Vec<u8>> {
    let mut salt = [0; SALT_BYTES];
    aws_lc_rs::rand::fill(&mut salt).ok()?;
    let private_key = PrivateKey::generate(&ECDH_P256).ok()?;
    encrypt_with(plaintext, subscription, &Fresh { private_key, salt })
}

fn encrypt_with(
    plaintext: &[u8],
    subscription: &PushSubscription,
    fresh: &Fresh,
) -> Option<Vec<u8>> {
    if plaintext.len() > PLAINTEXT_BYTES_MAX {
        return None;
    }
    let receiver = subscription.public_key();
    let sender = fresh.private_key.compute_public_key().ok()?;
    let sender = sender.as_ref();
    let peer = UnparsedPublicKey::new(&ECDH_P256, receiver);
    let input = agree(&fresh.private_key, peer, (), |shared| {
        let extracted = Salt::new(HKDF_SHA256, subscription.auth()).extract(shared);
        expand::<32>(&extracted, &[b"WebPush: info\0", receiver, sender]).ok_or(())
    })
    .ok()?;
    let extracted = Salt::new(HKDF_SHA256, &fresh.salt).extract(&input);
    let key: [u8; 16] = expand(&extracted, &[b"Content-Encoding: aes128gcm\0"])?;
    let nonce: [u8; 12] = expand(&extracted, &[b"Content-Encoding: nonce\0"])?;

    let mut record = plaintext.to_vec();
    record.push(LAST_RECORD);
    // Each key is used once, for this one record.
    LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).ok()?)
        .seal_in_place_append_tag(Nonce::from(&nonce), Aad::empty(), &mut record)
        .ok()?;

    let mut body = Vec::with_capacity(HEADER_BYTES + record.len());
    body.extend_from_slice(&fresh.salt);
    body.extend_from_slice(&RECORD_BYTES.to_be_bytes());
    body.push(POINT_BYTES as u8);
    body.extend_from_slice(sender);
    body.extend_from_slice(&record);
    Some(body)
}

fn expand<const BYTES: usize>(extracted: &Prk, info: &[&[u8]]) -> Option<[u8; BYTES]> {
    let mut out = [0; BYTES];
    extracted.expand(info, Bytes(BYTES)).ok()?.fill(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn subscription(public_key: &str, auth: &str) -> PushSubscription {
        let json = serde_json::json!({
            "endpoint": "https://push.example.net/push/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV",
            "keys": {"p256dh": public_key, "auth": auth},
        });
        PushSubscription::parse(&json.to_string(), false).unwrap()
    }

    fn rfc_subscription() -> PushSubscription {
        subscription(
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "BTBZMqHH6r4Tts7J_aSIgg",
        )
    }

    /// RFC 8291, section 5 and appendix A.
    #[test]
    fn the_example_of_the_specification_fits_byte_for_byte() {
        let private_key = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";
        let private_key = URL_SAFE_NO_PAD.decode(private_key).unwrap();
        let salt = URL_SAFE_NO_PAD.decode("DGv6ra1nlYgDCS1FRnbzlw").unwrap();
        let fresh = Fresh {
            private_key: PrivateKey::from_private_key(&ECDH_P256, &private_key).unwrap(),
            salt: salt.try_into().unwrap(),
        };
        let text = b"When I grow up, I want to be a watermelon";
        let body = encrypt_with(text, &rfc_subscription(), &fresh).unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.encode(body),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLoc\
             InmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLV\
             WGNWQexSgSxsj_Qulcy4a-fN"
        );
    }

    #[test]
    fn every_message_has_its_own_salt_and_key() {
        let subscription = rfc_subscription();
        let one = encrypt(b"same", &subscription).unwrap();
        let other = encrypt(b"same", &subscription).unwrap();
        assert_ne!(one[..SALT_BYTES], other[..SALT_BYTES]);
        assert_ne!(one[SALT_BYTES + 5..HEADER_BYTES], other[SALT_BYTES + 5..HEADER_BYTES]);
        assert_ne!(one[HEADER_BYTES..], other[HEADER_BYTES..]);
    }

    #[test]
    fn the_body_never_exceeds_what_push_services_take() {
        assert_eq!(PLAINTEXT_BYTES_MAX, 3993);
        let subscription = rfc_subscription();
        let longest = encrypt(&[b'x'; PLAINTEXT_BYTES_MAX], &subscription).unwrap();
        assert_eq!(longest.len(), 4096);
        assert_eq!(encrypt(&[b'x'; PLAINTEXT_BYTES_MAX + 1], &subscription), None);
    }
}
