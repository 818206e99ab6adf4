//! TLS: certificate chain and key from PEM files to a rustls configuration, with errors that name the mend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion};

/// The certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file cannot be read.
    #[error("{what} file {} cannot be read: {source}", path.display())]
    Read {
        /// Certificate or key.
        what: &'static str,
        /// As configured.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is no PEM.
    #[error("{what} file {} is malformed PEM: {reason}", path.display())]
    Malformed {
        /// Certificate or key.
        what: &'static str,
        /// As configured.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file has nothing of the wanted kind in it.
    #[error("{what} file {} holds no {what} (PEM section {section})", path.display())]
    Empty {
        /// Certificate or key.
        what: &'static str,
        /// PEM section that is looked for.
        section: &'static str,
        /// As configured.
        path: PathBuf,
    },
    /// The leaf cannot be parsed.
    #[error("the first certificate in {} cannot be parsed: {reason}", path.display())]
    Leaf {
        /// As configured.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key is not that of the certificate.
    #[error("the private key in {} does not belong to the first certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// Certificate file.
        certificate: PathBuf,
        /// Key file.
        key: PathBuf,
    },
    /// rustls does not accept certificate or key.
    #[error("certificate {} and key {} cannot be used: {source}", certificate.display(), key.display())]
    Refused {
        /// Certificate file.
        certificate: PathBuf,
        /// Key file.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
}

/// A certificate ready for use.
#[derive(Clone, Debug)]
pub(crate) struct LoadedTls {
    /// For every listener.
    pub config: Arc<ServerConfig>,
    /// When the leaf expires, in Unix seconds.
    pub expires_at: i64,
}

/// Reads chain and key. `only_1_3` switches TLS 1.2 off.
///
/// # Errors
/// The first thing that is wrong; nothing is half loaded.
pub(crate) fn load(certificate: &Path, key: &Path, only_1_3: bool) -> Result<LoadedTls, TlsError> {
    let chain = read_chain(certificate)?;
    let private_key = read_key(key)?;
    let expires_at = leaf_expiry(certificate, &chain[0])?;
    let refused = |source| TlsError::Refused {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    };
    let versions: &[&SupportedProtocolVersion] = if only_1_3 {
        &[&rustls::version::TLS13]
    } else {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .map_err(refused)?
        .with_no_client_auth();
    let mut config =
        builder.with_single_cert(chain, private_key).map_err(|source| match source {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() }
            }
            other => refused(other),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(LoadedTls { config: Arc::new(config), expires_at })
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const WHAT: &str = "certificate";
    let text = read(WHAT, path)?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| malformed(WHAT, path, &error))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { what: WHAT, section: "CERTIFICATE", path: path.to_owned() });
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const WHAT: &str = "private key";
    let text = read(WHAT, path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            TlsError::Empty { what: WHAT, section: "PRIVATE KEY", path: path.to_owned() }
        }
        error => malformed(WHAT, path, &error),
    })
}

fn malformed(what: &'static str, path: &Path, error: &pem::Error) -> TlsError {
    TlsError::Malformed { what, path: path.to_owned(), reason: error.to_string() }
}

fn leaf_expiry(path: &Path, leaf: &CertificateDer<'_>) -> Result<i64, TlsError> {
    let parsed = x509_parser::parse_x509_certificate(leaf);
    let (_, leaf) = parsed
        .map_err(|error| TlsError::Leaf { path: path.to_owned(), reason: error.to_string() })?;
    Ok(leaf.validity().not_after.timestamp())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    fn write(directory: &TempDir, name: &str, text: &str) -> PathBuf {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn self_signed() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_good_pair_loads_with_its_expiry() {
        let directory = TempDir::new().unwrap();
        let (certificate, key) = self_signed();
        let certificate = write(&directory, "cert.pem", &certificate);
        let key = write(&directory, "key.pem", &key);
        let loaded = load(&certificate, &key, false).unwrap();
        assert!(loaded.expires_at > 1_700_000_000, "{}", loaded.expires_at);
        assert_eq!(loaded.config.alpn_protocols, [b"http/1.1".to_vec()]);
        load(&certificate, &key, true).unwrap();
    }

    fn check(certificate: Option<&str>, key: Option<&str>, expected: &str) {
        let directory = TempDir::new().unwrap();
        let (good_certificate, good_key) = self_signed();
        let certificate = write(&directory, "cert.pem", certificate.unwrap_or(&good_certificate));
        let key = write(&directory, "key.pem", key.unwrap_or(&good_key));
        let error = load(&certificate, &key, false).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let (other_certificate, other_key) = self_signed();
        check(Some(""), None, "holds no certificate");
        check(Some(&other_key), None, "holds no certificate");
        check(None, Some(""), "holds no private key");
        check(None, Some(&other_certificate), "holds no private key");
        check(None, Some(&other_key), "does not belong to");
        check(
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            None,
            "cannot be parsed",
        );
        check(
            Some("-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"),
            None,
            "malformed PEM",
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("absent.pem"), Path::new("absent.key"), false).unwrap_err();
        assert!(
            error.to_string().contains("certificate file absent.pem cannot be read"),
            "{error}"
        );
    }
}
