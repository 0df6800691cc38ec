//! Whom to trust.
//!
//! TLS uses `ring`, since `aws-lc-rs` would add a large C build. The Mozilla roots are compiled in, so that a daemon works
//! where there are none (a bare container); the system's are added, since a company's own are there. Most of those are
//! the same ones, which are kept once.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use rustls::{ClientConfig, RootCertStore};

use crate::error::{ErrorKind, ProviderError};

/// The system's roots that are not compiled in, read once. One that cannot be read is left out: the others may do.
static SYSTEM: LazyLock<Vec<TrustAnchor<'static>>> = LazyLock::new(|| {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let compiled_in = |anchor: &TrustAnchor<'_>| {
        webpki_roots::TLS_SERVER_ROOTS.iter().any(|known| {
            known.subject == anchor.subject
                && known.subject_public_key_info == anchor.subject_public_key_info
        })
    };
    store.roots.retain(|anchor| !compiled_in(anchor));
    store.roots
});

/// A client's TLS, with the certificates in the file `extra` trusted too, and the system's if `system` says so.
pub(super) fn config(extra: Option<&Path>, system: bool) -> Result<ClientConfig, ProviderError> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if system {
        roots.extend(SYSTEM.iter().cloned());
    }
    if let Some(path) = extra {
        let wrong = |why: String| {
            let message = format!(
                "the extra certificates in {} cannot be used: {why}",
                path.display()
            );
            ProviderError::new(ErrorKind::Configuration, message)
        };
        let mut found = 0;
        for certificate in
            CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?
        {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| wrong(error.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(wrong("the file has no certificate in PEM form".into()));
        }
    }
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ProviderError::new(ErrorKind::Configuration, error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
