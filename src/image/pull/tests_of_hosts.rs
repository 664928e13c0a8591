//! Pulls by way of `hosts.toml`: mirrors, other servers, and what they must not learn.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::fault_server::{Fault, FaultServer, ServedLayer};
use super::tests::*;
use super::*;
use crate::image::progress::Silent;
use crate::units::Digest;

/// A registry that exists by its `hosts.toml` alone: no name server knows this name (RFC 6761, 6.4).
const REGISTRY: &str = "registry.invalid";

/// Writes the `hosts.toml` of the registry.
fn configure(host: &Host, text: &str) -> PullOptions {
    let folder = host.dir.path().join("certs.d");
    fs::create_dir_all(folder.join(REGISTRY)).unwrap();
    fs::write(folder.join(REGISTRY).join("hosts.toml"), text).unwrap();
    PullOptions {
        registry_config: Some(folder),
        ..options()
    }
}

fn name(tag: &str) -> Reference {
    format!("{REGISTRY}/a{tag}").parse().unwrap()
}

/// A server with the image `a` of these layers.
fn server_of(layers: &[&ServedLayer]) -> (FaultServer, Digest) {
    let server = FaultServer::start();
    let digest = server.put_image("a", layers);
    (server, digest)
}

#[test]
fn a_registry_by_name_speaks_plain_http_where_it_is_configured_so() {
    let (server, digest) = server_of(&[&boot_layer()]);
    let host = Host::new();
    let options = configure(&host, &format!("server = \"http://{}\"", server.address));
    let image = pull(&name(""), &options, &host.store, &Silent).unwrap();
    assert_eq!(image.manifest_digest, digest);
    assert_eq!(image.reference, name(""));
    let requests = server.requests("/v2/a/");
    let ns = format!("?ns={REGISTRY}");
    assert!(
        requests.iter().all(|path| path.ends_with(&ns)),
        "{requests:?}"
    );
    // Without it, the name is one that nobody knows.
    let error = pull(&name(""), &super::tests::options(), &host.store, &Silent).unwrap_err();
    assert!(chain(&error).contains("cannot reach registry registry.invalid"));
}

#[test]
fn a_mirror_is_asked_first_and_what_tags_mean_only_whom_one_trusts() {
    let (boot, data) = (boot_layer(), data_layer(3));
    // It has the upstream's image, too, but by its digest alone.
    let (mirror, _) = server_of(&[&boot]);
    mirror.put_image("a", &[&boot, &data]);
    let (upstream, digest) = server_of(&[&boot]);
    let text = |capabilities: &str| {
        format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [{capabilities}]\n",
            upstream.address, mirror.address
        )
    };
    let host = Host::new();
    let options = configure(&host, &text("\"pull\""));
    let image = pull(&name(""), &options, &host.store, &Silent).unwrap();
    assert_eq!(
        image.manifest_digest, digest,
        "the upstream says what latest is"
    );
    assert_eq!(
        upstream.requests("/v2/").len(),
        1,
        "{:?}",
        upstream.requests("")
    );
    assert_eq!(mirror.requests("/manifests/").len(), 0);

    let options = configure(&host, &text("\"pull\", \"resolve\""));
    let image = pull(&name(""), &options, &host.store, &Silent).unwrap();
    assert_ne!(
        image.manifest_digest, digest,
        "the mirror says what latest is"
    );
    assert_eq!(upstream.requests("/v2/").len(), 1);

    // By a digest nobody needs to be trusted.
    let options = configure(&host, &text("\"pull\""));
    let (asked, by_digest) = (
        mirror.requests("").len(),
        format!("@{}", image.manifest_digest),
    );
    pull(&name(&by_digest), &options, &host.store, &Silent).unwrap();
    assert_eq!(upstream.requests("/v2/").len(), 1);
    assert!(mirror.requests("").len() > asked);
}

#[test]
fn whatever_is_wrong_with_a_mirror_the_upstream_is_asked_and_goes_on_where_it_was() {
    let boot = boot_layer();
    let layer = boot.digest().hex();
    let tampered = Fault::Tamper(100);
    for (part, fault, resumed) in [
        ("/manifests/", Fault::Status(404, ""), false),
        ("/manifests/", Fault::Status(500, ""), false),
        ("/manifests/", Fault::Status(403, ""), false),
        ("/manifests/", tampered, false),
        (&layer[..], Fault::Status(404, ""), false),
        (&layer, Fault::Status(429, "Retry-After: 3600\r\n"), false),
        (&layer, Fault::Short(90_000), true),
        (&layer, Fault::Cut(90_000), true),
    ] {
        let what = format!("{part}: {fault:?}");
        let (mirror, digest) = server_of(&[&boot]);
        let (upstream, _) = server_of(&[&boot]);
        mirror.fail(part, [fault]);
        let host = Host::new();
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            upstream.address, mirror.address
        );
        let options = configure(&host, &text);
        let heard = Heard::default();
        let by_digest = name(&format!("@{digest}"));
        let image = pull(&by_digest, &options, &host.store, &heard).unwrap();
        assert_eq!(image.manifest_digest, digest, "{what}");
        let heard = heard.0.into_inner().unwrap();
        let next = heard
            .iter()
            .filter(|line| line.starts_with("next "))
            .count();
        assert_eq!(next, 1, "{what}: {heard:?}");
        let requests = upstream.requests(part);
        assert_eq!(requests.len(), 1, "{what}");
        assert_eq!(
            requests[0].contains(" from "),
            resumed,
            "{what}: {requests:?}"
        );
        host.assert_nothing_staged();
    }
    // One that is not there at all.
    let mirror = FaultServer::start();
    let (upstream, _) = server_of(&[&boot]);
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        upstream.address, mirror.address
    );
    drop(mirror);
    let host = Host::new();
    pull(&name(""), &configure(&host, &text), &host.store, &Silent).unwrap();
}

#[test]
fn a_layer_that_a_mirror_changes_comes_from_the_next_host() {
    let data = data_layer(3);
    let raw = ServedLayer {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        sent: tar_of(&[("usr/raw", &noise(4, 200_000))]),
        diff_id: Digest::of(&tar_of(&[("usr/raw", &noise(4, 200_000))])),
    };
    // A wrong byte of a packed layer cannot be unpacked; one of a plain tar is only another byte.
    for (layer, cut) in [(&data, false), (&raw, false), (&raw, true)] {
        let boot = boot_layer();
        let (mirror, digest) = server_of(&[&boot, layer]);
        let (upstream, _) = server_of(&[&boot, layer]);
        let hex = layer.digest().hex();
        // What two hosts have sent in parts is fetched from the second one again.
        match cut {
            true => {
                mirror.fail(&hex, [Fault::TamperAndCut(100_000, 150_000)]);
            }
            false => mirror.fail(&hex, [Fault::Tamper(100_000)]),
        }
        let host = Host::new();
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            upstream.address, mirror.address
        );
        let heard = Heard::default();
        let by_digest = name(&format!("@{digest}"));
        pull(&by_digest, &configure(&host, &text), &host.store, &heard).unwrap();
        host.assert_nothing_staged();
        let blob = fs::read(host.store.blob_path(&layer.digest())).unwrap();
        let honest = Host::new();
        pull_from(&upstream, &honest, "a").unwrap();
        let expected = fs::read(honest.store.blob_path(&layer.digest())).unwrap();
        assert!(blob == expected, "the blob is another one");
        let heard = heard.0.into_inner().unwrap();
        let lie = format!("from registry {} has the digest", mirror.address);
        let lie = heard.iter().filter(|line| line.contains(&lie));
        assert_eq!(lie.count(), 1, "{heard:?}");
    }
    // The last host's lie is told.
    let boot = boot_layer();
    let (mirror, digest) = server_of(&[&boot]);
    let (upstream, _) = server_of(&[&boot]);
    for server in [&mirror, &upstream] {
        server.fail(&boot.digest().hex(), [Fault::Tamper(100)]);
    }
    let host = Host::new();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        upstream.address, mirror.address
    );
    let by_digest = name(&format!("@{digest}"));
    let error = pull(&by_digest, &configure(&host, &text), &host.store, &Silent).unwrap_err();
    assert!(chain(&error).contains("arrived as"), "{}", chain(&error));
    host.assert_nothing_staged();
    host.assert_nothing_published();
}

#[test]
fn the_last_host_is_asked_again_and_says_what_is_wrong() {
    let (server, _) = server_of(&[&boot_layer()]);
    let text = format!("server = \"http://{}\"", server.address);
    server.fail("/manifests/", [Fault::Status(503, "")]);
    let host = Host::new();
    let heard = Heard::default();
    pull(&name(""), &configure(&host, &text), &host.store, &heard).unwrap();
    let heard = heard.0.into_inner().unwrap();
    assert!(
        heard[0].starts_with("retry registry 127.0.0.1:"),
        "{heard:?}"
    );
    let nobody = format!("{text}\ncapabilities = [\"pull\"]\n");
    let error = pull(&name(""), &configure(&host, &nobody), &host.store, &Silent);
    let text = chain(&error.unwrap_err());
    assert!(
        text.contains("registry registry.invalid may say what a tag means"),
        "{text}"
    );
}

#[test]
fn an_overridden_path_is_the_root_of_the_repositories() {
    let boot = boot_layer();
    let server = FaultServer::start();
    server.put_image("a", &[&boot]);
    server.put_image("mirror/v2/a", &[&boot]);
    let host = Host::new();
    for (url, own, asked) in [
        ("", false, "/v2/a/manifests/"),
        ("/v2/mirror", false, "/v2/mirror/v2/a/manifests/"),
        ("/v2/mirror/v2", false, "/v2/mirror/v2/a/manifests/"),
        ("/v2/mirror/v2", true, "/v2/mirror/v2/a/manifests/"),
        ("/v2", true, "/v2/a/manifests/"),
    ] {
        let before = server.requests(asked).len();
        let text = format!(
            "server = \"http://{}{url}\"\noverride_path = {own}\n",
            server.address
        );
        pull(&name(""), &configure(&host, &text), &host.store, &Silent).unwrap();
        assert_eq!(server.requests(asked).len(), before + 1, "{url}");
    }
}

#[test]
fn each_host_gets_the_credentials_of_its_own_name_alone() {
    let boot = boot_layer();
    let mirror = FaultServer::start();
    let (upstream, _) = server_of(&[&boot]);
    mirror.require_token("mirror's", None);
    upstream.require_token("upstream's", Some("Basic dTpwOnc="));
    let host = Host::new();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        upstream.address, mirror.address
    );
    let config = host.dir.path().join("config.json");
    let auths = json!({"auths": {upstream.address.to_string(): {"auth": "dTpwOnc="},
        REGISTRY: {"auth": "bm9ib2R5Om5vYm9keQ=="}}});
    fs::write(&config, auths.to_string()).unwrap();
    let options = PullOptions {
        docker_config: Some(config),
        ..configure(&host, &text)
    };
    pull(&name(""), &options, &host.store, &Silent).unwrap();
    assert!(upstream.logins().contains(&"Basic dTpwOnc=".to_owned()));
    for login in mirror.logins() {
        assert_eq!(
            login, "Bearer mirror's",
            "it learned a password or token of another host"
        );
    }
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let boot = boot_layer();
    let (registry, _) = server_of(&[&boot]);
    let (storage, _) = server_of(&[&boot]);
    registry.require_token("secret", None);
    let place = format!("/v2/a/blobs/{}", boot.digest());
    let header = format!("Location: http://{}{place}\r\n", storage.address);
    // A fault lives as long as its server, which ends with the test.
    let header: &'static str = Box::leak(header.into_boxed_str());
    registry.fail(&place, [Fault::Status(307, header)]);
    let host = Host::new();
    pull_from(&registry, &host, "a").unwrap();
    assert_eq!(storage.requests(&place).len(), 1);
    assert!(registry.logins().contains(&"Bearer secret".to_owned()));
    assert_eq!(storage.logins(), [""; 0]);
}

#[test]
fn a_configuration_that_cannot_be_used_ends_the_pull() {
    let host = Host::new();
    let options = configure(&host, "server = 7");
    let text = chain(&pull(&name(""), &options, &host.store, &Silent).unwrap_err());
    assert!(
        text.contains("registry.invalid/hosts.toml") && text.contains("line 1"),
        "{text}"
    );
    let options = PullOptions {
        registry_config: Some(Path::new("/nowhere").to_owned()),
        ..super::tests::options()
    };
    let (server, _) = server_of(&[&boot_layer()]);
    pull(&reference(&server, "a"), &options, &host.store, &Silent).unwrap();
}
