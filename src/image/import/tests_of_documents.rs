//! Documents that lie, with digests that are right.

use serde_json::{Value, json};

use super::tests::*;
use super::tests_of_attacks::*;
use super::*;
use crate::image::fixture::gzip;

/// One field of a text, without the reader of values, which keeps the last of two.
fn doubled(value: Value, field: &str, second: &str) -> Vec<u8> {
    let whole = value.to_string();
    format!("{{\"{field}\":{second},{}", &whole[1..]).into_bytes()
}

pub(super) fn behind_a_mark(value: Value) -> Vec<u8> {
    [b"\xef\xbb\xbf", &text(value)[..]].concat()
}

pub(super) fn nested(open: &str, close: &str, depth: usize) -> String {
    format!("{}{}", open.repeat(depth), close.repeat(depth))
}

fn digest_that_is(mut index: Value, digest: &str) -> Vec<u8> {
    index["manifests"][0]["digest"] = json!(digest);
    text(index)
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn indexes() -> Vec<Row> {
    vec![
        (
            "a million descriptors",
            At::Index(|it| {
                let one = it["manifests"][0].to_string();
                let all = vec![&one[..]; 1_000_000].join(",");
                format!(r#"{{"schemaVersion":2,"manifests":[{all}]}}"#).into_bytes()
            }),
            "and at most 4194304 are possible",
        ),
        (
            "as many descriptors as a document can hold, for others",
            At::Index(|it| {
                let mut one = it["manifests"][0].clone();
                one["platform"] = json!({"os": "plan9", "architecture": "z80"});
                let one = one.to_string();
                let all = vec![&one[..]; 4_000_000 / (one.len() + 1)].join(",");
                format!(r#"{{"schemaVersion":2,"manifests":[{all}]}}"#).into_bytes()
            }),
            "the image is not made for",
        ),
        (
            "no descriptors",
            At::Index(|_| text(json!({"schemaVersion": 2, "manifests": []}))),
            "it holds no image",
        ),
        (
            "a size of -1",
            At::Index(|mut it| {
                it["manifests"][0]["size"] = json!(-1);
                text(it)
            }),
            "manifest is malformed",
        ),
        (
            "a size of more than 64 bits",
            At::Index(|it| {
                let size = it["manifests"][0]["size"].to_string();
                let lie = format!("\"size\":{size}");
                let it = it.to_string();
                it.replace(&lie, "\"size\":99999999999999999999").into()
            }),
            "manifest is malformed",
        ),
        (
            "a size of 2^63",
            At::Index(|mut it| {
                it["manifests"][0]["size"] = json!(1_u64 << 63);
                text(it)
            }),
            "and what names it says 9223372036854775808",
        ),
        (
            "a size of a byte less",
            At::Index(|mut it| {
                let size = it["manifests"][0]["size"].as_u64().unwrap();
                it["manifests"][0]["size"] = json!(size - 1);
                text(it)
            }),
            "the image's manifest has",
        ),
        (
            "a digest of another kind",
            At::Index(|it| digest_that_is(it, &format!("sha512:{}", "0".repeat(128)))),
            "which is no SHA-256 digest",
        ),
        (
            "a digest that is broken, as old as it is",
            At::Index(|it| digest_that_is(it, &format!("md5:{}", "0".repeat(32)))),
            "which is no SHA-256 digest",
        ),
        (
            "a digest in capitals",
            At::Index(|it| digest_that_is(it, &format!("sha256:{}", "AB".repeat(32)))),
            "manifest",
        ),
        (
            "half a digest",
            At::Index(|it| digest_that_is(it, &format!("sha256:{}", "0".repeat(32)))),
            "manifest",
        ),
        (
            "a digest that is a path",
            At::Index(|it| digest_that_is(it, "sha256:../../../../../../../../etc/passwd")),
            "manifest",
        ),
        (
            "a digest with a NUL and an escape",
            At::Index(|it| digest_that_is(it, "sha256:\0\u{1b}[2J")),
            "manifest",
        ),
        (
            "a layer passed off as a manifest",
            At::Index(|mut it| {
                let tar = gzip(&root(1));
                it["manifests"][0]["digest"] = json!(Digest::of(&tar));
                it["manifests"][0]["size"] = json!(tar.len());
                text(it)
            }),
            "manifest is malformed",
        ),
        (
            "layers of its own",
            At::Index(|mut it| {
                it["layers"] = json!([]);
                text(it)
            }),
            "has both layers and manifests",
        ),
        (
            "manifests, twice",
            At::Index(|it| doubled(it, "manifests", "[]")),
            "manifest is malformed",
        ),
        (
            "the media type of a manifest",
            At::Index(|mut it| {
                it["mediaType"] = json!(MANIFEST);
                text(it)
            }),
            "manifest is malformed",
        ),
        (
            "the media type of a page",
            At::Index(|mut it| {
                it["mediaType"] = json!("text/html\u{1b}[2J");
                text(it)
            }),
            "\"text/html[2J\", which no container image has",
        ),
        (
            "a mark of its encoding",
            At::Index(behind_a_mark),
            "malformed",
        ),
        ("nothing", At::Index(|_| Vec::new()), "malformed"),
        ("null", At::Index(|_| b"null".to_vec()), "malformed"),
        (
            "lists in lists in lists",
            At::Index(|_| nested("[", "]", 1 << 20).into()),
            "malformed",
        ),
        (
            "objects in objects in objects, as an annotation",
            At::Index(|it| {
                let all = nested("{\"a\":", "}", 500_000).replace(":}", ":1}");
                doubled(it, "annotations", &all)
            }),
            "malformed",
        ),
        (
            "bytes that are no UTF-8",
            At::Index(|it| [&text(it)[..], b"\xff"].concat()),
            "malformed",
        ),
        (
            "a second document behind it",
            At::Index(|it| [text(it.clone()), text(it)].concat()),
            "malformed",
        ),
    ]
}

pub(super) fn manifests() -> Vec<Row> {
    let mut rows = shapes_of_manifests();
    rows.extend(layers_of_manifests());
    rows
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn shapes_of_manifests() -> Vec<Row> {
    vec![
        (
            "a manifest of before 2016",
            At::Manifest(|_| text(json!({"schemaVersion": 1, "fsLayers": [], "history": []}))),
            "schema 1 manifest",
        ),
        (
            "a manifest that is an index, too",
            At::Manifest(|mut it| {
                it["manifests"] = json!([]);
                text(it)
            }),
            "has both layers and manifests",
        ),
        (
            "a manifest that says it is an index",
            At::Manifest(|mut it| {
                it["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
                text(it)
            }),
            "manifest is malformed",
        ),
        (
            "an index in its place, of indexes",
            At::Manifest(|_| {
                let index = "application/vnd.oci.image.index.v1+json";
                text(json!({"schemaVersion": 2, "mediaType": index, "manifests": []}))
            }),
            "it is made for no platform at all",
        ),
        (
            "layers, twice",
            At::Manifest(|it| doubled(it, "layers", "[]")),
            "manifest is malformed",
        ),
        (
            "a config, twice",
            At::Manifest(|it| doubled(it, "config", "{}")),
            "manifest is malformed",
        ),
        (
            "a mark of its encoding",
            At::Manifest(behind_a_mark),
            "malformed",
        ),
        (
            "lists in lists in lists, where nobody looks",
            At::Manifest(|it| doubled(it, "x", &nested("[", "]", 1 << 20))),
            ACCEPTED,
        ),
        (
            "ten thousand annotations",
            At::Manifest(|mut it| {
                let all = (0..10_000).map(|i| (format!("key {i}"), json!("\u{1b}[2J")));
                it["annotations"] = Value::Object(all.collect());
                it["layers"][0]["annotations"] = it["annotations"].clone();
                text(it)
            }),
            ACCEPTED,
        ),
        (
            "5 MB of annotations",
            At::Manifest(|mut it| {
                it["annotations"] = json!({"a": "x".repeat(5_000_000)});
                text(it)
            }),
            "and at most 4194304 are possible",
        ),
        (
            "no config",
            At::Manifest(|mut it| {
                it.as_object_mut().unwrap().remove("config");
                text(it)
            }),
            "manifest is malformed",
        ),
        (
            "a config of another kind",
            At::Manifest(|mut it| {
                it["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
                text(it)
            }),
            "which no container image has",
        ),
        (
            "a config of another size",
            At::Manifest(|mut it| {
                it["config"]["size"] = json!(1);
                text(it)
            }),
            "the image's config has",
        ),
        (
            "a config that is the layer",
            At::Manifest(|mut it| {
                it["config"]["digest"] = it["layers"][0]["digest"].clone();
                it["config"]["size"] = it["layers"][0]["size"].clone();
                text(it)
            }),
            "config is malformed",
        ),
        (
            "a config of which there is none, with data of its own",
            At::Manifest(|mut it| {
                it["config"]["digest"] = json!(Digest::of(b"{}"));
                it["config"]["data"] = json!("e30=");
                it["config"]["size"] = json!(2);
                text(it)
            }),
            "it lacks \"blobs/sha256/44136fa355b3",
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn layers_of_manifests() -> Vec<Row> {
    vec![
        (
            "no layers",
            At::Manifest(|mut it| {
                it["layers"] = json!([]);
                text(it)
            }),
            "the image has no layers",
        ),
        (
            "ten thousand layers",
            At::Manifest(|mut it| {
                it["layers"] = json!(vec![it["layers"][0].clone(); 10_000]);
                text(it)
            }),
            "the image has 10000 layers; at most 127",
        ),
        (
            "a layer more than the config knows",
            At::Manifest(|mut it| {
                it["layers"] = json!([it["layers"][0], it["layers"][0]]);
                text(it)
            }),
            "the image's manifest has 2 layers, its config 1",
        ),
        (
            "a layer of -1 bytes",
            At::Manifest(|mut it| {
                it["layers"][0]["size"] = json!(-1);
                text(it)
            }),
            "manifest is malformed",
        ),
        (
            "a layer of half a byte",
            At::Manifest(|mut it| {
                it["layers"][0]["size"] = json!(0.5);
                text(it)
            }),
            "manifest is malformed",
        ),
        (
            "a layer of 16 EiB",
            At::Manifest(|mut it| {
                it["layers"][0]["size"] = json!(u64::MAX);
                text(it)
            }),
            "and its documents say 18446744073709551615",
        ),
        (
            "a layer of no bytes",
            At::Manifest(|mut it| {
                it["layers"][0]["size"] = json!(0);
                text(it)
            }),
            "and its documents say 0",
        ),
        (
            "a layer that is the config",
            At::Manifest(|mut it| {
                it["layers"][0]["digest"] = it["config"]["digest"].clone();
                it["layers"][0]["size"] = it["config"]["size"].clone();
                text(it)
            }),
            "by its media type it is gzip, by its first bytes not compressed",
        ),
        (
            "a layer that is to be fetched elsewhere",
            At::Manifest(|mut it| {
                it["layers"][0]["mediaType"] =
                    json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
                it["layers"][0]["urls"] = json!(["http://127.0.0.1:URL/layer"]);
                text(it)
            }),
            "foreign.diff.tar.gzip\", which no container image has",
        ),
        (
            "a layer that must not be distributed",
            At::Manifest(|mut it| {
                it["layers"][0]["mediaType"] =
                    json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
                it["layers"][0]["urls"] = json!(["http://127.0.0.1:URL/layer"]);
                text(it)
            }),
            "which no container image has",
        ),
        (
            "a plain layer that is not there, but elsewhere",
            At::Manifest(|mut it| {
                it["layers"][0]["digest"] = json!(Digest::of(b"elsewhere"));
                it["layers"][0]["urls"] = json!(["http://127.0.0.1:URL/layer"]);
                text(it)
            }),
            "it lacks \"blobs/sha256/",
        ),
        (
            "a layer that is encrypted",
            At::Manifest(|mut it| {
                it["layers"][0]["mediaType"] =
                    json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
                text(it)
            }),
            "which no container image has",
        ),
        (
            "a layer that says it is zstd",
            At::Manifest(|mut it| {
                it["layers"][0]["mediaType"] = json!(ZSTD);
                text(it)
            }),
            "by its media type it is zstd, by its first bytes gzip",
        ),
        (
            "a layer whose digest is of another kind",
            At::Manifest(|mut it| {
                it["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
                text(it)
            }),
            "which is no SHA-256 digest",
        ),
    ]
}

pub(super) fn configs() -> Vec<Row> {
    vec![
        (
            "no diff ids",
            At::Config(|mut it| {
                it["rootfs"]["diff_ids"] = json!([]);
                text(it)
            }),
            "its config 0",
        ),
        (
            "a diff id too many",
            At::Config(|mut it| {
                let one = it["rootfs"]["diff_ids"][0].clone();
                it["rootfs"]["diff_ids"] = json!([one, one]);
                text(it)
            }),
            "its config 2",
        ),
        (
            "fifty thousand diff ids",
            At::Config(|mut it| {
                it["rootfs"]["diff_ids"] = json!(vec![Digest::of(b"x"); 50_000]);
                text(it)
            }),
            "its config 50000",
        ),
        (
            "the diff id of another tar",
            At::Config(|mut it| {
                it["rootfs"]["diff_ids"] = json!([Digest::of(b"another")]);
                text(it)
            }),
            "but the image's config says",
        ),
        (
            "a diff id of another kind",
            At::Config(|mut it| {
                it["rootfs"]["diff_ids"] = json!([format!("sha512:{}", "0".repeat(128))]);
                text(it)
            }),
            "config is malformed",
        ),
        (
            "diff ids, twice",
            At::Config(|it| doubled(it, "rootfs", "{\"diff_ids\":[]}")),
            "config is malformed",
        ),
        (
            "no root file system",
            At::Config(|mut it| {
                it.as_object_mut().unwrap().remove("rootfs");
                text(it)
            }),
            "config is malformed",
        ),
        ("a list", At::Config(|_| b"[]".to_vec()), "malformed"),
        (
            "a mark of its encoding",
            At::Config(behind_a_mark),
            "malformed",
        ),
        (
            "lists in lists in lists",
            At::Config(|_| nested("[", "]", 1 << 20).into()),
            "malformed",
        ),
        (
            "another system",
            At::Config(|mut it| {
                it["os"] = json!("windows\u{1b}[2J");
                text(it)
            }),
            "it is made for windows[2J/",
        ),
        (
            "a processor of tomorrow",
            At::Config(|mut it| {
                it["variant"] = json!("v99");
                text(it)
            }),
            "the image is not made for",
        ),
        (
            "a date that there is not",
            At::Config(|mut it| {
                it["created"] = json!("+999999-99-99T99:99:99Z\u{1b}[2J");
                text(it)
            }),
            ACCEPTED,
        ),
    ]
}
