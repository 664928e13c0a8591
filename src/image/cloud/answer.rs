//! What the head of an answer says about a file: which version of it this is, and which part. Pure.

use std::ops::Range;

use reqwest::header::{CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED};

/// The longest `ETag` or date that is believed, in bytes; real ones have some 60.
const MAX_VALIDATOR: usize = 1 << 10;

/// What tells one version of a file from another (RFC 9110, section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    /// Whether the date is so much older than the answer that no second version has it.
    is_settled: bool,
}

impl Version {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| {
            let text = headers.get(name)?.to_str().ok()?.trim();
            (!text.is_empty() && text.len() <= MAX_VALIDATOR).then(|| text.to_owned())
        };
        let last_modified = text(LAST_MODIFIED);
        let second = |date: &str| Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp());
        let settled = last_modified.as_deref().and_then(second);
        let sent = text(DATE).as_deref().and_then(second);
        Self {
            etag: text(ETAG),
            // Section 8.8.2.2.
            is_settled: settled
                .zip(sent)
                .is_some_and(|(settled, sent)| sent > settled),
            last_modified,
        }
    }

    /// What `If-Range` may be asked with: that which no other version has, byte for byte.
    pub(super) fn strong(&self) -> Option<&str> {
        match &self.etag {
            Some(etag) if is_strong(etag) => Some(etag),
            _ => self.last_modified.as_deref().filter(|_| self.is_settled),
        }
    }

    /// Whether `other`, of an answer with another part, is this version as far as it says.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let same = |own: &Option<String>, other: &Option<String>| {
            own.is_none() || other.is_none() || own == other
        };
        // Servers that share a name may have copied the file at different times.
        let is_proof = self.etag.as_deref().is_some_and(is_strong) && other.etag.is_some();
        let dates = is_proof || same(&self.last_modified, &other.last_modified);
        same(&self.etag, &other.etag) && dates
    }
}

/// Whether files with this `ETag` are equal byte for byte.
fn is_strong(etag: &str) -> bool {
    etag.starts_with('"')
}

/// Which part of how much an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    pub(super) size: u64,
}

/// What an answer says in `Content-Range`, if that can be.
pub(super) fn part_of(headers: &HeaderMap) -> Option<Part> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let part = Part {
        range: number(first)?..number(last)?.checked_add(1)?,
        size: number(size)?,
    };
    (!part.range.is_empty() && part.range.end <= part.size).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn only_what_no_other_version_has_may_join_parts() {
        let (old, new) = (
            "Wed, 21 Oct 2015 07:28:00 GMT",
            "Wed, 21 Oct 2015 07:28:01 GMT",
        );
        let long = format!("\"{}\"", "x".repeat(MAX_VALIDATOR));
        for (pairs, expected) in [
            (&[(ETAG, "\"a\"")][..], Some("\"a\"")),
            (&[(ETAG, "W/\"a\"")], None),
            (&[(ETAG, "")], None),
            (&[(ETAG, &long)], None),
            (&[(LAST_MODIFIED, old)], None),
            (&[(LAST_MODIFIED, old), (DATE, old)], None),
            (&[(LAST_MODIFIED, old), (DATE, new)], Some(old)),
            (&[(LAST_MODIFIED, "yesterday"), (DATE, new)], None),
            (
                &[(ETAG, "W/\"a\""), (LAST_MODIFIED, old), (DATE, new)],
                Some(old),
            ),
            (&[], None),
        ] {
            let version = Version::of(&headers(pairs));
            assert_eq!(version.strong(), expected, "{pairs:?}");
        }
    }

    #[test]
    fn versions_agree_unless_one_says_otherwise() {
        let of = |pairs: &[_]| Version::of(&headers(pairs));
        let first = of(&[(ETAG, "\"a\""), (LAST_MODIFIED, "x")]);
        for (other, agrees) in [
            (of(&[(ETAG, "\"a\""), (LAST_MODIFIED, "x")]), true),
            (of(&[(ETAG, "\"a\"")]), true),
            (of(&[]), true),
            (of(&[(ETAG, "\"b\"")]), false),
            (of(&[(ETAG, "\"a\""), (LAST_MODIFIED, "y")]), true),
            (of(&[(LAST_MODIFIED, "y")]), false),
        ] {
            assert_eq!(first.agrees(&other), agrees, "{other:?}");
        }
    }

    #[test]
    fn a_part_is_read_from_its_header_or_not_believed() {
        let part = |range, size| Some(Part { range, size });
        for (header, expected) in [
            ("bytes 0-0/1", part(0..1, 1)),
            (" bytes 5-9/10 ", part(5..10, 10)),
            ("bytes 5-9/*", None),
            ("bytes */10", None),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes 0-18446744073709551615/18446744073709551615", None),
            ("lines 0-1/2", None),
            ("", None),
        ] {
            let found = part_of(&headers(&[(CONTENT_RANGE, header)]));
            assert_eq!(found, expected, "{header:?}");
        }
        assert_eq!(part_of(&headers(&[])), None);
    }
}
