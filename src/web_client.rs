//! HTTP requests out of the gateway: what they have in common, whoever makes them.
//!
//! Proxies of the environment are not used, no referer is sent, no redirect is followed unless the caller says so, and bodies are
//! read within a bound.

use std::error::Error;
use std::path::{Path, PathBuf};

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Response};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Whose certificates a client accepts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trust<'a> {
    /// Nobody's: every URL is plain `http`, and the host need not have certificates of authorities.
    Nobody,
    /// Those of the host's authorities, and of this PEM bundle.
    Host(Option<&'a Path>),
}

/// A client cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// The file of CA certificates cannot be read.
    #[error("CA file {} cannot be read: {source}", path.display())]
    CaFile {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file of CA certificates cannot be used.
    #[error("CA file {} is not a PEM bundle of CA certificates", path.display())]
    CaContent {
        /// As configured.
        path: PathBuf,
    },
    /// TLS cannot be set up, usually because the system has no CA certificates.
    #[error(
        "TLS cannot be set up: {0}; install the system's CA certificates (package ca-certificates) or name a CA file"
    )]
    Tls(String),
}

/// A body did not come whole.
#[derive(Debug)]
pub(crate) enum BodyError {
    /// The connection broke, or the time was over.
    Broken(reqwest::Error),
    /// It has more bytes than this.
    TooLarge(usize),
}

/// What every client begins with; [`build`] makes one of it.
pub(crate) fn builder(trust: Trust<'_>) -> Result<ClientBuilder, TrustError> {
    // Done here so that no caller can forget it; a provider that is installed already stays.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let builder = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("archmesh-gateway/", env!("CARGO_PKG_VERSION")));
    Ok(match trust {
        Trust::Nobody => builder.tls_certs_only([]),
        Trust::Host(None) => builder,
        Trust::Host(Some(path)) => {
            let certificates = read_ca_file(path)?;
            let certificates = certificates.iter().map(|der| Certificate::from_der(der));
            builder.tls_certs_merge(certificates.collect::<Result<Vec<_>, _>>().map_err(tls)?)
        }
    })
}

/// The client.
pub(crate) fn build(builder: ClientBuilder) -> Result<Client, TrustError> {
    builder.build().map_err(tls)
}

fn tls(error: reqwest::Error) -> TrustError {
    TrustError::Tls(root_cause(&error))
}

/// The body of an answer, if it has at most `bytes_max`.
pub(crate) async fn read_body(
    mut response: Response,
    bytes_max: usize,
) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(BodyError::Broken)? {
        if body.len() + chunk.len() > bytes_max {
            return Err(BodyError::TooLarge(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The certificates of a PEM bundle; never none.
///
/// # Errors
/// The file cannot be read, is no PEM, or holds no certificate.
pub(crate) fn read_ca_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let pem = std::fs::read(path)
        .map_err(|source| TrustError::CaFile { path: path.to_owned(), source })?;
    let content = || TrustError::CaContent { path: path.to_owned() };
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| content())?;
    if certificates.is_empty() { Err(content()) } else { Ok(certificates) }
}

/// The innermost cause of an error, where libraries tell the useful part, on one bounded line.
pub(crate) fn root_cause(error: &dyn Error) -> String {
    const CHARS_MAX: usize = 160;
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    cause.to_string().chars().map(shown).take(CHARS_MAX).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bundle_with_certificates_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(matches!(read_ca_file(&path), Err(TrustError::CaFile { .. })));
        for bad in ["", "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(read_ca_file(&path), Err(TrustError::CaContent { .. })), "{bad:?}");
        }
        let certificate =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
        std::fs::write(&path, certificate.repeat(2)).unwrap();
        assert_eq!(read_ca_file(&path).unwrap().len(), 2);
    }

    #[test]
    fn the_innermost_cause_is_told_on_one_line() {
        let inner = std::io::Error::other("line one\r\nline two");
        let outer = TrustError::CaFile { path: PathBuf::from("ca.pem"), source: inner };
        assert_eq!(root_cause(&outer), "line one  line two");
        let long = std::io::Error::other("x".repeat(500));
        assert_eq!(root_cause(&long).len(), 160);
    }
}
