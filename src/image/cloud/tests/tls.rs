//! A server with a certificate: trusted where the host trusts it, and never a way to plain http.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use super::server::FileServer;
use super::*;

/// Where the test that runs in a process of its own finds the servers.
const PORTS: &str = "COCOON_TEST_PORTS";

/// `openssl s_server`, which answers with files that are whole answers.
struct SecureServer(Child);

impl Drop for SecureServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_address_that_leads_from_https_to_http_is_not_followed() {
    if let Some(ports) = std::env::var_os(PORTS) {
        return from_both(ports.to_str().unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let openssl = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=test"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(at("key.pem"))
        .arg("-out")
        .arg(at("ca.pem"))
        .output();
    if !openssl.is_ok_and(|done| done.status.success()) {
        println!("SKIPPED: openssl is not installed");
        return;
    }
    let plain = FileServer::start();
    plain.put("/disk", &qcow2(1, 2));
    let answer = format!(
        "HTTP/1.0 302 x\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
        plain.url("/disk")
    );
    fs::write(at("disk"), answer).unwrap();
    let mut secure = Command::new("openssl")
        .args(["s_server", "-HTTP", "-accept", "127.0.0.1:0"])
        .args(["-cert", "ca.pem", "-key", "key.pem"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(secure.stdout.take().unwrap()).lines();
    let _secure = SecureServer(secure);
    let address = said.find_map(|line| {
        line.unwrap()
            .strip_prefix("ACCEPT 127.0.0.1:")
            .map(str::to_owned)
    });
    let ports = format!("{} {}", address.unwrap(), plain.address.port());
    // Whom a host trusts, a process reads from its environment.
    for (trusts, expected) in [
        (at("ca.pem"), "it leads from https to plain http"),
        (at("nothing.pem"), "cannot reach"),
    ] {
        fs::write(at("nothing.pem"), "").unwrap();
        let done = Command::new(std::env::current_exe().unwrap())
            .args([
                &format!(
                    "{}::an_address_that_leads_from_https_to_http_is_not_followed",
                    path()
                ),
                "--exact",
            ])
            .args(["--nocapture", "--test-threads=1"])
            .env(PORTS, &ports)
            .env("SSL_CERT_FILE", trusts)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&done.stdout);
        assert!(
            told.contains("1 passed") && told.contains(expected),
            "{told}"
        );
    }
    assert!(plain.asked().is_empty(), "{:?}", plain.asked());
}

/// Where this test is, as its program calls it.
fn path() -> &'static str {
    module_path!().split_once("::").unwrap().1
}

fn from_both(ports: &str) {
    let (secure, _) = ports.split_once(' ').unwrap();
    let url: CloudUrl = format!("https://localhost:{secure}/disk").parse().unwrap();
    let host = Host::new();
    let error = pull(&url, None, &options(), &host.store, &Silent).unwrap_err();
    println!("{}", chain(&error));
    host.assert_nothing_staged();
    host.assert_nothing_published();
}
