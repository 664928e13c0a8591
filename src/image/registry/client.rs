//! The HTTP client of a registry, and the proxy that the environment puts before it.

use std::sync::Once;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use oci_client::errors::OciDistributionError;

use super::RegistryError;
use crate::image::hosts::Endpoint;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a server may stay silent within an answer.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How the program calls itself.
pub(super) const USER_AGENT: &str = concat!("cocoon/", env!("CARGO_PKG_VERSION"));

/// The client by which a registry is asked.
pub(super) fn http_client(endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
    let failed = |source: reqwest::Error| client_failed(endpoint, source.into());
    let builder = client_builder()
        .https_only(!endpoint.plain)
        .connect_timeout(connect_timeout(endpoint))
        .tls_danger_accept_invalid_certs(endpoint.skip_verify);
    let ca = endpoint.ca.iter();
    let ca = ca.map(|der| reqwest::Certificate::from_der(der));
    let ca = ca.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let builder = match ca.is_empty() {
        true => builder,
        false => builder.tls_certs_merge(ca),
    };
    builder.build().map_err(failed)
}

/// The proxy through which requests to `url` go, as reqwest takes it from the environment.
pub(super) fn proxy_of(url: &str) -> Option<String> {
    let through = Matcher::from_env().intercept(&url.parse().ok()?)?;
    let (scheme, host) = (through.uri().scheme_str()?, through.uri().host()?);
    let port = through.uri().port();
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    Some(format!("{scheme}://{host}{port}"))
}

/// How long a connection to it may take to be made.
pub(super) fn connect_timeout(endpoint: &Endpoint) -> Duration {
    endpoint.connect_timeout.unwrap_or(CONNECT_TIMEOUT)
}

/// That there is no client for it.
pub(super) fn client_failed(endpoint: &Endpoint, source: OciDistributionError) -> RegistryError {
    RegistryError::Client {
        registry: endpoint.host.clone(),
        source: Box::new(source),
    }
}

/// An HTTP client as all of this module's are.
pub(in crate::image) fn client_builder() -> reqwest::ClientBuilder {
    install_crypto();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(USER_AGENT)
}

/// reqwest is built without a TLS provider of its own and takes the process's.
fn install_crypto() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // An error means that the process has one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
