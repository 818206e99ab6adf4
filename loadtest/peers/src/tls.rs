//! The certificate of the harness and a client that trusts exactly it.

use std::fs;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::subject::Places;

/// Makes the certificate of `localhost` and its key, unless they are there.
pub fn prepare(places: &Places) -> Result<(), String> {
    if places.certificate().exists() && places.key().exists() {
        return Ok(());
    }
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = made.map_err(|error| format!("making a certificate: {error}"))?;
    let write = |path, text: String| fs::write(path, text).map_err(|e| format!("certificate: {e}"));
    write(places.key(), made.signing_key.serialize_pem())?;
    write(places.certificate(), made.cert.pem())
}

/// The client's side.
pub fn client(places: &Places) -> Result<Arc<ClientConfig>, String> {
    let certificate = CertificateDer::from_pem_file(places.certificate());
    let certificate = certificate.map_err(|error| format!("certificate: {error}"))?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(|error| format!("certificate: {error}"))?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}
