//! What all HTTP of this module shares: how long it waits, how the program calls itself, whom it trusts, and
//! the proxy that the environment puts in between.

use std::sync::Once;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::retry::retry_after;

/// How long a connection may take to be made.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a server may stay silent within an answer.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How the program calls itself.
pub(super) const USER_AGENT: &str = concat!("cocoon/", env!("CARGO_PKG_VERSION"));

/// An HTTP client as all of this module's are.
pub(super) fn client_builder() -> reqwest::ClientBuilder {
    install_crypto();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(USER_AGENT)
}

/// The proxy through which requests to `url` go, as reqwest takes it from the environment; without its
/// password.
pub(super) fn proxy_of(url: &str) -> Option<String> {
    let through = Matcher::from_env().intercept(&url.parse().ok()?)?;
    let (scheme, host) = (through.uri().scheme_str()?, through.uri().host()?);
    let port = through.uri().port();
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    Some(format!("{scheme}://{host}{port}"))
}

/// How an error names the proxy that was asked.
pub(super) fn through(proxy: Option<&String>) -> String {
    proxy.map_or_else(String::new, |proxy| format!(" (through the proxy {proxy})"))
}

/// Whether a request got no answer because nobody could be asked, and not because somebody broke off.
pub(super) fn is_unreachable(error: &reqwest::Error) -> bool {
    error.is_connect() || error.is_builder() || error.is_redirect()
}

/// How long the server asks to be left alone.
pub(super) fn asked_to_wait(headers: &HeaderMap) -> Option<Duration> {
    let asked = headers.get(RETRY_AFTER)?.to_str().ok()?;
    retry_after(asked, jiff::Timestamp::now())
}

/// reqwest is built without a TLS provider of its own and takes the process's.
fn install_crypto() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // An error means that the process has one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
