//! Pulls from a server that goes wrong on demand.

use std::fs;
use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;

pub(super) use crate::image::fixture::{Heard, Host, chain, gzip, noise, tar_of};

use super::fault_server::{Fault, FaultServer, ServedLayer};
use super::*;
use crate::image::manifest::Platform;
use crate::image::progress::{PullEvent, Silent};
use crate::units::Digest;

/// Fast retries, so that failing tests fail soon.
pub(super) fn options() -> PullOptions {
    PullOptions {
        assembly: AssemblyOptions {
            parallel: NonZeroUsize::new(2).unwrap(),
            ..AssemblyOptions::default()
        },
        retry: RetryPolicy {
            attempts: 5,
            first_delay: Duration::from_millis(2),
            max_delay: Duration::from_millis(20),
            max_retry_after: Duration::from_secs(2),
        },
        ..PullOptions::default()
    }
}

pub(super) fn layer(tar: &[u8]) -> ServedLayer {
    ServedLayer {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        sent: gzip(tar),
        diff_id: Digest::of(tar),
    }
}

pub(super) fn boot_layer() -> ServedLayer {
    layer(&tar_of(&[
        ("boot/vmlinuz-6.1", &noise(1, 70_000)),
        ("boot/initrd.img-6.1", &noise(2, 130_000)),
    ]))
}

pub(super) fn data_layer(seed: u64) -> ServedLayer {
    layer(&tar_of(&[("usr/data", &noise(seed, 200_000))]))
}

pub(super) fn reference(server: &FaultServer, name: &str) -> Reference {
    format!("{}/{name}", server.address).parse().unwrap()
}

pub(super) fn pull_from(
    server: &FaultServer,
    host: &Host,
    name: &str,
) -> Result<ReadyImage, PullError> {
    let result = pull(&reference(server, name), &options(), &host.store, &Silent);
    host.assert_nothing_staged();
    result
}

/// The stand-in and the real converter both keep the size and content of what is in the boot files.
pub(super) fn kernel_of(host: &Host, image: &ReadyImage) -> Vec<u8> {
    fs::read(host.store.kernel_path(&image.kernel_layer)).unwrap()
}

#[test]
fn an_image_is_pulled_verified_and_not_fetched_again() {
    let server = FaultServer::start();
    let (boot, data) = (boot_layer(), data_layer(3));
    let manifest = server.put_image("a/b", &[&boot, &data, &boot]);
    let host = Host::new();
    let heard = Heard::default();
    let name = reference(&server, "a/b");
    let first = pull(&name, &options(), &host.store, &heard).unwrap();
    assert_eq!(first.manifest_digest, manifest);
    assert_eq!(first.created, Some("2026-01-02T03:04:05Z".parse().unwrap()));
    assert_eq!(
        (first.kernel_layer, first.initrd_layer),
        (boot.digest(), boot.digest())
    );
    let digests: Vec<_> = first.layers.iter().map(|layer| layer.digest).collect();
    assert_eq!(digests, [boot.digest(), data.digest(), boot.digest()]);
    assert!(!first.was_up_to_date());
    assert_eq!(kernel_of(&host, &first), noise(1, 70_000));
    let on_disk: u64 = [&boot, &data]
        .iter()
        .map(|layer| host.store.find(&layer.digest()).unwrap().unwrap().size())
        .sum();
    assert_eq!(first.size, on_disk);
    let heard = heard.0.into_inner().unwrap();
    let advanced = heard
        .iter()
        .filter_map(|line| line.strip_prefix("advanced "));
    let advanced: usize = advanced.map(|bytes| bytes.parse::<usize>().unwrap()).sum();
    assert_eq!(advanced, boot.sent.len() + data.sent.len());
    assert_eq!(heard[0], "resolved 2");
    assert_eq!(heard.iter().filter(|line| *line == "done").count(), 2);

    let again = pull_from(&server, &host, &format!("a/b@{manifest}")).unwrap();
    assert!(again.was_up_to_date());
    assert_eq!(again.size, first.size);
    let by_name = format!("localhost:{}/a/b", server.address.port());
    let by_name = pull(&by_name.parse().unwrap(), &options(), &host.store, &Silent);
    assert!(by_name.unwrap().was_up_to_date());
    for layer in [boot, data] {
        assert_eq!(server.requests(&layer.digest().hex()).len(), 1);
    }
}

#[test]
fn a_blob_that_was_cut_on_disk_is_fetched_again() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    let host = Host::new();
    pull_from(&server, &host, "a").unwrap();
    let blob = host.store.blob_path(&boot.digest());
    let whole = fs::read(&blob).unwrap();
    fs::write(&blob, &whole[..whole.len() - 1]).unwrap();
    let image = pull_from(&server, &host, "a").unwrap();
    assert!(!image.was_up_to_date());
    assert_eq!(fs::read(&blob).unwrap(), whole);
}

#[test]
fn the_topmost_kernel_and_initramfs_win_even_from_different_layers() {
    let server = FaultServer::start();
    let kernel = layer(&tar_of(&[("boot/vmlinuz-7", b"newer kernel")]));
    server.put_image("a", &[&boot_layer(), &kernel, &data_layer(3)]);
    let host = Host::new();
    let image = pull_from(&server, &host, "a").unwrap();
    assert_eq!(image.kernel_layer, kernel.digest());
    assert_eq!(image.initrd_layer, boot_layer().digest());
    assert_eq!(kernel_of(&host, &image), b"newer kernel");
}

#[test]
fn an_image_that_cannot_boot_is_refused_and_its_layers_serve_the_next() {
    let server = FaultServer::start();
    server.put_image("base", &[&data_layer(3)]);
    server.put_image("vm", &[&data_layer(3), &boot_layer()]);
    let kernel = layer(&tar_of(&[("boot/vmlinuz", b"k")]));
    server.put_image("half", &[&kernel]);
    let host = Host::new();
    for (name, missing) in [
        ("base", "a kernel or an initramfs"),
        ("half", "an initramfs"),
    ] {
        let error = pull_from(&server, &host, name).unwrap_err();
        assert!(
            matches!(
                error,
                PullError::Assembly(AssemblyError::NotBootable { .. })
            ),
            "{error}"
        );
        assert!(error.to_string().contains(missing), "{error}");
    }
    pull_from(&server, &host, "vm").unwrap();
    assert_eq!(server.requests(&data_layer(3).digest().hex()).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn a_layer_survives_connections_that_break_anywhere(
        cuts in proptest::collection::vec(0usize..90_000, 0..5), ignore_range: bool
    ) {
        let server = FaultServer::start();
        let boot = boot_layer();
        server.put_image("a", &[&boot]);
        let faults = cuts.iter().map(|at| Fault::Cut(*at));
        let last = ignore_range.then_some(Fault::NoRange);
        server.fail(&boot.digest().hex(), faults.chain(last));
        let host = Host::new();
        let image = pull_from(&server, &host, "a").unwrap();
        prop_assert_eq!(kernel_of(&host, &image), noise(1, 70_000));
        let requests = server.requests(&boot.digest().hex());
        prop_assert!(requests.len() > 1 || cuts.is_empty());
        let mut offset = 0;
        for (request, cut) in requests.iter().skip(1).zip(&cuts) {
            offset += cut;
            prop_assert!(offset == 0 || request.ends_with(&format!(" from {offset}")), "{}", request);
        }
    }
}

#[test]
fn a_tampered_layer_never_gets_its_name() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    let plain = {
        let tar = tar_of(&[("boot/vmlinuz", b"k"), ("boot/initrd.img", b"i")]);
        ServedLayer {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            diff_id: Digest::of(&tar),
            sent: tar,
        }
    };
    server.put_image("plain", &[&plain]);
    let last = boot.sent.len() - 1;
    for (name, layer, offsets) in [
        ("a", &boot, vec![0, 2, 9, 1000, last - 9, last]),
        ("plain", &plain, vec![0, 148, 512, plain.sent.len() - 1]),
    ] {
        for at in offsets {
            server.fail(&layer.digest().hex(), [Fault::Tamper(at)]);
            let host = Host::new();
            let error = pull_from(&server, &host, name).unwrap_err();
            let named = matches!(&error, PullError::Assembly(AssemblyError::LayerDigest { layer: it, .. }) if *it == layer.digest());
            assert!(named, "byte {at} of {name}: {}", chain(&error));
            host.assert_nothing_published();
        }
        let host = Host::new();
        pull_from(&server, &host, name).unwrap();
    }
}

#[test]
fn a_layer_that_is_not_the_tar_of_the_config_is_refused() {
    let server = FaultServer::start();
    let mut lying = boot_layer();
    lying.diff_id = Digest::of(b"something else");
    server.put_image("a", &[&lying]);
    let host = Host::new();
    let error = pull_from(&server, &host, "a").unwrap_err();
    assert!(
        matches!(error, PullError::Assembly(AssemblyError::DiffId { .. })),
        "{}",
        chain(&error)
    );
    host.assert_nothing_published();
}

#[test]
fn sizes_that_lie_are_refused() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    for (fault, times, part) in [
        (Fault::Short(1000), 6, "after 1000 of"),
        (Fault::Cut(0), 6, "broke off"),
        (Fault::Long(1), 1, "sends more than"),
    ] {
        server.fail(&boot.digest().hex(), vec![fault; times]);
        let host = Host::new();
        let error = pull_from(&server, &host, "a").unwrap_err();
        assert!(
            matches!(error, PullError::Registry { .. }),
            "{}",
            chain(&error)
        );
        assert!(chain(&error).contains(part), "{}", chain(&error));
        host.assert_nothing_published();
    }
}

#[test]
fn an_end_that_came_too_early_is_made_good_by_the_next_request() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    server.fail(&boot.digest().hex(), [Fault::Short(1000)]);
    let host = Host::new();
    pull_from(&server, &host, "a").unwrap();
    assert!(server.requests(&boot.digest().hex())[1].ends_with(" from 1000"));
}

#[test]
fn a_wrong_part_of_a_layer_is_refused_or_found_out() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    server.fail(
        &boot.digest().hex(),
        [Fault::Cut(1000), Fault::SaysRange(1001)],
    );
    let host = Host::new();
    let error = chain(&pull_from(&server, &host, "a").unwrap_err());
    assert!(error.contains("wrong part"), "{error}");
    // The server sends from 1000 on and says that it is from 900 on: a part is missing.
    server.fail(
        &boot.digest().hex(),
        [Fault::Cut(1000), Fault::SaysRange(900)],
    );
    assert!(pull_from(&server, &host, "a").is_err());
    host.assert_nothing_published();
}

#[test]
fn a_busy_registry_is_asked_again_when_it_wants_to_be() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    server.fail(
        "/manifests/",
        [
            Fault::Status(429, "Retry-After: 1\r\n"),
            Fault::Status(503, ""),
        ],
    );
    server.fail(
        &boot.digest().hex(),
        [Fault::Status(500, ""), Fault::Status(429, "")],
    );
    let host = Host::new();
    let heard = Heard::default();
    let begun = Instant::now();
    pull(&reference(&server, "a"), &options(), &host.store, &heard).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let heard = heard.0.into_inner().unwrap();
    assert_eq!(
        heard
            .iter()
            .filter(|line| line.starts_with("retry"))
            .count(),
        4
    );
    // Longer than a user should wait without being told.
    server.fail("/manifests/", [Fault::Status(429, "Retry-After: 3600\r\n")]);
    let error = chain(&pull_from(&server, &host, "a").unwrap_err());
    assert!(error.contains("status 429"), "{error}");
    server.fail("/manifests/", vec![Fault::Status(500, ""); 6]);
    let error = chain(&pull_from(&server, &host, "a").unwrap_err());
    assert!(error.contains("status 500"), "{error}");
}

#[test]
fn errors_tell_what_is_wrong_with_registry_name_or_access() {
    let server = FaultServer::start();
    server.put_image("a", &[&boot_layer()]);
    let host = Host::new();
    let of = |result: Result<ReadyImage, PullError>| match result.unwrap_err() {
        PullError::Registry { source, .. } => *source,
        other => panic!("{}", chain(&other)),
    };
    let missing = of(pull_from(&server, &host, "nothing"));
    assert!(
        matches!(missing, RegistryError::NotFound { .. }),
        "{missing}"
    );
    server.fail("/manifests/", [Fault::Status(403, "")]);
    let denied = of(pull_from(&server, &host, "a"));
    assert!(
        matches!(denied, RegistryError::Unauthorized { .. }),
        "{denied}"
    );
    server.fail("/manifests/", [Fault::Status(400, "")]);
    let refused = of(pull_from(&server, &host, "a"));
    assert!(
        matches!(refused, RegistryError::Refused { status: 400, .. }),
        "{refused}"
    );
    // A manifest whose digest is another.
    server.fail("/manifests/", [Fault::Tamper(20)]);
    let digest = server.put_image("a", &[&boot_layer()]);
    let changed = of(pull_from(&server, &host, &format!("a@{digest}")));
    assert!(
        matches!(changed, RegistryError::DigestMismatch { .. }),
        "{changed}"
    );
    server.put("/v2/large/manifests/latest", "", vec![b' '; (4 << 20) + 1]);
    let large = of(pull_from(&server, &host, "large"));
    assert!(matches!(large, RegistryError::TooLarge { .. }), "{large}");
    // An IPv4-mapped address is not taken for a loopback one, so TLS is spoken, to no avail.
    let tls = format!("[::ffff:127.0.0.1]:{}/a", server.address.port());
    let tls = of(pull(
        &tls.parse().unwrap(),
        &options(),
        &host.store,
        &Silent,
    ));
    assert!(
        matches!(tls, RegistryError::Unreachable { .. }),
        "{}",
        chain(&tls)
    );
    // Nobody listens there any more.
    let gone = reference(&server, "a");
    drop(server);
    let begun = Instant::now();
    let gone = of(pull(&gone, &PullOptions::default(), &host.store, &Silent));
    assert!(matches!(gone, RegistryError::Unreachable { .. }), "{gone}");
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "a dead registry is not waited for"
    );
}

#[test]
fn a_token_is_fetched_with_the_users_credentials() {
    let server = FaultServer::start();
    server.put_image("a", &[&boot_layer()]);
    let host = Host::new();
    server.require_token("secret", None);
    pull_from(&server, &host, "a").unwrap();
    // The same, but only for whoever logs in as u with password p:w.
    server.require_token("another", Some("Basic dTpwOnc="));
    let error = pull_from(&server, &host, "a").unwrap_err();
    let unauthorized = matches!(&error, PullError::Registry { source, .. }
        if matches!(**source, RegistryError::Unauthorized { .. }));
    assert!(unauthorized, "{}", chain(&error));
    let config = host.dir.path().join("config.json");
    let auths = json!({"auths": {server.address.to_string(): {"auth": "dTpwOnc="}}});
    fs::write(&config, auths.to_string()).unwrap();
    let with_config = PullOptions {
        docker_config: Some(config),
        ..options()
    };
    let host = Host::new();
    pull(&reference(&server, "a"), &with_config, &host.store, &Silent).unwrap();
}

#[test]
fn a_token_that_expires_between_two_layers_is_renewed() {
    let server = FaultServer::start();
    let boot = boot_layer();
    server.put_image("a", &[&boot]);
    server.require_token("first", None);
    server.fail(&boot.digest().hex(), [Fault::Cut(500)]);
    let host = Host::new();
    struct Expire<'a>(&'a FaultServer);
    impl Progress for Expire<'_> {
        fn event(&self, event: PullEvent<'_>) {
            if matches!(event, PullEvent::Retry { .. }) {
                self.0.require_token("second", None);
            }
        }
    }
    pull(
        &reference(&server, "a"),
        &options(),
        &host.store,
        &Expire(&server),
    )
    .unwrap();
    assert_eq!(server.requests("/token").len(), 2);
}

#[test]
fn two_pulls_at_once_fetch_each_layer_once() {
    let server = FaultServer::start();
    let layers = [boot_layer(), data_layer(3), data_layer(4)];
    let [boot, three, four] = &layers;
    server.put_image("one", &[boot, three, four]);
    let reversed = [four, three, boot];
    server.put_image("two", &reversed);
    let host = Host::new();
    thread::scope(|scope| {
        for name in ["one", "two", "one", "two"] {
            let (server, store) = (&server, &host.store);
            scope.spawn(move || {
                let name = reference(server, name);
                pull(&name, &options(), store, &Silent).unwrap()
            });
        }
    });
    host.assert_nothing_staged();
    for layer in &layers {
        assert_eq!(server.requests(&layer.digest().hex()).len(), 1);
    }
}

#[test]
fn the_first_error_ends_the_other_layers_promptly() {
    let server = FaultServer::start();
    let (boot, data) = (boot_layer(), data_layer(3));
    server.put_image("a", &[&boot, &data]);
    server.fail(&boot.digest().hex(), [Fault::Stall(5000)]);
    server.fail(&data.digest().hex(), [Fault::Status(404, "")]);
    let host = Host::new();
    let begun = Instant::now();
    let error = pull_from(&server, &host, "a").unwrap_err();
    assert!(chain(&error).contains("has no layer"), "{}", chain(&error));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_layer_that_is_no_gzip_is_refused() {
    let server = FaultServer::start();
    let mut odd = boot_layer();
    odd.media_type = "application/vnd.oci.image.layer.v1.tar+zstd".to_owned();
    server.put_image("a", &[&odd]);
    let host = Host::new();
    let error = pull_from(&server, &host, "a").unwrap_err();
    assert!(
        matches!(error, PullError::Assembly(AssemblyError::Decode { .. })),
        "{}",
        chain(&error)
    );
    assert!(
        chain(&error).contains("zstd, by its first bytes gzip"),
        "{}",
        chain(&error)
    );
    host.assert_nothing_published();
}

#[test]
fn an_index_leads_to_the_manifest_of_this_platform() {
    let server = FaultServer::start();
    let boot = boot_layer();
    let manifest = server.put_image("a", &[&boot]);
    let size = server.size("/v2/a/manifests/latest");
    let entry = |digest: Digest, size: usize, architecture: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": size,
            "digest": digest, "platform": {"os": "linux", "architecture": architecture}})
    };
    let media_type = "application/vnd.oci.image.index.v1+json";
    let entries = [
        entry(Digest::of(b"other"), 1, "s390x"),
        entry(manifest, size, Platform::host().architecture),
    ];
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    server.put("/v2/a/manifests/latest", media_type, index.into_bytes());
    let host = Host::new();
    let image = pull_from(&server, &host, "a").unwrap();
    assert_eq!(image.manifest_digest, manifest);
    // One that says that the manifest is shorter than it is.
    let lie = entry(manifest, size - 1, Platform::host().architecture);
    let index = json!({"schemaVersion": 2, "manifests": [lie]}).to_string();
    server.put("/v2/a/manifests/latest", media_type, index.into_bytes());
    let error = pull_from(&server, &host, "a").unwrap_err();
    let text = format!(
        "manifest has {size} bytes, and what names it says {}",
        size - 1
    );
    assert!(chain(&error).contains(&text), "{}", chain(&error));
    // An index that names itself, or another, leads nowhere.
    let nested = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": []}).to_string();
    let inner = Digest::of(nested.as_bytes());
    let outer =
        json!({"schemaVersion": 2, "manifests": [entry(inner, nested.len(), "amd64")]}).to_string();
    server.put(
        &format!("/v2/a/manifests/{inner}"),
        media_type,
        nested.into_bytes(),
    );
    server.put("/v2/a/manifests/latest", media_type, outer.into_bytes());
    let mut options = options();
    options.assembly.platform = Platform {
        architecture: "amd64",
    };
    let error = pull(&reference(&server, "a"), &options, &host.store, &Silent).unwrap_err();
    assert!(chain(&error).contains("another index"), "{}", chain(&error));
}

#[test]
fn an_image_of_another_platform_or_kind_is_refused_before_any_layer() {
    let server = FaultServer::start();
    let boot = boot_layer();
    let other = json!({"architecture": "s390x", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [boot.diff_id]}});
    server.put_image_with_config("a", &[&boot], &other);
    let mut foreign = boot.clone();
    foreign.media_type = "application/vnd.example.layer".to_owned();
    server.put_image("b", &[&foreign]);
    let old = json!({"schemaVersion": 1, "fsLayers": []}).to_string();
    let old_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    server.put("/v2/c/manifests/latest", old_type, old.into_bytes());
    let host = Host::new();
    for (name, part) in [
        ("a", "linux/s390x"),
        ("b", "vnd.example.layer"),
        ("c", "schema 1"),
    ] {
        let error = pull_from(&server, &host, name).unwrap_err();
        assert!(
            matches!(error, PullError::Manifest { .. }),
            "{}",
            chain(&error)
        );
        assert!(chain(&error).contains(part), "{}", chain(&error));
    }
    assert!(server.requests(&boot.digest().hex()).is_empty());
}
