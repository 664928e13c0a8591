//! One repository at one host: its manifests and blobs, by the OCI distribution specification 1.1.
//!
//! ```text
//!   GET /v2/<repository>/manifests/<tag or digest>
//!   GET /v2/<repository>/blobs/<digest>              Range: bytes=<offset>-
//!        │                  ?ns=<registry>, where the host stands in for one
//!        │ 401: credentials are looked up, oci-client gets a token, the request is sent again
//!        └ 429, 5xx: the error is temporary and carries the server's Retry-After
//! ```
//! The requests are made here and not by oci-client because that reads documents of any size into
//! memory, drops `Retry-After`, and does not look at `Content-Range`.
//!
//! Invariants: a document is bounded in size and has the digest that was asked for; credentials go
//! to the host and to the token server that it names, to nobody else, not even where it redirects. The bytes of a blob are
//! **not** checked here.

use std::path::PathBuf;
use std::time::Duration;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciEnvelope};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as OciReference, RegistryOperation};
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::sync::Mutex;

use super::credentials;
use super::hosts::Endpoint;
use super::http::{READ_TIMEOUT, USER_AGENT, asked_to_wait, is_unreachable, proxy_of};
use super::manifest::{self, MAX_DOCUMENT, printable};
use crate::units::Digest;

mod client;
mod error;

use client::{client_failed, connect_timeout, http_client};
pub use error::RegistryError;

/// How long the whole exchange for a token may take.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of an error's explanation is read, in bytes.
const MAX_ERROR_BODY: u64 = 64 << 10;

/// A document and what was found out about it.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) body: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

/// A repository at one host.
pub(crate) struct Repository {
    http: reqwest::Client,
    endpoint: Endpoint,
    name: OciReference,
    /// `https://host:port/v2/<repository>`
    base: String,
    /// `?ns=<registry>`, where the host stands in for one.
    query: String,
    /// The proxy through which the environment wants it to be asked, without its password.
    proxy: Option<String>,
    docker_config: Option<PathBuf>,
    login: Mutex<Login>,
}

/// What opens the repository, and how often it has been renewed.
#[derive(Clone)]
struct Login {
    auth: RegistryAuth,
    renewals: u64,
}

impl Repository {
    /// Prepares access; nothing is sent.
    pub(crate) fn new(
        endpoint: Endpoint,
        repository: &str,
        docker_config: Option<PathBuf>,
    ) -> Result<Self, RegistryError> {
        // The tag is of no importance: tokens are given for the repository.
        let tag = "latest".to_owned();
        let name = OciReference::with_tag(endpoint.host.clone(), repository.to_owned(), tag);
        let scheme = if endpoint.plain { "http" } else { "https" };
        let host = name.resolve_registry();
        let stands_for = endpoint.stands_for.as_ref();
        let base = format!("{scheme}://{host}{}/{repository}", endpoint.root);
        Ok(Self {
            proxy: proxy_of(&base),
            base,
            query: stands_for.map_or_else(String::new, |registry| format!("?ns={registry}")),
            http: http_client(&endpoint)?,
            endpoint,
            name,
            docker_config,
            login: Mutex::new(Login {
                auth: RegistryAuth::Anonymous,
                renewals: 0,
            }),
        })
    }

    /// oci-client's own connection. Made only where a registry wants a login, because each one
    /// reads all CA certificates of the host anew.
    fn token_client(&self) -> Result<Client, RegistryError> {
        let protocol = if self.endpoint.plain {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let ca = self.endpoint.ca.iter().map(|der| Certificate {
            encoding: CertificateEncoding::Der,
            data: der.clone(),
        });
        let config = ClientConfig {
            protocol,
            extra_root_certificates: ca.collect(),
            accept_invalid_certificates: self.endpoint.skip_verify,
            connect_timeout: Some(connect_timeout(&self.endpoint)),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        };
        // Not `Client::new`, which turns an unusable configuration into the default one.
        Client::try_from(config).map_err(|source| client_failed(&self.endpoint, source))
    }

    /// The host, and what is configured of it.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Host and port, as users know the registry.
    pub(crate) fn registry(&self) -> &str {
        &self.endpoint.host
    }

    /// Reads the manifest or index called `target`, a tag or a digest, in one attempt.
    pub(crate) async fn manifest(
        &self,
        target: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, RegistryError> {
        let what = format!("manifest {}:{target}", self.name.repository());
        let request = || {
            self.http
                .get(format!("{}/manifests/{target}{}", self.base, self.query))
                .header(ACCEPT, manifest::ACCEPT)
        };
        let response = self.send(&what, request).await?;
        let response = self.only(&[StatusCode::OK], &what, response).await?;
        self.document(response, &what, expected).await
    }

    /// Reads a small blob, in one attempt.
    pub(crate) async fn small_blob(
        &self,
        what: &str,
        expected: &Digest,
    ) -> Result<Vec<u8>, RegistryError> {
        let request = || self.get_blob(expected);
        let response = self.send(what, request).await?;
        let response = self.only(&[StatusCode::OK], what, response).await?;
        Ok(self.document(response, what, Some(expected)).await?.body)
    }

    /// Opens a blob at `offset`, in one attempt. A server that knows no ranges begins at 0; the
    /// answer tells where the bytes begin.
    pub(crate) async fn blob(
        &self,
        what: &str,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobBody<'_>, RegistryError> {
        let request = || {
            let request = self.get_blob(digest);
            match offset {
                0 => request,
                _ => request.header(RANGE, format!("bytes={offset}-")),
            }
        };
        let response = self.send(what, request).await?;
        let fine = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let response = self.only(&fine, what, response).await?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => start_of(response.headers(), offset),
            _ => Ok(0),
        };
        match start {
            Ok(start) if start <= offset => Ok(BlobBody {
                repository: self,
                response,
                start,
            }),
            Ok(start) => Err(self.wrong_range(what, offset, &start.to_string())),
            Err(answer) => Err(self.wrong_range(what, offset, &answer)),
        }
    }

    fn get_blob(&self, digest: &Digest) -> RequestBuilder {
        let url = format!("{}/blobs/{digest}{}", self.base, self.query);
        self.http.get(url)
    }

    fn wrong_range(&self, what: &str, offset: u64, answer: &str) -> RegistryError {
        RegistryError::WrongRange {
            registry: self.registry().to_owned(),
            what: what.to_owned(),
            offset,
            answer: printable(answer),
        }
    }

    /// Sends a request, and once more with a new token if the registry asks for one.
    async fn send(
        &self,
        what: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let login = self.login.lock().await.clone();
        let first = self.send_as(what, request(), &login).await?;
        if first.status() != StatusCode::UNAUTHORIZED {
            return Ok(first);
        }
        let login = self.renew(login.renewals).await?;
        self.send_as(what, request(), &login).await
    }

    async fn send_as(
        &self,
        what: &str,
        request: RequestBuilder,
        login: &Login,
    ) -> Result<Response, RegistryError> {
        let request = match &login.auth {
            RegistryAuth::Anonymous => request,
            RegistryAuth::Basic(user, password) => request.basic_auth(user, Some(password)),
            RegistryAuth::Bearer(token) => request.bearer_auth(token),
        };
        let sent = request.send().await;
        sent.map_err(|source| self.transport(what, source))
    }

    /// Gets a new token unless another request has done so since renewal number `seen`.
    async fn renew(&self, seen: u64) -> Result<Login, RegistryError> {
        let mut login = self.login.lock().await;
        if login.renewals == seen {
            let credentials = match &self.docker_config {
                Some(config) => credentials::lookup(config, self.registry()).await?,
                None => RegistryAuth::Anonymous,
            };
            login.auth = self.log_in(credentials).await?;
            login.renewals += 1;
        }
        Ok(login.clone())
    }

    /// Trades credentials for a token if the registry deals in tokens.
    async fn log_in(&self, credentials: RegistryAuth) -> Result<RegistryAuth, RegistryError> {
        let client = self.token_client()?;
        let exchange = client.auth(&self.name, &credentials, RegistryOperation::Pull);
        match tokio::time::timeout(TOKEN_TIMEOUT, exchange).await {
            Ok(Ok(Some(token))) => Ok(RegistryAuth::Bearer(token)),
            Ok(Ok(None)) => Ok(credentials),
            Ok(Err(error)) => Err(self.login_error(error)),
            Err(_) => Err(RegistryError::LoginTimeout {
                registry: self.registry().to_owned(),
            }),
        }
    }

    fn login_error(&self, error: OciDistributionError) -> RegistryError {
        match error {
            OciDistributionError::AuthenticationFailure(answer) => {
                self.unauthorized(&explanation(answer.as_bytes()))
            }
            OciDistributionError::RequestError(source) => self.transport("a token", source),
            source => RegistryError::Login {
                registry: self.registry().to_owned(),
                source: Box::new(source),
            },
        }
    }

    fn unauthorized(&self, answer: &str) -> RegistryError {
        RegistryError::Unauthorized {
            registry: self.registry().to_owned(),
            proxy: self.proxy.clone(),
            repository: self.name.repository().to_owned(),
            answer: answer.to_owned(),
        }
    }

    /// Passes a response with one of the given statuses on, and makes an error of any other.
    async fn only(
        &self,
        fine: &[StatusCode],
        what: &str,
        mut response: Response,
    ) -> Result<Response, RegistryError> {
        let code = response.status();
        if fine.contains(&code) {
            return Ok(response);
        }
        let asked = asked_to_wait(response.headers());
        // An explanation that does not come is none.
        let body = bounded(&mut response, MAX_ERROR_BODY).await.ok().flatten();
        let answer = explanation(&body.unwrap_or_default());
        let (registry, what, status) = (self.registry().to_owned(), what.to_owned(), code.as_u16());
        Err(match status {
            401 | 403 => self.unauthorized(&answer),
            404 => RegistryError::NotFound { registry, what },
            408 | 429 | 500..600 => RegistryError::Busy {
                registry,
                what,
                status,
                answer,
                retry_after: asked,
            },
            _ => RegistryError::Refused {
                registry,
                proxy: self.proxy.clone(),
                what,
                status,
                answer,
            },
        })
    }

    async fn document(
        &self,
        mut response: Response,
        what: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, RegistryError> {
        let content_type = response.headers().get(CONTENT_TYPE);
        let content_type = content_type.and_then(|header| header.to_str().ok());
        let content_type = content_type.map(str::to_owned);
        let body = bounded(&mut response, MAX_DOCUMENT)
            .await
            .map_err(|source| self.transport(what, source))?
            .ok_or_else(|| RegistryError::TooLarge {
                registry: self.registry().to_owned(),
                what: what.to_owned(),
                limit: MAX_DOCUMENT,
            })?;
        let digest = Digest::of(&body);
        match expected {
            Some(expected) if *expected != digest => Err(RegistryError::DigestMismatch {
                registry: self.registry().to_owned(),
                what: what.to_owned(),
                expected: *expected,
                actual: digest,
            }),
            _ => Ok(Fetched {
                body,
                digest,
                content_type,
            }),
        }
    }

    fn transport(&self, what: &str, source: reqwest::Error) -> RegistryError {
        let registry = self.registry().to_owned();
        // Addresses of blobs may hold signatures that open them to anyone.
        let source = source.without_url();
        if is_unreachable(&source) {
            RegistryError::Unreachable {
                registry,
                proxy: self.proxy.clone(),
                source,
            }
        } else {
            RegistryError::Interrupted {
                registry,
                what: what.to_owned(),
                source,
            }
        }
    }
}

/// The bytes of a blob, as they arrive.
pub(crate) struct BlobBody<'a> {
    repository: &'a Repository,
    response: Response,
    /// Offset in the blob of the next byte.
    pub(crate) start: u64,
}

impl BlobBody<'_> {
    /// The next bytes, or none at the end of the answer.
    pub(crate) async fn next(&mut self, what: &str) -> Result<Option<bytes::Bytes>, RegistryError> {
        let chunk = self.response.chunk().await;
        let chunk = chunk.map_err(|source| self.repository.transport(what, source))?;
        self.start += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Ok(chunk)
    }
}

/// Where the bytes of a partial answer begin; without a word about it, where they were asked for.
fn start_of(headers: &HeaderMap, asked: u64) -> Result<u64, String> {
    let Some(header) = headers.get(CONTENT_RANGE) else {
        return Ok(asked);
    };
    let text = String::from_utf8_lossy(header.as_bytes()).into_owned();
    let start = text.trim().strip_prefix("bytes ");
    let start = start.and_then(|range| range.split_once('-'));
    start
        .and_then(|(start, _)| start.trim().parse().ok())
        .ok_or(text)
}

/// Reads an answer whole, or gives none if it is longer than `limit` bytes.
async fn bounded(response: &mut Response, limit: u64) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// The end of a sentence, from what a registry says about an error.
fn explanation(body: &[u8]) -> String {
    let told = serde_json::from_slice::<OciEnvelope>(body).ok();
    let told = told.and_then(|envelope| envelope.errors.into_iter().next());
    let told = told.map(|error| printable(&error.message));
    match told {
        Some(told) if !told.is_empty() => format!(": {told}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn the_start_of_a_partial_answer_is_read_from_its_header() {
        for (header, expected) in [
            (None, Ok(7)),
            (Some("bytes 7-9/10"), Ok(7)),
            (Some("bytes 0-9/*"), Ok(0)),
            (Some("bytes */10"), Err("bytes */10".to_owned())),
            (Some("lines 1-2/3"), Err("lines 1-2/3".to_owned())),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(CONTENT_RANGE, HeaderValue::from_str(header).unwrap());
            }
            assert_eq!(start_of(&headers, 7), expected);
        }
    }

    #[test]
    fn a_registrys_words_are_told_without_control_characters() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no \u001b[31mway"}]}"#;
        assert_eq!(explanation(body), ": no [31mway");
        assert_eq!(explanation(b"<html>"), "");
        assert_eq!(explanation(br#"{"errors":[]}"#), "");
    }
}
