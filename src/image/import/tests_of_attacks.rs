//! Images whose documents and layers lie, with digests that are right: what each is, and what is said of it.
//!
//! ```text
//!   layer ──▶ config ──▶ manifest ──▶ index.json      an attack changes one of them; what names it is made
//!                                                     after it, so that it agrees with the change
//! ```

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::tests::*;
use super::tests_of_documents::{behind_a_mark, configs, indexes, manifests, nested};
use super::tests_of_streams::streams;
use super::*;
use crate::image::fixture::{Cost, Host, chain, gzip, is_alone};
use crate::image::layer::Limits;
use crate::image::progress::Silent;

/// What is said of what looks like an attack and is none.
pub(super) const ACCEPTED: &str = "accepted";

pub(super) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(super) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Processor time of an attack: documents of 4 MiB are read and hashed without optimisation.
const TIME: Duration = Duration::from_secs(20);

/// Memory of an attack: documents of 4 MiB as values, and the window of a decompressor.
const MEMORY: u64 = 256 << 20;

/// Of a layer, small so that bombs stop soon.
const LIMITS: Limits = Limits {
    max_bytes: 4 << 20,
    max_entries: 100,
    max_metadata_bytes: 64 << 10,
};

/// What is changed.
pub(super) enum At {
    Layer(&'static str, fn() -> Vec<u8>),
    Config(fn(Value) -> Vec<u8>),
    Manifest(fn(Value) -> Vec<u8>),
    Index(fn(Value) -> Vec<u8>),
}

pub(super) type Row = (&'static str, At, &'static str);

pub(super) fn text(value: Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// A layout with the change of `at`.
fn forged(at: &At) -> Members {
    let mut members = Members::new();
    let tar = root(1);
    let (layer_type, layer) = match at {
        At::Layer(media_type, make) => (*media_type, make()),
        _ => (GZIP, gzip(&tar)),
    };
    let layer = put(&mut members, layer_type, layer);
    let config = json!({"architecture": host_arch(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar)]}});
    let config = match at {
        At::Config(change) => change(config),
        _ => text(config),
    };
    let config_type = "application/vnd.oci.image.config.v1+json";
    let config = put(&mut members, config_type, config);
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    let manifest = match at {
        At::Manifest(change) => change(manifest),
        _ => text(manifest),
    };
    let manifest = put(&mut members, MANIFEST, manifest);
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    let index = match at {
        At::Index(change) => change(index),
        _ => text(index),
    };
    members.insert("index.json".to_owned(), index);
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    members.insert("oci-layout".to_owned(), text(layout));
    members
}

/// Imports, with small limits.
fn said(host: &Host, input: Input) -> String {
    let options = AssemblyOptions {
        limits: LIMITS,
        ..AssemblyOptions::default()
    };
    let imported = import(&name(), input, &options, &host.store, &Silent);
    host.assert_nothing_staged();
    match imported {
        Ok(_) => ACCEPTED.to_owned(),
        Err(error) => {
            host.assert_nothing_published();
            chain(&error)
        }
    }
}

/// What is wrong with what was said, if something is.
fn difference(what: &str, said: &str, sentence: &str) -> Option<String> {
    let holds = match sentence {
        ACCEPTED => said == ACCEPTED,
        sentence => said != ACCEPTED && said.contains(sentence),
    };
    let holds = holds && !said.contains(char::is_control);
    (!holds).then(|| format!("{what}: {said:?} is not {sentence:?}"))
}

fn assert_said(what: &str, said: &str, sentence: &str) {
    assert_eq!(difference(what, said, sentence), None);
}

#[test]
fn every_image_that_lies_is_refused_by_name_within_bounds_and_leaves_nothing() {
    let test = "every_image_that_lies_is_refused_by_name_within_bounds_and_leaves_nothing";
    if !is_alone(module_path!(), test) {
        return;
    }
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let port = elsewhere.local_addr().unwrap().port().to_string();
    let tables = [
        ("an index", indexes()),
        ("a manifest", manifests()),
        ("a config", configs()),
        ("a stream", streams()),
    ];
    let count: usize = tables.iter().map(|(_, rows)| rows.len()).sum();
    assert!(count > 80, "{count}");
    let mut wrong = Vec::new();
    for (of, rows) in tables {
        for (what, at, sentence) in rows {
            let what = format!("{of}: {what}");
            let mut members = forged(&at);
            pointing_to(&mut members, &port);
            let before = Cost::now();
            let host = Host::new();
            let folder = folder_of(&members);
            let said = said(&host, Input::at(folder.path()));
            wrong.extend(difference(&what, &said, sentence));
            before.assert_within(TIME, MEMORY, &what);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let visit = elsewhere.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(visit, Err(std::io::ErrorKind::WouldBlock), "it was fetched");
}

/// Puts the port of a listener into the documents, which then are other ones.
fn pointing_to(members: &mut Members, port: &str) {
    let holds = |body: &[u8]| body.len() < 5000 && String::from_utf8_lossy(body).contains(":URL/");
    let Some(name) = members
        .iter()
        .find(|(_, body)| holds(body))
        .map(|(name, _)| name.clone())
    else {
        return;
    };
    let body = String::from_utf8(members.remove(&name).unwrap()).unwrap();
    let manifest = put(
        members,
        MANIFEST,
        body.replace(":URL/", &format!(":{port}/")).into(),
    );
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    members.insert("index.json".to_owned(), text(index));
}

/// What stands in a folder in the place of a member.
type Change = fn(&Path, &Path);

#[test]
fn a_folder_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, layout(&[&root(1)])["index.json"].clone()).unwrap();
    let table: [(&str, &str, Change, &str); 9] = [
        (
            "a link to a file outside",
            "index.json",
            |at, secret| symlink(secret, at).unwrap(),
            "\"index.json\" is refused: it links to what is outside",
        ),
        (
            "a relative link out",
            "index.json",
            |at, _| symlink("../../../../../etc/hostname", at).unwrap(),
            "it links to what is outside",
        ),
        (
            "a link out, of the mark itself",
            "oci-layout",
            |at, secret| symlink(secret, at).unwrap(),
            "\"oci-layout\" is refused: it links to what is outside",
        ),
        (
            "a link to itself",
            "index.json",
            |at, _| symlink("index.json", at).unwrap(),
            "it is a link to a link",
        ),
        (
            "a link to a descriptor of this process",
            "index.json",
            |at, _| symlink("/proc/self/fd/0", at).unwrap(),
            "it links to what is outside",
        ),
        (
            "a folder of blobs that is outside",
            "blobs",
            |at, secret| symlink(secret.parent().unwrap(), at).unwrap(),
            "it links to what is outside",
        ),
        (
            "a folder",
            "index.json",
            |at, _| fs::create_dir(at).unwrap(),
            "\"index.json\" is refused: it is no file",
        ),
        (
            "a socket",
            "index.json",
            |at, _| drop(UnixListener::bind(at).unwrap()),
            "cannot read index.json",
        ),
        (
            "a pipe that nobody writes to",
            "index.json",
            |at, _| nix::unistd::mkfifo(at, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            "it is no file",
        ),
    ];
    for (what, member, change, sentence) in table {
        let folder = folder_of(&layout(&[&root(1)]));
        let at = folder.path().join(member);
        match at.is_dir() {
            true => fs::remove_dir_all(&at).unwrap(),
            false => fs::remove_file(&at).unwrap(),
        }
        change(&at, &secret);
        let host = Host::new();
        assert_said(what, &said(&host, Input::at(folder.path())), sentence);
    }
}

#[test]
fn root_a_device_in_a_folder_is_no_member() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let folder = folder_of(&layout(&[&root(1)]));
    let index = folder.path().join("index.json");
    fs::remove_file(&index).unwrap();
    // /dev/zero, which has no end.
    if let Err(error) = mknod(&index, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)) {
        println!("SKIPPED: no device can be made here: {error}");
        return;
    }
    let text = said(&Host::new(), Input::at(folder.path()));
    assert_said(
        "a device",
        &text,
        "\"index.json\" is refused: it is no file",
    );
}

#[test]
fn saved_images_whose_manifest_lies_are_refused() {
    let tar = root(1);
    let good = saved(&[&tar], &[("l.tar", tar.clone())]);
    let config = good.keys().find(|name| name.len() == 69).unwrap().clone();
    let image = |config: &str, layers: &[&str]| text(json!([{"Config": config, "Layers": layers}]));
    let layers = |layers: &[&str]| image(&config, layers);
    let of = |value: Value| {
        let text = value.to_string();
        text.into_bytes()
    };
    let mut wrong = Vec::new();
    for (what, manifest, sentence) in [
        (
            "a layer of the host",
            layers(&["/etc/passwd"]),
            "it lacks \"/etc/passwd\"",
        ),
        (
            "a layer far out",
            layers(&["a/../../../etc/passwd"]),
            "its name leaves",
        ),
        ("a layer with a NUL", layers(&["l.tar\0"]), "has a NUL"),
        ("a layer without a name", layers(&[""]), "is empty"),
        (
            "a layer that is all of it",
            layers(&["."]),
            "it lacks \".\"",
        ),
        (
            "a layer that is the manifest",
            layers(&["manifest.json"]),
            "it was changed on the way",
        ),
        (
            "a layer that is the config",
            layers(&[&config]),
            "it was changed on the way",
        ),
        (
            "a layer that moves the cursor",
            layers(&["\u{1b}[2J"]),
            "it lacks \"[2J\"",
        ),
        ("a config without a name", image("", &["l.tar"]), "is empty"),
        (
            "a config far out",
            image("../../../c.json", &["l.tar"]),
            "its name leaves",
        ),
        (
            "ten thousand layers",
            layers(&["l.tar"; 10_000]),
            "10000 layers; at most 127",
        ),
        (
            "ten thousand images",
            of(json!(vec![
                json!({"Config": "c\u{1b}", "Layers": ["l"]});
                10_000
            ])),
            "several images (c, c, ",
        ),
        (
            "layers, twice",
            format!(r#"[{{"Config":"{config}","Layers":[],"Layers":["l.tar"]}}]"#).into(),
            "\"manifest.json\" in it is malformed",
        ),
        (
            "a mark of its encoding",
            behind_a_mark(json!([])),
            "malformed",
        ),
        (
            "lists in lists in lists",
            nested("[", "]", 1 << 20).into(),
            "malformed",
        ),
    ] {
        let mut members = good.clone();
        members.insert("manifest.json".into(), manifest);
        let host = Host::new();
        let said = said(&host, stream(&tar_of_members(&members)));
        wrong.extend(difference(what, &said, sentence));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
