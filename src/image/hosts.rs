//! Where the images of a registry are fetched: as containerd's `hosts.toml` says, or at the registry itself.
//!
//! ```text
//!   <folder>/<host>_<port>_/hosts.toml     the first of these folders that there is;
//!   <folder>/<host>:<port>/hosts.toml      without a port, the folder <host>
//!   <folder>/_default/hosts.toml
//!
//!   server = "https://registry.example"    asked last; the registry of the image, if nothing is said
//!   ca = "ca.pem"                          for the server
//!   [host."http://mirror.example:5000"]    asked before, in the order of the file
//!   capabilities = ["pull", "resolve"]     resolve: trusted to say what a tag means
//! ```
//! A folder without `hosts.toml` is one of Docker's: its files `*.crt` are certificates of authorities for the
//! registry itself, which then speaks TLS wherever it is.
//!
//! Format: containerd, `docs/hosts.md`. Of its fields `client`, `header` and `proxy` are refused, and so
//! is Docker's `*.cert` of a client, and not ignored, for without them requests would go out that were not meant to.
//!
//! Invariants: what is configured and cannot be understood is an error, never the registry itself; a host
//! gets the credentials that are filed under its own name alone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use toml::Spanned;

use super::manifest::printable;

/// The largest `hosts.toml` and the largest file of certificates, in bytes: four times those of all
/// authorities in the world.
const MAX_FILE: u64 = 1 << 20;

/// The names of Docker Hub, by which it is configured.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// A host that is asked for images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port.
    pub(crate) host: String,
    /// HTTP without TLS.
    pub(crate) plain: bool,
    /// The path below which the repositories are: `/v2`.
    pub(crate) root: String,
    /// The registry for which it stands in, if it is not that itself.
    pub(crate) stands_for: Option<String>,
    /// Whether it may say what a tag means.
    pub(crate) resolves: bool,
    /// Whether it may send what has a digest.
    pub(crate) pulls: bool,
    /// Certificates of authorities, in DER, that are trusted besides those of this machine.
    pub(crate) ca: Vec<Vec<u8>>,
    /// Any certificate will do.
    pub(crate) skip_verify: bool,
    /// How long a connection may take to be made, if that is configured.
    pub(crate) connect_timeout: Option<Duration>,
}

/// Why the configuration of a registry cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum HostsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not a hosts.toml that can be used", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("{} has {text:?} where {wanted} is wanted", path.display())]
    Value {
        path: PathBuf,
        text: String,
        wanted: &'static str,
    },
    #[error("{} is the certificate of a client, and none can be shown to a registry", path.display())]
    Client { path: PathBuf },
    #[error("{} has no certificate in PEM form, or a damaged one", path.display())]
    NoCertificate { path: PathBuf },
}

/// What `hosts.toml` says of one host.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HostTable {
    capabilities: Vec<String>,
    ca: Paths,
    skip_verify: bool,
    override_path: bool,
    dial_timeout: Option<String>,
}

/// The whole of it. The first fields are those of the server.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HostsFile {
    capabilities: Vec<String>,
    ca: Paths,
    skip_verify: bool,
    override_path: bool,
    dial_timeout: Option<String>,
    server: Option<String>,
    host: BTreeMap<Spanned<String>, HostTable>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Paths {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

impl Default for Paths {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

/// The hosts to ask for the images of `registry`, in that order; never none.
pub(crate) fn endpoints(
    folder: Option<&Path>,
    registry: &str,
) -> Result<Vec<Endpoint>, HostsError> {
    let all = folder.into_iter().flat_map(|folder| {
        let names = folders(registry).into_iter();
        names.map(move |name| folder.join(name))
    });
    for folder in all {
        let path = folder.join("hosts.toml");
        if let Some(text) = read(&path)? {
            return parse(&path, &text, registry);
        }
        let ca = authorities(&folder)?;
        if !ca.is_empty() {
            return Ok(vec![Endpoint {
                ca,
                plain: false,
                ..Endpoint::of(registry)
            }]);
        }
    }
    Ok(vec![Endpoint::of(registry)])
}

/// The certificates in a folder of Docker's, if it is one.
fn authorities(folder: &Path) -> Result<Vec<Vec<u8>>, HostsError> {
    let failed = |source| HostsError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        match path.extension().and_then(OsStr::to_str) {
            Some("crt") => found.extend(certificates(&path)?),
            Some("cert") => return Err(HostsError::Client { path }),
            _ => {}
        }
    }
    Ok(found)
}

/// The folders that may configure a registry, the first one first.
fn folders(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    // The colons of an IPv6 address are followed by its bracket.
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(_, p)| !p.ends_with(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

/// Reads a file, or gives none if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, HostsError> {
    let failed = |source| HostsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut content = Vec::new();
    let mut file = file.take(MAX_FILE + 1);
    file.read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_FILE {
        return Err(HostsError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(Some(content))
}

fn parse(path: &Path, text: &[u8], registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let file: HostsFile = toml::from_slice(text).map_err(|source| HostsError::Malformed {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let mut hosts: Vec<_> = file.host.into_iter().collect();
    // A table keeps no order; where its keys stand in the file, does.
    hosts.sort_by_key(|(url, _)| url.span().start);
    let server = HostTable {
        capabilities: file.capabilities,
        ca: file.ca,
        skip_verify: file.skip_verify,
        override_path: file.override_path,
        dial_timeout: file.dial_timeout,
    };
    let hosts = hosts
        .iter()
        .map(|(url, table)| (Some(url.as_ref().as_str()), table));
    hosts
        .chain([(file.server.as_deref(), &server)])
        .map(|(url, table)| endpoint(path, url, table, registry))
        .collect()
}

/// What a table says of the host at `url`, or of the registry itself.
fn endpoint(
    path: &Path,
    url: Option<&str>,
    table: &HostTable,
    registry: &str,
) -> Result<Endpoint, HostsError> {
    let wrong = |text: &str, wanted| HostsError::Value {
        path: path.to_owned(),
        text: printable(text),
        wanted,
    };
    let mut endpoint = match url {
        None => Endpoint::of(registry),
        Some(url) => at(url, table.override_path, registry)
            .ok_or_else(|| wrong(url, "the URL of a host, https:// or http://"))?,
    };
    for capability in &table.capabilities {
        if !["pull", "resolve", "push"].contains(&capability.as_str()) {
            return Err(wrong(capability, "pull, resolve or push"));
        }
    }
    let can =
        |what: &str| table.capabilities.is_empty() || table.capabilities.iter().any(|c| c == what);
    (endpoint.pulls, endpoint.resolves) = (can("pull"), can("resolve"));
    endpoint.skip_verify = table.skip_verify;
    if let Some(text) = &table.dial_timeout {
        let timeout = text.parse::<jiff::SignedDuration>().ok();
        let timeout = timeout.and_then(|timeout| Duration::try_from(timeout).ok());
        endpoint.connect_timeout = Some(timeout.ok_or_else(|| wrong(text, "a time such as 5s"))?);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let files = match &table.ca {
        Paths::One(file) => std::slice::from_ref(file),
        Paths::Several(files) => files,
    };
    for file in files {
        endpoint.ca.extend(certificates(&folder.join(file))?);
    }
    Ok(endpoint)
}

/// The host at a URL, as containerd completes it.
fn at(url: &str, has_own_root: bool, registry: &str) -> Option<Endpoint> {
    let url = match url.contains("://") {
        true => Url::parse(url),
        false => Url::parse(&format!("https://{url}")),
    };
    let url = url.ok()?;
    let is_bare = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !is_bare || !["https", "http"].contains(&url.scheme()) {
        return None;
    }
    let name = url.host_str()?;
    let host = match url.port() {
        _ if DOCKER_HUB.contains(&name) => DOCKER_HUB[0].to_owned(),
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    let path = url.path().trim_end_matches('/');
    let root = match has_own_root || path.ends_with("/v2") {
        true => path.to_owned(),
        false => format!("{path}/v2"),
    };
    Some(Endpoint {
        stands_for: (host != registry).then(|| registry.to_owned()),
        plain: url.scheme() == "http",
        root,
        ..Endpoint::of(&host)
    })
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, HostsError> {
    let none = || HostsError::NoCertificate {
        path: path.to_owned(),
    };
    let missing = || HostsError::Read {
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    };
    let content = read(path)?.ok_or_else(missing)?;
    let found = CertificateDer::pem_slice_iter(&content);
    let found: Vec<_> = found
        .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| none())?;
    match found.is_empty() {
        true => Err(none()),
        false => Ok(found),
    }
}

impl Endpoint {
    /// The registry itself. Those on this host speak plain HTTP, all others HTTPS.
    pub(crate) fn of(registry: &str) -> Self {
        Self {
            host: registry.to_owned(),
            plain: is_loopback(registry),
            root: "/v2".to_owned(),
            stands_for: None,
            resolves: true,
            pulls: true,
            ca: Vec::new(),
            skip_verify: false,
            connect_timeout: None,
        }
    }
}

/// Whether a registry is on this host, so that plain HTTP exposes nothing; as Docker decides.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => registry,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A folder with `hosts.toml` of this text for each of these names.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        }
        dir
    }

    fn found(dir: &TempDir, registry: &str) -> Vec<Endpoint> {
        endpoints(Some(dir.path()), registry).unwrap()
    }

    fn urls(endpoints: &[Endpoint]) -> Vec<String> {
        let url = |it: &Endpoint| {
            let scheme = if it.plain { "http" } else { "https" };
            let ns = it.stands_for.as_ref().map(|ns| format!("?ns={ns}"));
            format!(
                "{scheme}://{}{}{}",
                it.host,
                it.root,
                ns.unwrap_or_default()
            )
        };
        endpoints.iter().map(url).collect()
    }

    #[test]
    fn without_a_file_it_is_the_registry_itself() {
        let dir = folder(&[]);
        assert_eq!(urls(&found(&dir, "a.example")), ["https://a.example/v2"]);
        assert_eq!(
            urls(&found(&dir, "localhost:5000")),
            ["http://localhost:5000/v2"]
        );
        assert_eq!(
            endpoints(None, "a.example").unwrap(),
            found(&dir, "a.example")
        );
    }

    #[test]
    fn the_folder_with_the_closest_name_counts() {
        let server = |name: &str| format!("server = \"https://{name}\"");
        let files = [
            "r.example_5000_",
            "r.example:5000",
            "r.example",
            "[::1]_5000_",
            "_default",
        ];
        let texts = [
            "one.example",
            "two.example",
            "three.example",
            "six.example",
            "any.example",
        ];
        let texts = texts.map(server);
        let all: Vec<_> = files
            .into_iter()
            .zip(texts.iter().map(String::as_str))
            .collect();
        for (registry, there, taken) in [
            ("r.example:5000", &all[..], "one.example"),
            ("r.example:5000", &all[1..], "two.example"),
            ("r.example:5000", &all[2..], "any.example"),
            ("r.example", &all[..], "three.example"),
            ("[::1]:5000", &all[..], "six.example"),
            ("[::1]", &all[..], "any.example"),
        ] {
            let found = found(&folder(there), registry);
            assert_eq!(found[0].host, taken, "{registry}");
            assert_eq!(found[0].stands_for.as_deref(), Some(registry));
        }
    }

    #[test]
    fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
            capabilities = ["pull"]
            [host."http://a.example:5000/mirror/"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "1m500ms"
            [host."m.example/v2"]
            skip_verify = true
            [host."https://b.example/api"]
            override_path = true
        "#;
        let found = found(&folder(&[("docker.io", text)]), "docker.io");
        assert_eq!(
            urls(&found),
            [
                "https://z.example/v2?ns=docker.io",
                "http://a.example:5000/mirror/v2?ns=docker.io",
                "https://m.example/v2?ns=docker.io",
                "https://b.example/api?ns=docker.io",
                "https://docker.io/v2",
            ]
        );
        let can: Vec<_> = found.iter().map(|it| (it.pulls, it.resolves)).collect();
        assert_eq!(
            can,
            [
                (true, false),
                (true, true),
                (true, true),
                (true, true),
                (true, true)
            ]
        );
        assert_eq!(
            found[1].connect_timeout,
            Some(Duration::from_millis(60_500))
        );
        let careless: Vec<_> = found.iter().map(|it| it.skip_verify).collect();
        assert_eq!(careless, [false, false, true, false, false]);
    }

    #[test]
    fn without_a_server_the_registry_itself_is_asked_last_with_what_the_file_says_of_it() {
        let text = "skip_verify = true\n[host.\"https://m.example\"]\n";
        let found = found(&folder(&[("_default", text)]), "r.example:5000");
        assert_eq!(
            urls(&found),
            [
                "https://m.example/v2?ns=r.example:5000",
                "https://r.example:5000/v2"
            ]
        );
        assert!(!found[0].skip_verify && found[1].skip_verify);
    }

    #[test]
    fn what_cannot_be_understood_is_an_error_that_names_the_file() {
        for (text, sentence) in [
            ("server = ", "is not a hosts.toml"),
            ("proxy = \"http://p\"", "is not a hosts.toml"),
            (
                "[host.\"https://m\"]\nclient = \"c.pem\"",
                "is not a hosts.toml",
            ),
            (
                "server = \"ftp://m.example\"",
                "\"ftp://m.example\" where the URL",
            ),
            ("server = \"https://u:p@m.example\"", "where the URL"),
            ("server = \"https://\"", "where the URL"),
            (
                "capabilities = [\"fly\"]",
                "\"fly\" where pull, resolve or push",
            ),
            ("dial_timeout = \"soon\"", "\"soon\" where a time"),
            ("dial_timeout = \"-1s\"", "\"-1s\" where a time"),
            ("ca = \"none.pem\"", "cannot read"),
            ("ca = [\"hosts.toml\"]", "no certificate in PEM form"),
        ] {
            let dir = folder(&[("r.example", text)]);
            let error = endpoints(Some(dir.path()), "r.example")
                .unwrap_err()
                .to_string();
            assert!(error.contains(sentence), "{error}");
            assert!(error.contains("r.example/"), "{error}");
        }
    }

    #[test]
    fn a_folder_of_dockers_has_certificates_and_none_of_a_client() {
        for (file, sentence) in [
            ("ca.crt", "no certificate in PEM form"),
            ("client.cert", "is the certificate of a client"),
            ("client.key", ""),
            ("README", ""),
        ] {
            let dir = folder(&[]);
            fs::create_dir(dir.path().join("r.example")).unwrap();
            fs::write(dir.path().join("r.example").join(file), "none").unwrap();
            match endpoints(Some(dir.path()), "r.example") {
                Ok(found) => assert_eq!((found, sentence), (vec![Endpoint::of("r.example")], "")),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(sentence) && text.contains(file), "{text}");
                    assert_ne!(sentence, "");
                }
            }
            // `hosts.toml` says it all.
            fs::write(dir.path().join("r.example/hosts.toml"), "").unwrap();
            assert_eq!(found(&dir, "r.example"), [Endpoint::of("r.example")]);
        }
    }

    #[test]
    fn only_registries_on_this_host_speak_plain_http() {
        for (registry, plain) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1", true),
            ("127.8.9.1:5000", true),
            ("[::1]", true),
            ("[::1]:5000", true),
            ("docker.io", false),
            ("10.0.0.1:5000", false),
            ("[fe80::1]:5000", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com", false),
        ] {
            assert_eq!(is_loopback(registry), plain, "{registry}");
        }
    }
}
