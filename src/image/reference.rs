//! Names of images, normalised the way Docker does it.
//!
//! ```text
//!   ubuntu                        docker.io/library/ubuntu:latest
//!   me/app:1                      docker.io/me/app:1
//!   localhost:5000/app            localhost:5000/app:latest
//!   ghcr.io/a/b:1@sha256:<hex>    the same
//!   └registry┘└repository┘└tag┘└digest┘
//! ```
//!
//! The grammar is that of the distribution project's package `reference`. Invariant: two texts that
//! mean one image make equal values, and the `Display` form parses to an equal value.

use std::fmt;
use std::str::FromStr;

use crate::units::{Digest, serde_as_string};

/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";

/// An older name of the same registry.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";

/// Where Docker Hub keeps repositories that belong to no user.
const OFFICIAL: &str = "library/";

/// The tag of names with neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// The longest `registry/repository`, in bytes, as Docker limits it.
const MAX_NAME: usize = 255;

/// The longest tag, in bytes.
const MAX_TAG: usize = 128;

/// The name of an image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text names no image.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an image name: {reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Host and port of the registry, as normalised: `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository in its registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; absent only where there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest that is wanted, whatever the tag says.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The short form in which people write it: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let whole = self.to_string();
        let Some(rest) = whole.strip_prefix("docker.io/") else {
            return whole;
        };
        match (rest.strip_prefix(OFFICIAL), rest.split_once('/')) {
            // `library/a/b` would not get its prefix back.
            (Some(short), _) if !short.contains('/') => short.to_owned(),
            // Nor would `a.b/c` its registry.
            (_, Some((first, _))) if looks_like_a_host(first) => whole,
            _ => rest.to_owned(),
        }
    }

    /// Text from which the name of a VM is made: the repository without registry and `library/`,
    /// and the tag unless it is `latest`. Slashes are dashes.
    pub fn default_vm_name(&self) -> String {
        let path = match self.registry.as_str() {
            DEFAULT_REGISTRY => self.repository.strip_prefix(OFFICIAL),
            _ => None,
        };
        let mut name = path.unwrap_or(&self.repository).replace('/', "-");
        if let Some(tag) = self.tag.as_deref().filter(|tag| *tag != DEFAULT_TAG) {
            name.push('-');
            name.push_str(tag);
        }
        name
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| InvalidReference {
            text: text.chars().take(MAX_NAME).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse().map_err(
                |_| "what follows the @ must be a digest, sha256: and 64 lower-case hex digits",
            )?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (name, tag) = split_tag(rest)?;
    let (registry, repository) = split_registry(name)?;
    check_repository(&repository)?;
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("registry and repository may have 255 characters together");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// Splits `name:tag`; a colon before the last slash belongs to the registry's port.
fn split_tag(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    let path = text.rfind('/').map_or(0, |slash| slash + 1);
    let Some(colon) = text[path..].find(':') else {
        return Ok((text, None));
    };
    let (name, tag) = (&text[..path + colon], &text[path + colon + 1..]);
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if tag.is_empty()
        || tag.len() > MAX_TAG
        || tag.starts_with(['.', '-'])
        || !tag.chars().all(inner)
    {
        return Err(
            "a tag has 1 to 128 letters, digits, dots, dashes and underscores, the first no dot or dash",
        );
    }
    Ok((name, Some(tag)))
}

/// Splits and normalises registry and repository. The first part of a path is a registry if it
/// could be no part of a repository, has a dot or a port, or is `localhost`.
fn split_registry(name: &str) -> Result<(String, String), &'static str> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if looks_like_a_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    check_registry(registry)?;
    // Host names know no case; what only its capitals tell from a part of a repository would be one later.
    let lower = registry.to_ascii_lowercase();
    if !looks_like_a_host(&lower) {
        return Err(
            "a repository must be lower-case, and a registry without a dot must have its port",
        );
    }
    let registry = match lower {
        legacy if legacy == LEGACY_DEFAULT_REGISTRY => DEFAULT_REGISTRY.to_owned(),
        registry => registry,
    };
    let official = registry == DEFAULT_REGISTRY && !repository.contains('/');
    let prefix = if official { OFFICIAL } else { "" };
    Ok((registry, format!("{prefix}{repository}")))
}

fn looks_like_a_host(part: &str) -> bool {
    part.contains(['.', ':'])
        || part == "localhost"
        || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let decimal = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if port.is_some_and(|port| !decimal(port) || !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err("the registry's port must be a number from 1 to 65535");
    }
    if let Some(address) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        let address = address.parse::<std::net::Ipv6Addr>();
        return address
            .map(drop)
            .map_err(|_| "the registry's IPv6 address is malformed");
    }
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(label) {
        Ok(())
    } else {
        Err("the registry's host must have letters, digits, dashes and single dots")
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository must be lower-case");
    }
    if !repository.split('/').all(is_path_component) {
        return Err(
            "the repository has parts of lower-case letters and digits, joined by one dot, one or two underscores or dashes, with slashes between them",
        );
    }
    let bare = repository.strip_prefix(OFFICIAL).unwrap_or(repository);
    if bare.len() == 64 && bare.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("64 hex digits are a digest; write it after a repository and @sha256:");
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(is_alphanumeric)
        && part.ends_with(is_alphanumeric)
        && part.split(is_alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut whole = format!("{}/{}", self.registry, self.repository);
        if let Some(tag) = &self.tag {
            whole.push(':');
            whole.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            whole.push('@');
            whole.push_str(&digest.to_string());
        }
        f.pad(&whole)
    }
}

serde_as_string!(Reference);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_normalised_as_docker_does() {
        for (text, normal) in [
            ("ubuntu", "docker.io/library/ubuntu:latest"),
            ("ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
            ("library/ubuntu", "docker.io/library/ubuntu:latest"),
            ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest"),
            ("me/app:1_X.y-z", "docker.io/me/app:1_X.y-z"),
            ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
            ("GHCR.io/a", "ghcr.io/a:latest"),
            ("localhost", "docker.io/library/localhost:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("host:5000/x:5000", "host:5000/x:5000"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[fe80::2]/x", "[fe80::2]/x:latest"),
            ("127.0.0.1:1/a/b/c", "127.0.0.1:1/a/b/c:latest"),
            ("a.b/c__d/e---f.g", "a.b/c__d/e---f.g:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), normal);
            assert_eq!(normal.parse(), Ok(reference.clone()));
            assert_eq!(reference.familiar().parse(), Ok(reference));
        }
    }

    #[test]
    fn people_and_vms_get_short_names() {
        for (text, familiar, vm) in [
            ("ubuntu", "ubuntu:latest", "ubuntu"),
            (
                "docker.io/library/ubuntu:24.04",
                "ubuntu:24.04",
                "ubuntu-24.04",
            ),
            ("docker.io/library/a/b", "library/a/b:latest", "a-b"),
            ("docker.io/a/b", "a/b:latest", "a-b"),
            // Found by fuzzing: its short form was an image of another registry.
            (
                "docker.io/ghcr.io/b",
                "docker.io/ghcr.io/b:latest",
                "ghcr.io-b",
            ),
            ("ghcr.io/a/b:1", "ghcr.io/a/b:1", "a-b-1"),
            ("ghcr.io/library/b", "ghcr.io/library/b:latest", "library-b"),
            ("localhost:5000/x", "localhost:5000/x:latest", "x"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(familiar.parse().as_ref(), Ok(&reference));
            assert_eq!(reference.default_vm_name(), vm);
        }
    }

    #[test]
    fn a_digest_stands_beside_a_tag_or_alone() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let alone: Reference = format!("ubuntu@{digest}").parse().unwrap();
        assert_eq!((alone.tag(), alone.digest()), (None, Some(&digest)));
        assert_eq!(
            alone.to_string(),
            format!("docker.io/library/ubuntu@{digest}")
        );
        assert_eq!(alone.default_vm_name(), "ubuntu");
        let both: Reference = format!("host:1/a:b@{digest}").parse().unwrap();
        assert_eq!((both.tag(), both.digest()), (Some("b"), Some(&digest)));
        assert_eq!(both.to_string(), format!("host:1/a:b@{digest}"));
    }

    #[test]
    fn what_names_no_image_is_refused_with_the_reason() {
        let long = format!("a.b/{}", "x".repeat(252));
        let long_tag = format!("a:{}", "x".repeat(129));
        for (text, reason) in [
            ("", "repository has parts"),
            ("Ubuntu", "lower-case"),
            ("a/Ubuntu", "lower-case"),
            // Found by fuzzing: its normal form was an image of Docker Hub.
            ("io3aY/b", "lower-case, and a registry without a dot"),
            ("-a", "repository has parts"),
            ("a-", "repository has parts"),
            ("a..b", "repository has parts"),
            ("a___b", "repository has parts"),
            ("a._b", "repository has parts"),
            ("a//b", "repository has parts"),
            ("a/", "repository has parts"),
            ("/a", "repository has parts"),
            ("../../etc/passwd", "host must have"),
            ("a b", "repository has parts"),
            ("a\n", "repository has parts"),
            ("é", "repository has parts"),
            ("a:", "a tag has"),
            ("a:b:c", "a tag has"),
            ("a:-b", "a tag has"),
            ("a:.b", "a tag has"),
            ("a:b c", "a tag has"),
            (&long_tag, "a tag has"),
            (&long, "255"),
            (HEX, "64 hex digits"),
            ("host:0/a", "port"),
            ("host:65536/a", "port"),
            ("host:+1/a", "port"),
            ("host:/a", "port"),
            ("a..b/c", "host must have"),
            ("-a.b/c", "host must have"),
            ("[::g]/c", "IPv6"),
            ("user@host/a", "follows the @"),
            ("http://host/a", "port"),
            ("a@sha256:abc", "follows the @"),
            ("a@sha512:abc", "follows the @"),
            ("a@", "follows the @"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_parses_to_the_same_image(
            text in "([a-z]{1,5}(\\.[a-z]{1,3})?(:[1-9][0-9]{0,3})?/)?[a-z0-9._/-]{1,12}(:[a-zA-Z0-9._-]{1,5})?"
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
                prop_assert_eq!(reference.familiar().parse(), Ok(reference.clone()));
                crate::units::VmName::from_text(&reference.default_vm_name(), 8);
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Reference>();
        }
    }
}
