//! What can go wrong between cocoon and a registry, told apart as users must tell it apart: no
//! registry there, no access, no such image, a registry that is busy, and one that sends rubbish.

use std::time::Duration;

use oci_client::errors::OciDistributionError;

use crate::image::credentials::CredentialError;
use crate::image::http::through;
use crate::units::Digest;

/// Why a registry did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The program's own HTTP client could not be made, for example without any CA certificates.
    #[error("cannot set up a connection to registry {registry}")]
    Client {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// No such host, nobody listening, no route, or a TLS handshake that failed.
    #[error("cannot reach registry {registry}{}", through(proxy.as_ref()))]
    Unreachable {
        /// The registry.
        registry: String,
        /// Through which proxy it was asked.
        proxy: Option<String>,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke or stood still.
    #[error("registry {registry} broke off while sending {what}")]
    Interrupted {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The configuration leaves nobody to ask.
    #[error("no host that is configured for registry {registry} may {what}")]
    NoHost {
        /// The registry.
        registry: String,
        /// What none of them may do.
        what: &'static str,
    },
    /// The registry does not have it.
    #[error("registry {registry} has no {what}")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants (other) credentials, or the repository does not exist.
    #[error(
        "registry {registry}{} refuses access to {repository}, or has no such repository{answer}",
        through(proxy.as_ref())
    )]
    Unauthorized {
        /// The registry.
        registry: String,
        /// Through which proxy it was asked, which may be who refuses.
        proxy: Option<String>,
        /// The repository.
        repository: String,
        /// What the registry answered, if anything, behind a colon.
        answer: String,
    },
    /// The token server did not answer, or not with a token.
    #[error("cannot log in to registry {registry}")]
    Login {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// The token server has taken too long.
    #[error("the token server of registry {registry} has not answered")]
    LoginTimeout {
        /// The registry.
        registry: String,
    },
    /// Credentials could not be looked up.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Rate limits and failures of the server.
    #[error("registry {registry} cannot send {what} now: status {status}{answer}")]
    Busy {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the registry answered, if anything, behind a colon.
        answer: String,
        /// How long the server asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// Any other status.
    #[error("registry {registry}{} does not send {what}: status {status}{answer}", through(proxy.as_ref()))]
    Refused {
        /// The registry.
        registry: String,
        /// Through which proxy it was asked, which may be who refuses.
        proxy: Option<String>,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the registry answered, if anything, behind a colon.
        answer: String,
    },
    /// A document is larger than any real one.
    #[error("{what} from registry {registry} is larger than {limit} bytes")]
    TooLarge {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// Not the content that was asked for.
    #[error("{what} from registry {registry} has the digest {actual}, not {expected}")]
    DigestMismatch {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The registry sends less than the manifest says, and no more on request.
    #[error("registry {registry} ends {what} after {got} of {expected} bytes")]
    Truncated {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes that came.
        got: u64,
    },
    /// The registry sends more than the manifest says.
    #[error("registry {registry} sends more than the {expected} bytes of {what}")]
    Oversized {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Bytes by the manifest.
        expected: u64,
    },
    /// The registry sends another part of a blob than it was asked for.
    #[error(
        "registry {registry} sends a wrong part of {what}: {answer:?} instead of offset {offset}"
    )]
    WrongRange {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The offset that was asked for.
        offset: u64,
        /// The `Content-Range` that came.
        answer: String,
    },
}

impl RegistryError {
    /// Whether the same request may succeed later, from a registry that has answered before.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Interrupted { .. }
                | Self::Busy { .. }
                | Self::Truncated { .. }
                | Self::LoginTimeout { .. }
        )
    }

    /// How long the server asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
