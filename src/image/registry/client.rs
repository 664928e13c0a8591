//! The HTTP client of a registry, as what is configured of it wants it.

use std::time::Duration;

use oci_client::errors::OciDistributionError;

use super::RegistryError;
use crate::image::hosts::Endpoint;
use crate::image::http::{CONNECT_TIMEOUT, client_builder};

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
