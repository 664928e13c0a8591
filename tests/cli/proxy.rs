//! Pulls through tinyproxy, which the environment names as it does to every program.

#![expect(clippy::print_stdout, reason = "it says why a test did not run")]

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::counter::root_files;
use crate::support::registry::{Registry, Server};
use crate::support::{Cocoon, stderr};

/// Who may use it.
const LOGIN: &str = "cocoon:secret";

/// tinyproxy, on a port of its own.
struct Proxy {
    dir: TempDir,
    server: Server,
}

impl Proxy {
    /// Nothing, and a line that says why, where it is not installed.
    fn start() -> Option<Self> {
        if Command::new("tinyproxy").arg("-v").output().is_err() {
            println!("SKIPPED: tinyproxy is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let server = Server::start(&at("output"), |address| {
            let config = format!(
                "Listen 127.0.0.1\nPort {}\nTimeout 600\nMaxClients 50\nLogFile \"{}\"\nLogLevel Connect\nBasicAuth {}\n",
                address.port(),
                at("log").display(),
                LOGIN.replace(':', " "),
            );
            fs::write(at("config"), config).unwrap();
            let mut command = Command::new("tinyproxy");
            command.args(["-d", "-c"]).arg(at("config"));
            command
        });
        Some(Self { dir, server })
    }

    /// As environments name it.
    fn url(&self, login: &str) -> String {
        format!("http://{login}@{}", self.server.address)
    }

    /// The requests that it has been sent since this was asked last.
    fn requests(&self) -> Vec<String> {
        let path = self.dir.path().join("log");
        let log = fs::read_to_string(&path).unwrap();
        File::options()
            .write(true)
            .truncate(true)
            .open(path)
            .unwrap();
        let requests = log
            .lines()
            .filter_map(|line| line.split_once("Request (file descriptor"));
        requests.map(|(_, request)| request.to_owned()).collect()
    }
}

/// A key and a certificate for `localhost`, in files.
fn certificate(dir: &TempDir) -> Option<(PathBuf, PathBuf)> {
    let [key, certificate] = ["key.pem", "ca.pem"].map(|name| dir.path().join(name));
    let openssl = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=test"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    if !openssl.is_ok_and(|done| done.status.success()) {
        println!("SKIPPED: openssl is not installed");
        return None;
    }
    Some((key, certificate))
}

/// Pulls, with these variables beside the others, into a root folder of its own.
fn pull(name: &str, certs: &TempDir, env: &[(&str, &str)]) -> Result<(), String> {
    let cocoon = Cocoon::new();
    let mut command = cocoon.command(&["image", "pull", name]);
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    let output = command
        .env("COCOON_REGISTRY_CONFIG_DIR", certs.path())
        .envs(env.iter().copied())
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    assert_eq!(output.status.code(), Some(1));
    Err(stderr(&output))
}

fn port_of(url: &str) -> &str {
    url.rsplit_once(':').unwrap().1
}

#[test]
fn a_pull_goes_through_the_proxy_of_the_environment() {
    let Some(proxy) = Proxy::start() else { return };
    let certs = tempfile::tempdir().unwrap();
    let Some((key, certificate)) = certificate(&certs) else {
        return;
    };
    let tls = format!(
        ", tls: {{certificate: {}, key: {}}}",
        certificate.display(),
        key.display()
    );
    let (plain, secure) = match (Registry::start("", ""), Registry::start(&tls, "")) {
        (Ok(plain), Ok(secure)) => (plain, secure),
        (Err(why), _) | (_, Err(why)) => {
            println!("SKIPPED: {why}");
            return;
        }
    };
    for registry in [&plain, &secure] {
        registry.build("vm", &[&root_files("vm")]);
        registry.push("vm", &[]);
    }
    let by_name = format!("localhost:{}", secure.address.port());
    let folder = certs.path().join(&by_name);
    fs::create_dir(&folder).unwrap();
    let hosts = format!("server = \"https://{by_name}\"\nca = {certificate:?}\n");
    fs::write(folder.join("hosts.toml"), hosts).unwrap();
    let nobody = format!("http://127.0.0.1:{}", {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    });
    let (right, wrong) = (proxy.url(LOGIN), proxy.url("cocoon:wrong"));
    proxy.requests();
    for (registry, name, variables) in [
        (
            &plain,
            plain.address.to_string(),
            ["http_proxy", "HTTP_PROXY", "ALL_PROXY"],
        ),
        (
            &secure,
            by_name,
            ["https_proxy", "HTTPS_PROXY", "all_proxy"],
        ),
    ] {
        let image = format!("{name}/some/vm:1");
        for variable in variables {
            pull(&image, &certs, &[(variable, &right)]).unwrap();
            let requests = proxy.requests();
            let meant = |request: &String| request.contains(&registry.address.port().to_string());
            assert!(
                !requests.is_empty() && requests.iter().all(meant),
                "{variable}: {requests:?}"
            );
        }
        let variable = variables[0];
        // That of another scheme is not meant, nor is one for this host.
        let other = if variable == "http_proxy" {
            "https_proxy"
        } else {
            "http_proxy"
        };
        pull(&image, &certs, &[(other, &nobody)]).unwrap();
        let host = name.split(':').next().unwrap();
        let past_it = [(variable, &*nobody), ("no_proxy", host)];
        pull(&image, &certs, &past_it).unwrap();
        assert!(proxy.requests().is_empty());
        for url in [&nobody, &wrong] {
            let told = pull(&image, &certs, &[(variable, url)]).unwrap_err();
            let named = format!("(through the proxy http://127.0.0.1:{}", port_of(url));
            assert!(told.contains(&named), "{told}");
            assert!(told.contains("hint: check the proxy"), "{told}");
            assert!(!told.contains("wrong"), "{told}");
        }
        proxy.requests();
    }
}
