//! Where a disk image is fetched from: an http or https address, and the login that may stand in it.
//!
//! ```text
//!   https://user:password@host/disk.img#part
//!           └── login ──┘ kept apart    └──┴ dropped
//! ```
//! Invariant: what is shown, compared and recorded has no login; only a request to the same scheme, host
//! and port gets it.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

/// The address of a disk image.
#[derive(Clone)]
pub struct CloudUrl {
    /// Without its login.
    shown: Url,
    /// With it.
    asked: Url,
}

/// Why a text is no address of a disk image. It does not show a login.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not the address of a disk image: {reason}")]
pub struct InvalidCloudUrl {
    text: String,
    reason: &'static str,
}

impl CloudUrl {
    /// Whether a text is meant as an address, and not as the name of an image in a registry.
    pub fn is_meant_by(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
    }

    /// The last part of its path, by which people call the image; none if there is no such part.
    pub fn file_name(&self) -> Option<&str> {
        let name = self.shown.path_segments()?.next_back()?;
        (!name.is_empty()).then_some(name)
    }

    /// What to ask, with the login.
    pub(super) fn asked(&self) -> &Url {
        &self.asked
    }

    /// What to ask where this address has led, with the login if that is still the same server.
    pub(super) fn led_to(&self, place: &Url) -> Url {
        let mut place = place.clone();
        if place.origin() == self.asked.origin() {
            // They fail only for addresses without a host, which no http address is.
            let _ = place.set_username(self.asked.username());
            let _ = place.set_password(self.asked.password());
        }
        place
    }
}

impl FromStr for CloudUrl {
    type Err = InvalidCloudUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |reason| InvalidCloudUrl {
            text: without_login(text),
            reason,
        };
        let mut asked: Url = text
            .parse()
            .map_err(|_| invalid("write https://HOST/PATH"))?;
        if !matches!(asked.scheme(), "http" | "https") {
            return Err(invalid("it must begin with https:// or http://"));
        }
        asked.set_fragment(None);
        let mut shown = asked.clone();
        // As above.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        Ok(Self { shown, asked })
    }
}

/// A text that may be no address at all, without what may be a login in it.
fn without_login(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        (None, Some((_, rest))) => rest.to_owned(),
        _ => text.to_owned(),
    }
}

impl fmt::Display for CloudUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.shown.as_str())
    }
}

impl fmt::Debug for CloudUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl PartialEq for CloudUrl {
    fn eq(&self, other: &Self) -> bool {
        self.shown == other.shown
    }
}

impl Eq for CloudUrl {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_in_nothing_that_is_shown() {
        let url: CloudUrl = "https://me:s%40cret@host:8443/a/b.img?x=1#part"
            .parse()
            .unwrap();
        assert_eq!(url.to_string(), "https://host:8443/a/b.img?x=1");
        assert_eq!(format!("{url:?}"), url.to_string());
        assert_eq!(url.file_name(), Some("b.img"));
        assert_eq!(url, url.to_string().parse().unwrap());
        assert_eq!(url.asked().password(), Some("s%40cret"));
    }

    #[test]
    fn what_is_no_address_is_told_without_its_login() {
        for text in [
            "https://me:secret@",
            "https://me:secret@host:99999999/",
            "https://me:sec@ret@ho st/",
            "ftp://me:secret@host/x",
            "me:secret@host/x",
            "disk.img",
            "",
        ] {
            let told = text.parse::<CloudUrl>().unwrap_err().to_string();
            assert!(!told.contains("secret") && !told.contains("ret@"), "{told}");
        }
        let told = "ftp://host/x".parse::<CloudUrl>().unwrap_err().to_string();
        assert_eq!(
            told,
            "\"ftp://host/x\" is not the address of a disk image: it must begin with https:// or http://"
        );
    }

    #[test]
    fn a_login_follows_only_to_the_same_server() {
        let url: CloudUrl = "https://me:secret@host/a".parse().unwrap();
        for (place, goes_along) in [
            ("https://host/b", true),
            ("https://host:443/b", true),
            ("https://host:444/b", false),
            ("http://host/b", false),
            ("https://other/b", false),
        ] {
            let led = url.led_to(&place.parse().unwrap());
            assert_eq!(led.password().is_some(), goes_along, "{place}");
        }
    }

    #[test]
    fn names_in_registries_are_no_addresses() {
        for (text, expected) in [
            ("https://host/a", true),
            ("HTTP://host", true),
            ("ftp://host/a", true),
            ("host:5000/a", false),
            ("ubuntu:24.04", false),
            ("://a", false),
        ] {
            assert_eq!(CloudUrl::is_meant_by(text), expected, "{text}");
        }
    }
}
