//! CA certificates of a file, for both TLS clients.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::error::SetupError;

/// The certificates of a PEM bundle; never none.
///
/// # Errors
/// The file cannot be read, is no PEM, or holds no certificate.
pub(crate) fn read_ca_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let pem = std::fs::read(path)
        .map_err(|source| SetupError::CaFile { path: path.to_owned(), source })?;
    let content = || SetupError::CaContent { path: path.to_owned() };
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| content())?;
    if certificates.is_empty() { Err(content()) } else { Ok(certificates) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bundle_with_certificates_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(matches!(read_ca_file(&path), Err(SetupError::CaFile { .. })));
        for bad in ["", "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(read_ca_file(&path), Err(SetupError::CaContent { .. })), "{bad:?}");
        }
        let certificate =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
        std::fs::write(&path, certificate.repeat(2)).unwrap();
        assert_eq!(read_ca_file(&path).unwrap().len(), 2);
    }
}
