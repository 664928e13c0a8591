//! Credentials for registries, from Docker's configuration.
//!
//! ```text
//!   config.json   auths:       {"<registry>": {"auth": base64("user:password")}}
//!                 credHelpers: {"<registry>": "<name>"}     runs docker-credential-<name> get
//!                 credsStore:  "<name>"                     the same, for every registry
//! ```
//! Docker Hub is filed under the address of its first API.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::secrets::RegistryAuth;
use tokio::sync::oneshot;

/// The largest `config.json` that is read, in bytes; real ones have a few hundred.
const MAX_CONFIG: u64 = 1 << 20;

/// How long a credential helper may take; some ask the user to unlock a keyring.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// The key of Docker Hub in `config.json`.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What helpers answer, by their protocol, for a registry that they do not know.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Why there are no credentials although there might be.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file exists and cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any real one.
    #[error("{} is larger than 1 MiB", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file or a helper that it names gave no usable answer.
    #[error("cannot get credentials for {registry} by way of {}", path.display())]
    Lookup {
        /// The registry.
        registry: String,
        /// The configuration file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CredentialRetrievalError,
    },
    /// The system gives no thread.
    #[error("cannot start a look-up of credentials for {registry}")]
    Worker {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The helper has not answered in time.
    #[error("the credential helper that {} names for {registry} has not answered", path.display())]
    HelperTimeout {
        /// The registry.
        registry: String,
        /// The configuration file.
        path: PathBuf,
    },
    /// An OAuth2 refresh token, which cannot be used yet.
    #[error(
        "{} holds an identity token for {registry}: log in with user name and password instead",
        path.display()
    )]
    IdentityToken {
        /// The registry.
        registry: String,
        /// The configuration file.
        path: PathBuf,
    },
}

/// Looks up credentials for `registry` (host and port, `docker.io` for Docker Hub) in the Docker
/// configuration file `config`. A missing file or entry means anonymous access.
///
/// The look-up has a thread of its own, for it may run a helper and knows no time limit; a helper
/// that hangs is left behind with its thread.
///
/// # Errors
/// The file is unreadable or malformed, or a credential helper failed or hung.
pub(crate) async fn lookup(config: &Path, registry: &str) -> Result<RegistryAuth, CredentialError> {
    let (path, name) = (config.to_owned(), registry.to_owned());
    let (answer, answered) = oneshot::channel();
    let worker_failed = |source| CredentialError::Worker {
        registry: registry.to_owned(),
        source,
    };
    thread::Builder::new()
        .name("credentials".to_owned())
        .spawn(move || {
            // Whoever asked may have given up.
            let _ = answer.send(find(&path, &name));
        })
        .map_err(worker_failed)?;
    match tokio::time::timeout(HELPER_TIMEOUT, answered).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Err(worker_failed(io::Error::other("its thread ended early"))),
        Err(_) => Err(CredentialError::HelperTimeout {
            registry: registry.to_owned(),
            path: config.to_owned(),
        }),
    }
}

fn find(config: &Path, registry: &str) -> Result<RegistryAuth, CredentialError> {
    let Some(content) = read(config)? else {
        return Ok(RegistryAuth::Anonymous);
    };
    for key in keys(registry) {
        match docker_credential::get_credential_from_reader(&content[..], &key) {
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                return Ok(RegistryAuth::Basic(user, password));
            }
            Ok(DockerCredential::IdentityToken(_)) => {
                return Err(CredentialError::IdentityToken {
                    registry: registry.to_owned(),
                    path: config.to_owned(),
                });
            }
            Err(error) if means_none(&error) => {}
            Err(source) => {
                return Err(CredentialError::Lookup {
                    registry: registry.to_owned(),
                    path: config.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(RegistryAuth::Anonymous)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CredentialError> {
    let fail = |source| CredentialError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut content = Vec::new();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut content)
        .map_err(fail)?;
    if content.len() as u64 > MAX_CONFIG {
        return Err(CredentialError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(Some(content))
}

/// The keys under which credentials for a registry are filed, most usual first.
fn keys(registry: &str) -> Vec<String> {
    match registry {
        "docker.io" => vec![DOCKER_HUB_KEY.to_owned(), registry.to_owned()],
        _ => vec![registry.to_owned(), format!("https://{registry}")],
    }
}

fn means_none(error: &CredentialRetrievalError) -> bool {
    match error {
        CredentialRetrievalError::NoCredentialConfigured => true,
        CredentialRetrievalError::HelperFailure { stdout, .. } => stdout.contains(NOT_FOUND),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup_in(json: &str, registry: &str) -> Result<RegistryAuth, CredentialError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        find(&path, registry)
    }

    fn basic(user: &str, password: &str) -> RegistryAuth {
        RegistryAuth::Basic(user.to_owned(), password.to_owned())
    }

    #[test]
    fn no_file_and_no_entry_mean_anonymous() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("config.json");
        assert_eq!(find(&missing, "a.b").unwrap(), RegistryAuth::Anonymous);
        for json in ["{}", r#"{"auths":{}}"#, r#"{"auths":{"a.b":{}}}"#] {
            assert_eq!(
                lookup_in(json, "a.b").unwrap(),
                RegistryAuth::Anonymous,
                "{json}"
            );
        }
    }

    #[test]
    fn entries_are_found_by_host_address_and_docker_hubs_old_name() {
        let auth = |key| format!(r#"{{"auths":{{"{key}":{{"auth":"dTpwOnc="}}}}}}"#);
        for (key, registry) in [
            ("a.b:5000", "a.b:5000"),
            ("https://a.b", "a.b"),
            ("https://index.docker.io/v1/", "docker.io"),
        ] {
            assert_eq!(
                lookup_in(&auth(key), registry).unwrap(),
                basic("u", "p:w"),
                "{key}"
            );
        }
        assert_eq!(
            lookup_in(&auth("a.b"), "c.d").unwrap(),
            RegistryAuth::Anonymous
        );
    }

    #[test]
    fn what_cannot_be_used_is_an_error_and_never_anonymous() {
        for json in [
            "",
            "[]",
            r#"{"auths":{"a.b":{"auth":"!"}}}"#,
            r#"{"auths":{"a.b":{"identitytoken":"x"}}}"#,
            r#"{"credsStore":"cocoon-no-such-helper"}"#,
        ] {
            assert!(lookup_in(json, "a.b").is_err(), "{json}");
        }
        let large = " ".repeat(1 << 20) + "{}";
        assert!(matches!(
            lookup_in(&large, "a.b"),
            Err(CredentialError::TooLarge { .. })
        ));
    }
}
