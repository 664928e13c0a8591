//! One request for a file, or for a part of it, and what to make of its answer.
//!
//! ```text
//!   GET url     Range: bytes=0-16777215   If-None-Match, If-Modified-Since: what is here already
//!      304 ─▶ unchanged      206 ─▶ its size, its version, and the first part      200 ─▶ all of it
//!   GET place   Range: bytes=a-b          If-Range: the version
//!      206 ─▶ that part of the same version                200, 412, 416 ─▶ the file has changed
//! ```
//! `place` is where the first request was led, so that all parts come from one server. An address that is valid
//! for some time only is asked for anew when it is refused.
//!
//! Invariants: a login goes to the server of the address alone, wherever that leads; it leads on a few times
//! only, and never from https to http.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use reqwest::header::{IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE};
use reqwest::redirect::{self, Policy};
use reqwest::{RequestBuilder, Response, StatusCode, Url};

use super::answer::{Version, part_of};
use super::error::TransferError;
use super::{CloudUrl, Known};
use crate::image::http;
use crate::image::manifest::printable;

/// How often an address may lead to another; browsers allow 20, and no mirror needs more than 3.
const MAX_REDIRECTS: usize = 10;

/// The server of a file.
pub(super) struct Server<'a> {
    url: &'a CloudUrl,
    client: reqwest::Client,
    /// The proxy through which the environment wants it to be asked, without its password.
    proxy: Option<String>,
    has_answered: Cell<bool>,
}

/// A version of a file, at the place to which its address led.
pub(super) struct Source {
    place: RefCell<Url>,
    pub(super) version: Version,
    pub(super) size: u64,
}

impl Source {
    /// Whether what has come is of use after such an error.
    pub(super) fn may_go_on(&self, error: &TransferError) -> bool {
        let is_same = !matches!(error, TransferError::Changed { .. });
        is_same && self.version.strong().is_some()
    }
}

/// A part of a file on its way.
pub(super) struct Coming {
    pub(super) response: Response,
    /// Where it ends, which may be before what was asked for.
    pub(super) end: u64,
}

/// Why an address is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Astray {
    #[error("it leads from https to plain http")]
    Downgrade,
    #[error("it leads on more than {MAX_REDIRECTS} times")]
    TooOften,
}

impl<'a> Server<'a> {
    /// Prepares to ask; nothing is sent.
    pub(super) fn new(url: &'a CloudUrl) -> Result<Self, TransferError> {
        let policy = Policy::custom(|attempt: redirect::Attempt<'_>| {
            match may_follow(attempt.previous(), attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(astray) => attempt.error(astray),
            }
        });
        // Where somebody was led from is nobody's business.
        let client = http::client_builder().redirect(policy).referer(false);
        Ok(Self {
            url,
            client: client.build().map_err(|source| TransferError::Client {
                url: url.to_string(),
                source,
            })?,
            proxy: http::proxy_of(&url.to_string()),
            has_answered: Cell::new(false),
        })
    }

    /// Whether it has ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered.get()
    }

    /// Asks for the first bytes of the file, or for all of it; for nothing if `known` is still it.
    pub(super) async fn first(
        &self,
        bytes: Option<u64>,
        known: Option<&Known>,
    ) -> Result<Response, TransferError> {
        let mut request = self.client.get(self.url.asked().clone());
        if let Some(bytes) = bytes {
            request = request.header(RANGE, range_header(&(0..bytes)));
        }
        let etag = known.and_then(|known| known.etag.as_ref());
        let date = known.and_then(|known| known.last_modified.as_ref());
        for (name, value) in [(IF_NONE_MATCH, etag), (IF_MODIFIED_SINCE, date)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        self.send(request).await
    }

    /// Asks for a part of a file, in one attempt.
    pub(super) async fn part(
        &self,
        source: &Source,
        wanted: &Range<u64>,
    ) -> Result<Coming, TransferError> {
        let place = source.place.borrow().clone();
        let mut response = self.part_at(&place, source, wanted).await?;
        if may_have_expired(response.status()) && place != *self.url.asked() {
            response = self.part_at(self.url.asked(), source, wanted).await?;
        }
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(self.changed());
            }
            _ => return Err(self.refusal(&response)),
        }
        let headers = response.headers();
        let part = part_of(headers)
            .filter(|part| part.range.start == wanted.start && part.range.end <= wanted.end)
            .ok_or_else(|| self.wrong_part(wanted, &response))?;
        if part.size != source.size || !source.version.agrees(&Version::of(headers)) {
            return Err(self.changed());
        }
        source.place.replace(self.url.led_to(response.url()));
        Ok(Coming {
            response,
            end: part.range.end,
        })
    }

    async fn part_at(
        &self,
        place: &Url,
        source: &Source,
        wanted: &Range<u64>,
    ) -> Result<Response, TransferError> {
        let request = self.client.get(place.clone());
        let request = request.header(RANGE, range_header(wanted));
        let version = source.version.strong().unwrap_or_default();
        self.send(request.header(IF_RANGE, version)).await
    }

    /// The version of which an answer has brought a part.
    pub(super) fn source_of(&self, response: &Response, size: u64) -> Source {
        Source {
            place: RefCell::new(self.url.led_to(response.url())),
            version: Version::of(response.headers()),
            size,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, TransferError> {
        let sent = request.send().await;
        let response = sent.map_err(|source| self.transport(source))?;
        self.has_answered.set(true);
        Ok(response)
    }

    /// What it means that no answer, or no more of one, has come.
    pub(super) fn transport(&self, source: reqwest::Error) -> TransferError {
        let (url, source) = (self.url.to_string(), source.without_url());
        if source.is_redirect() {
            TransferError::Redirect { url, source }
        } else if http::is_unreachable(&source) {
            TransferError::Unreachable {
                url,
                proxy: self.proxy.clone(),
                source,
            }
        } else {
            TransferError::Interrupted { url, source }
        }
    }

    /// What it means that the status is none that was hoped for.
    pub(super) fn refusal(&self, response: &Response) -> TransferError {
        let (url, proxy) = (self.url.to_string(), self.proxy.clone());
        match response.status().as_u16() {
            404 | 410 => TransferError::Absent { url },
            status @ (401 | 403 | 407) => TransferError::Forbidden { url, proxy, status },
            status @ (408 | 429 | 500..600) => TransferError::Busy {
                url,
                status,
                retry_after: http::asked_to_wait(response.headers()),
            },
            status => TransferError::Refused { url, proxy, status },
        }
    }

    pub(super) fn truncated(&self, expected: u64, got: u64) -> TransferError {
        TransferError::Truncated {
            url: self.url.to_string(),
            expected,
            got,
        }
    }

    pub(super) fn too_much(&self, end: u64) -> TransferError {
        TransferError::TooMuch {
            url: self.url.to_string(),
            last: end - 1,
        }
    }

    pub(super) fn wrong_part(&self, wanted: &Range<u64>, response: &Response) -> TransferError {
        let said = response.headers().get(reqwest::header::CONTENT_RANGE);
        let said = said.map_or_else(String::new, |said| {
            printable(&String::from_utf8_lossy(said.as_bytes()))
        });
        TransferError::WrongPart {
            url: self.url.to_string(),
            from: wanted.start,
            to: wanted.end - 1,
            answer: said,
        }
    }

    fn changed(&self) -> TransferError {
        let url = self.url.to_string();
        TransferError::Changed { url }
    }
}

/// What asks for bytes that are not none (RFC 9110, section 14.1.2).
fn range_header(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end - 1)
}

/// Whether an address may be refused only for having been given some time ago.
fn may_have_expired(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410)
}

fn may_follow(previous: &[Url], next: &Url) -> Result<(), Astray> {
    let is_https = |url: &Url| url.scheme() == "https";
    if previous.iter().any(is_https) && !is_https(next) {
        return Err(Astray::Downgrade);
    }
    match previous.len() > MAX_REDIRECTS {
        true => Err(Astray::TooOften),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_never_leads_from_https_to_http_and_not_on_and_on() {
        let urls = |texts: &[&str]| -> Vec<Url> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let many = ["http://a/"; MAX_REDIRECTS];
        let too_many = ["http://a/"; MAX_REDIRECTS + 1];
        for (previous, next, expected) in [
            (&["http://a/"][..], "http://b/", Ok(())),
            (&["http://a/"], "https://a/", Ok(())),
            (&["https://a/"], "https://b/", Ok(())),
            (&["https://a/"], "http://a/", Err(Astray::Downgrade)),
            (
                &["https://a/", "https://b/"],
                "http://a/",
                Err(Astray::Downgrade),
            ),
            (&many, "http://a/", Ok(())),
            (&too_many, "http://a/", Err(Astray::TooOften)),
        ] {
            let found = may_follow(&urls(previous), &next.parse().unwrap());
            assert_eq!(found, expected, "{previous:?} to {next}");
        }
    }
}
