//! One file over HTTP, known by its digest before anybody sees it.
//!
//! Invariant: whatever the server sends, no more than the limit is written, and success means that every
//! byte is the right one.

use std::fs::File;
use std::io::{self, Write};

use reqwest::{Client, Response, StatusCode};
use sha2::{Digest as _, Sha256};

use super::cancel::Cancel;
use super::http;
use crate::units::Digest;

/// What to fetch.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// An http or https address.
    pub url: &'a str,
    /// What the file must be.
    pub digest: &'a Digest,
    /// The most bytes that it may have.
    pub limit: u64,
}

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum FetchError {
    #[error("cannot prepare to fetch {url}")]
    Client {
        url: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot reach {url}")]
    Unreachable {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{url}: the server answers {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} broke off after {got} bytes")]
    Interrupted {
        url: String,
        got: u64,
        #[source]
        source: reqwest::Error,
    },
    #[error("{url} is longer than {limit} bytes")]
    TooLong { url: String, limit: u64 },
    #[error("{url} is not the file that is wanted: it has the digest {got}, not {expected}")]
    Digest {
        url: String,
        expected: Digest,
        got: Digest,
    },
    #[error("cannot write what {url} sends")]
    Write {
        url: String,
        #[source]
        source: io::Error,
    },
    #[error("fetching {url} was cancelled")]
    Cancelled { url: String },
}

impl FetchError {
    /// Whether it ended because the user wanted that.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled { .. })
    }
}

/// Writes the wanted file to `to`, from where it stands.
///
/// # Errors
/// It was not fetched whole, or is another; what `to` has then is nobody's.
pub fn fetch(wanted: &Wanted<'_>, to: &mut File, cancel: &Cancel) -> Result<(), FetchError> {
    let url = || wanted.url.to_owned();
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| FetchError::Client {
        url: url(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.into()))?;
    let client = http::client_builder()
        .build()
        .map_err(|error| failed(error.into()))?;
    runtime.block_on(async {
        tokio::select! {
            done = receive(wanted, &client, to) => done,
            () = cancel.cancelled() => Err(FetchError::Cancelled { url: url() }),
        }
    })
}

async fn receive(wanted: &Wanted<'_>, client: &Client, to: &mut File) -> Result<(), FetchError> {
    let url = || wanted.url.to_owned();
    let mut response = open(wanted.url, client).await?;
    let (mut hasher, mut got) = (Sha256::new(), 0_u64);
    loop {
        let chunk = response
            .chunk()
            .await
            .map_err(|source| FetchError::Interrupted {
                url: url(),
                got,
                source: source.without_url(),
            })?;
        let Some(chunk) = chunk else { break };
        got += chunk.len() as u64;
        if got > wanted.limit {
            return Err(FetchError::TooLong {
                url: url(),
                limit: wanted.limit,
            });
        }
        hasher.update(&chunk);
        to.write_all(&chunk)
            .map_err(|source| FetchError::Write { url: url(), source })?;
    }
    let got = Digest::finish(hasher);
    if got != *wanted.digest {
        return Err(FetchError::Digest {
            url: url(),
            expected: *wanted.digest,
            got,
        });
    }
    Ok(())
}

async fn open(url: &str, client: &Client) -> Result<Response, FetchError> {
    let sent = client.get(url).send().await;
    let response = sent.map_err(|source| FetchError::Unreachable {
        url: url.to_owned(),
        source: source.without_url(),
    })?;
    match response.status() {
        StatusCode::OK => Ok(response),
        status => Err(FetchError::Status {
            url: url.to_owned(),
            status,
        }),
    }
}
