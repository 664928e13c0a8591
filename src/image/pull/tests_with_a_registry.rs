//! Pulls from Debian's `docker-registry`, into which skopeo has pushed what umoci has made.

#[path = "../../../tests/support/registry.rs"]
mod registry;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::json;

use self::registry::Registry;
use super::tests::{Host, noise, options};
use super::*;
use crate::image::progress::Silent;

fn start(auth: &str) -> Option<Registry> {
    start_with("", auth)
}

/// Prints why and gives none where a tool is missing.
fn start_with(http: &str, auth: &str) -> Option<Registry> {
    Registry::start(http, auth)
        .map_err(|why| println!("SKIPPED: {why}"))
        .ok()
}

fn push(registry: &Registry, tag: &str, flags: &[&str]) -> Reference {
    registry.push(tag, flags).parse().unwrap()
}

/// The requests for blobs of this digest, by the registry's own access log.
fn blob_requests(registry: &Registry, digest: &Digest) -> usize {
    let log = fs::read_to_string(registry.path("registry.log")).unwrap();
    let request = format!("/blobs/{digest} ");
    let ours = log.lines().filter(|line| line.contains("cocoon/"));
    ours.filter(|line| line.contains("GET") && line.contains(&request))
        .count()
}

fn boot_files(seed: u64) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("boot/vmlinuz-6.1", noise(seed, 300_000)),
        ("boot/initrd.img-6.1", noise(seed + 1, 700_000)),
    ]
}

#[test]
fn images_are_pulled_from_a_real_registry_whatever_their_format() {
    let Some(registry) = start("") else { return };
    // Contents differ, for skopeo pushes no layer again that it has pushed in another form.
    for (seed, flags, media_type) in [
        (10, &[][..], "application/vnd.oci.image.layer.v1.tar+gzip"),
        (
            20,
            &["--format", "v2s2"],
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
        (
            30,
            &["--dest-compress-format", "zstd"],
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    ] {
        let tag = format!("vm{seed}");
        registry.build(
            &tag,
            &[&boot_files(seed), &[("etc/x", noise(seed + 2, 200_000))]],
        );
        let name = push(&registry, &tag, flags);
        let host = Host::new();
        let image = pull(&name, &options(), &host.store, &Silent).unwrap();
        host.assert_nothing_staged();
        let types: Vec<_> = image.layers.iter().map(|layer| layer.media_type).collect();
        assert_eq!(types, [media_type; 2]);
        assert_eq!(image.kernel_layer, image.layers[0].digest);
        let initrd = fs::read(host.store.initrd_path(&image.initrd_layer)).unwrap();
        assert_eq!(initrd, noise(seed + 1, 700_000));
    }
}

#[test]
fn a_layer_of_two_images_is_fetched_once_and_a_second_pull_fetches_none() {
    let Some(registry) = start("") else { return };
    registry.build("one", &[&boot_files(1), &[("etc/x", noise(3, 200_000))]]);
    registry.build("two", &[&boot_files(1), &[("etc/x", noise(4, 200_000))]]);
    let (one, two) = (push(&registry, "one", &[]), push(&registry, "two", &[]));
    let host = Host::new();
    let first = pull(&one, &options(), &host.store, &Silent).unwrap();
    let second = pull(&two, &options(), &host.store, &Silent).unwrap();
    let cached: Vec<_> = second.layers.iter().map(|layer| layer.cached).collect();
    assert_eq!(cached, [true, false]);
    let again = pull(&one, &options(), &host.store, &Silent).unwrap();
    assert!(again.was_up_to_date());
    for layer in first.layers.iter().chain(&second.layers) {
        assert_eq!(blob_requests(&registry, &layer.digest), 1);
    }
}

#[test]
fn two_processes_worth_of_pulls_fetch_each_blob_of_a_real_registry_once() {
    let Some(registry) = start("") else { return };
    registry.build(
        "vm",
        &[
            &boot_files(1),
            &[("a", noise(3, 300_000))],
            &[("b", noise(4, 300_000))],
        ],
    );
    let name = push(&registry, "vm", &[]);
    let host = Host::new();
    let images = thread::scope(|scope| {
        let pulls: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| pull(&name, &options(), &host.store, &Silent).unwrap()))
            .collect();
        let joined = pulls.into_iter().map(|pull| pull.join().unwrap());
        joined.collect::<Vec<_>>()
    });
    host.assert_nothing_staged();
    assert_eq!(images[0].manifest_digest, images[1].manifest_digest);
    for (one, two) in images[0].layers.iter().zip(&images[1].layers) {
        assert_eq!(blob_requests(&registry, &one.digest), 1);
        assert!(
            one.cached != two.cached,
            "exactly one of two pulls made {}",
            one.digest
        );
    }
}

/// The `auth` section of a registry for user u with password p:w.
fn with_passwords(folder: &Path) -> String {
    let passwords = folder.join("htpasswd");
    fs::write(
        &passwords,
        "u:$2y$04$ODcmnzkOr225Abqi2knLcOfMP4DUk9D0tnkGCEslt4oMCQe1AewAS\n",
    )
    .unwrap();
    format!(
        "auth: {{htpasswd: {{realm: test, path: '{}'}}}}\n",
        passwords.display()
    )
}

#[test]
fn a_real_registry_with_passwords_is_opened_by_dockers_configuration() {
    let files = tempfile::tempdir().unwrap();
    let auth = with_passwords(files.path());
    let Some(registry) = start(&auth) else { return };
    registry.build("vm", &[&boot_files(1)]);
    let name = push(&registry, "vm", &["--dest-creds", "u:p:w"]);
    let host = Host::new();
    for (login, opens) in [
        (None, false),
        (Some("dTp3cm9uZw=="), false),
        (Some("dTpwOnc="), true),
    ] {
        let config = files.path().join("config.json");
        let entry = login.map(|login| json!({registry.address.to_string(): {"auth": login}}));
        fs::write(&config, json!({"auths": entry}).to_string()).unwrap();
        let options = PullOptions {
            docker_config: Some(config),
            ..options()
        };
        match pull(&name, &options, &host.store, &Silent) {
            Ok(_) => assert!(opens),
            Err(PullError::Registry { source, .. }) => {
                let unauthorized = matches!(*source, RegistryError::Unauthorized { .. });
                assert!(unauthorized && !opens, "{source}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_registry_with_a_certificate_and_passwords_is_trusted_as_far_as_hosts_toml_says() {
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name).display().to_string();
    let request = "[req]\ndistinguished_name = dn\nprompt = no\nx509_extensions = more\n[dn]\nCN = test\n\
        [more]\nsubjectAltName = DNS:localhost\nbasicConstraints = critical,CA:FALSE\n";
    fs::write(at("request"), request).unwrap();
    let openssl = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-config", &at("request"), "-keyout", &at("key.pem")])
        .args(["-out", &at("ca.pem")])
        .output();
    if !openssl.is_ok_and(|done| done.status.success()) {
        println!("SKIPPED: openssl is not installed");
        return;
    }
    let tls = format!(
        ", tls: {{certificate: {}, key: {}}}",
        at("ca.pem"),
        at("key.pem")
    );
    let Some(registry) = start_with(&tls, &with_passwords(files.path())) else {
        return;
    };
    registry.build("vm", &[&boot_files(1)]);
    push(&registry, "vm", &["--dest-creds", "u:p:w"]);
    let host = Host::new();
    let name: Reference = "registry.invalid/some/vm:1".parse().unwrap();
    // By an address for which it is no certificate, and by the name for which it is one.
    let port = registry.address.port();
    let address = format!("https://127.0.0.1:{port}");
    let by_name = format!("https://localhost:{port}");
    let login = json!({"auth": "dTpwOnc="});
    let auths =
        json!({"auths": {format!("127.0.0.1:{port}"): login, format!("localhost:{port}"): login}});
    fs::write(at("config.json"), auths.to_string()).unwrap();
    let folder = files.path().join("certs.d/registry.invalid");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("ca.pem"), fs::read(at("ca.pem")).unwrap()).unwrap();
    for (server, more, opens) in [
        (&address, "", false),
        (&address, "ca = \"ca.pem\"", false),
        (&address, "skip_verify = true", true),
        (&by_name, "", false),
        (&by_name, "ca = [\"ca.pem\"]", true),
    ] {
        fs::write(
            folder.join("hosts.toml"),
            format!("server = \"{server}\"\n{more}\n"),
        )
        .unwrap();
        let options = PullOptions {
            registry_config: Some(files.path().join("certs.d")),
            docker_config: Some(at("config.json").into()),
            ..options()
        };
        match pull(&name, &options, &host.store, &Silent) {
            Ok(_) => assert!(opens, "{server} {more}"),
            Err(PullError::Registry { source, .. }) => {
                let unreachable = matches!(*source, RegistryError::Unreachable { .. });
                assert!(unreachable && !opens, "{server} {more}: {source:?}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    // As Docker has it: a file for the registry itself, which here is on this host.
    let name: Reference = format!("localhost:{port}/some/vm:1").parse().unwrap();
    let folder = files.path().join(format!("certs.d/localhost:{port}"));
    let options = PullOptions {
        registry_config: Some(files.path().join("certs.d")),
        docker_config: Some(at("config.json").into()),
        ..options()
    };
    pull(&name, &options, &host.store, &Silent).unwrap_err();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("ca.crt"), fs::read(at("ca.pem")).unwrap()).unwrap();
    pull(&name, &options, &host.store, &Silent).unwrap();
}
