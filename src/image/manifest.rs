//! What a registry's documents say: index, manifest and config become a list of layers. Pure.
//!
//! ```text
//!   index ──platform──▶ manifest ──▶ config: rootfs.diff_ids[i]  digest of the tar
//!                          └───────▶ layers[i]                   digest of the tar, compressed
//! ```
//! Formats: OCI image specification 1.1 (`image-index.md`, `manifest.md`, `config.md`) and Docker's
//! distribution manifest version 2, schema 2.
//!
//! Invariant: what leaves this module fits this host and has one diff id a layer.

use std::fmt;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;

use crate::units::Digest;

/// The largest index, manifest or config that is read, in bytes: what registries themselves accept.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// The most layers an image may have; Docker builds and runs no image with more.
const MAX_LAYERS: usize = 127;

/// Media types asked for, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

pub(crate) const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

pub(crate) const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// How a layer's tar is wrapped, by its media type.
const LAYERS: [(&str, Wrapping); 6] = [
    ("application/vnd.oci.image.layer.v1.tar", Wrapping::None),
    (
        "application/vnd.oci.image.layer.v1.tar+gzip",
        Wrapping::Gzip,
    ),
    (
        "application/vnd.oci.image.layer.v1.tar+zstd",
        Wrapping::Zstd,
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar",
        Wrapping::None,
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        Wrapping::Gzip,
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        Wrapping::Zstd,
    ),
];

/// How a layer's tar is compressed for the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrapping {
    None,
    Gzip,
    Zstd,
}

/// Why an image's documents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The text is not what its media type promises.
    #[error("the image's {document} is malformed")]
    Malformed {
        /// Which document.
        document: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Docker's manifest of before 2016.
    #[error(
        "the image has a schema 1 manifest, which Docker gave up in 2016: push it again with a current tool"
    )]
    Schema1,
    /// One text with the parts of an index and of a manifest (CVE-2021-41190).
    #[error("the image's manifest has both layers and manifests, so readers may differ about it")]
    Ambiguous,
    /// Something else than a container image.
    #[error("{subject} has the media type {media_type:?}, which no container image has")]
    MediaType {
        /// What has it.
        subject: String,
        /// The media type.
        media_type: String,
    },
    /// An index that names an index.
    #[error("the image's index names another index instead of a manifest")]
    NestedIndex,
    /// A digest by something else than SHA-256.
    #[error("the image's {document} names {digest:?}, which is no SHA-256 digest")]
    Digest {
        /// Which document.
        document: &'static str,
        /// The text.
        digest: String,
    },
    /// A document that is not as long as what names it says.
    #[error("the image's {document} has {actual} bytes, and what names it says {expected}")]
    Size {
        /// Which document.
        document: &'static str,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// No manifest for this host.
    #[error("the image is not made for {wanted}; it is made for {available}")]
    Platform {
        /// This host.
        wanted: Platform,
        /// What there is.
        available: String,
    },
    /// An image without files.
    #[error("the image has no layers")]
    NoLayers,
    /// An image that Docker would not run either.
    #[error("the image has {count} layers; at most {MAX_LAYERS} are possible")]
    TooManyLayers {
        /// How many.
        count: usize,
    },
    /// Config and manifest contradict each other.
    #[error("the image's manifest has {layers} layers, its config {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Diff ids of the config.
        diff_ids: usize,
    },
    /// One layer is said to be of two sizes, compressed in two ways, or to unpack to two tars.
    #[error("the image says two different things of its layer {layer}")]
    Twins {
        /// The layer.
        layer: Digest,
    },
}

/// An operating system and processor, in the words of Go, as the OCI specification has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `amd64` or `arm64`.
    pub architecture: &'static str,
}

impl Platform {
    /// That of this host.
    pub const fn host() -> Self {
        Self {
            architecture: if cfg!(target_arch = "aarch64") {
                "arm64"
            } else {
                "amd64"
            },
        }
    }

    /// Whether this platform runs what is made for the given one. Variants are the base level of
    /// an architecture or none: what needs more might trap on this host.
    pub(crate) fn runs(self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let base = match self.architecture {
            "arm64" => "v8",
            _ => "v1",
        };
        os == "linux"
            && architecture == self.architecture
            && variant.is_none_or(|variant| variant.is_empty() || variant == base)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("linux/{}", self.architecture))
    }
}

/// A document under an image's name.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// What of a document tells its kind.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<u32>,
    media_type: Option<String>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads an index or a manifest. `content_type` counts where the text does not name its type.
pub(crate) fn read(body: &[u8], content_type: Option<&str>) -> Result<Document, ManifestError> {
    let document = "manifest";
    let malformed = |error| ManifestError::Malformed {
        document,
        source: plain(&error),
    };
    let kind: Kind = serde_json::from_slice(body).map_err(malformed)?;
    if kind.schema_version == Some(1) {
        return Err(ManifestError::Schema1);
    }
    if kind.layers.is_some() && kind.manifests.is_some() {
        return Err(ManifestError::Ambiguous);
    }
    let bare = content_type.and_then(|full| full.split(';').next());
    let media_type = kind
        .media_type
        .as_deref()
        .or(bare.map(str::trim))
        .unwrap_or_default();
    if INDEXES.contains(&media_type) {
        let index = serde_json::from_slice(body).map_err(malformed)?;
        Ok(Document::Index(Box::new(index)))
    } else if MANIFESTS.contains(&media_type) {
        let manifest = serde_json::from_slice(body).map_err(malformed)?;
        Ok(Document::Manifest(Box::new(manifest)))
    } else {
        Err(unsupported("the manifest".to_owned(), media_type))
    }
}

/// What names the manifest for `platform`.
pub(crate) fn choose(index: &ImageIndex, platform: Platform) -> Result<&Descriptor, ManifestError> {
    let matching = index.manifests().iter().find(|entry| {
        entry.platform().as_ref().is_some_and(|of| {
            platform.runs(
                &of.os().to_string(),
                &of.architecture().to_string(),
                of.variant().as_deref(),
            )
        })
    });
    match (matching, index.manifests().as_slice()) {
        (Some(entry), _) => Ok(entry),
        // The config of the only one there is will tell.
        (None, [only]) if only.platform().is_none() => Ok(only),
        (None, _) => Err(ManifestError::Platform {
            wanted: platform,
            available: available(index),
        }),
    }
}

fn available(index: &ImageIndex) -> String {
    let mut names: Vec<String> = index
        .manifests()
        .iter()
        .filter_map(|entry| entry.platform().as_ref())
        .map(|of| {
            let variant = of.variant().as_ref().map(|v| format!("/{v}"));
            let name = format!(
                "{}/{}{}",
                of.os(),
                of.architecture(),
                variant.unwrap_or_default()
            );
            printable(&name)
        })
        // Attestations have no platform of their own.
        .filter(|name| !name.starts_with("unknown/"))
        .take(16)
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return "no platform at all".to_owned();
    }
    names.join(", ")
}

/// The digest of the config of an image.
pub(crate) fn config_of(manifest: &ImageManifest) -> Result<Digest, ManifestError> {
    let config = manifest.config();
    let media_type = config.media_type().to_string();
    if !CONFIGS.contains(&media_type.as_str()) {
        return Err(unsupported("the image's config".to_owned(), &media_type));
    }
    digest_of(config, "manifest")
}

/// A layer to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
    pub(crate) media_type: &'static str,
    pub(crate) wrapping: Wrapping,
}

/// What the config of an image says.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) created: Option<jiff::Timestamp>,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
    created: Option<String>,
    rootfs: RawRootFs,
}

#[derive(Deserialize)]
struct RawRootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// Reads the config of an image for `platform`.
pub(crate) fn read_config(body: &[u8], platform: Platform) -> Result<Config, ManifestError> {
    let raw: RawConfig =
        serde_json::from_slice(body).map_err(|error| ManifestError::Malformed {
            document: "config",
            source: plain(&error),
        })?;
    if !platform.runs(&raw.os, &raw.architecture, raw.variant.as_deref()) {
        return Err(ManifestError::Platform {
            wanted: platform,
            available: printable(&format!("{}/{}", raw.os, raw.architecture)),
        });
    }
    Ok(Config {
        // For display alone: an odd date makes no image unusable.
        created: raw.created.and_then(|text| text.parse().ok()),
        diff_ids: raw.rootfs.diff_ids,
    })
}

/// The layers of an image, bottom first.
pub(crate) fn layers(
    manifest: &ImageManifest,
    config: &Config,
) -> Result<Vec<Layer>, ManifestError> {
    let descriptors = manifest.layers();
    check_count(descriptors.len(), config)?;
    let layers = descriptors.iter().zip(&config.diff_ids);
    let layers = layers.map(|(descriptor, diff_id)| layer(descriptor, *diff_id));
    check_twins(layers.collect::<Result<_, _>>()?)
}

/// Refuses a number of layers that cannot be, or is not that of the config.
pub(crate) fn check_count(layers: usize, config: &Config) -> Result<(), ManifestError> {
    let diff_ids = config.diff_ids.len();
    match layers {
        0 => Err(ManifestError::NoLayers),
        count if count > MAX_LAYERS => Err(ManifestError::TooManyLayers { count }),
        _ if layers != diff_ids => Err(ManifestError::LayerCount { layers, diff_ids }),
        _ => Ok(()),
    }
}

/// Refuses one layer that is said to be two different things.
pub(crate) fn check_twins(layers: Vec<Layer>) -> Result<Vec<Layer>, ManifestError> {
    for (index, layer) in layers.iter().enumerate() {
        let mut before = layers[..index].iter();
        let twin = before.find(|other| other.digest == layer.digest);
        let told = |layer: &Layer| (layer.diff_id, layer.size, layer.wrapping);
        if twin.is_some_and(|twin| told(twin) != told(layer)) {
            return Err(ManifestError::Twins {
                layer: layer.digest,
            });
        }
    }
    Ok(layers)
}

/// A tar that stands in an archive without a media type of its own.
pub(crate) fn layer_of_archive(
    digest: Digest,
    diff_id: Digest,
    size: u64,
    wrapping: Wrapping,
) -> Layer {
    let media_type = match wrapping {
        Wrapping::None => LAYERS[0].0,
        Wrapping::Gzip => LAYERS[1].0,
        Wrapping::Zstd => LAYERS[2].0,
    };
    Layer {
        digest,
        diff_id,
        size,
        media_type,
        wrapping,
    }
}

fn layer(descriptor: &Descriptor, diff_id: Digest) -> Result<Layer, ManifestError> {
    let digest = digest_of(descriptor, "manifest")?;
    let named = descriptor.media_type().to_string();
    let (media_type, wrapping) = LAYERS
        .into_iter()
        .find(|(known, _)| *known == named)
        .ok_or_else(|| unsupported(format!("layer {}", digest.short()), &named))?;
    Ok(Layer {
        digest,
        diff_id,
        size: descriptor.size(),
        media_type,
        wrapping,
    })
}

pub(crate) fn digest_of(
    descriptor: &Descriptor,
    document: &'static str,
) -> Result<Digest, ManifestError> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|_| ManifestError::Digest {
        document,
        digest: printable(&text),
    })
}

/// Refuses a document of another size than `descriptor` says (OCI `descriptor.md`: it is not to be trusted).
pub(crate) fn check_size(
    descriptor: &Descriptor,
    body: &[u8],
    document: &'static str,
) -> Result<(), ManifestError> {
    let (expected, actual) = (descriptor.size(), body.len() as u64);
    match expected == actual {
        true => Ok(()),
        false => Err(ManifestError::Size {
            document,
            expected,
            actual,
        }),
    }
}

fn unsupported(subject: String, media_type: &str) -> ManifestError {
    ManifestError::MediaType {
        subject,
        media_type: printable(media_type),
    }
}

/// The error of a reader that may quote what it has read, made fit to be shown.
pub(crate) fn plain(error: &serde_json::Error) -> serde_json::Error {
    serde::de::Error::custom(printable(&error.to_string()))
}

/// At most 200 characters of a foreign text, none of which moves the cursor of a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOST: Platform = Platform {
        architecture: "amd64",
    };

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn descriptor(media_type: &str, content: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": digest(content), "size": 7})
    }

    fn platform_entry(
        name: &str,
        os: &str,
        arch: &str,
        variant: Option<&str>,
    ) -> serde_json::Value {
        let mut entry = descriptor(MANIFESTS[0], name);
        entry["platform"] = json!({"os": os, "architecture": arch});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = json!(variant);
        }
        entry
    }

    fn index(entries: &[serde_json::Value]) -> ImageIndex {
        let text = json!({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": entries});
        match read(text.to_string().as_bytes(), None).unwrap() {
            Document::Index(index) => *index,
            Document::Manifest(_) => panic!("no index"),
        }
    }

    fn manifest(layers: &[(&str, &str)]) -> ImageManifest {
        let layers: Vec<_> = layers.iter().map(|(t, c)| descriptor(t, c)).collect();
        let config = descriptor(CONFIGS[0], "config");
        let text = json!({"schemaVersion": 2, "config": config, "layers": layers});
        match read(text.to_string().as_bytes(), Some(MANIFESTS[1])).unwrap() {
            Document::Manifest(manifest) => *manifest,
            Document::Index(_) => panic!("no manifest"),
        }
    }

    fn config(diff_ids: &[&str]) -> Config {
        let diff_ids: Vec<_> = diff_ids.iter().map(|text| digest(text)).collect();
        let text = json!({"os": "linux", "architecture": "amd64", "created": "2026-01-02T03:04:05Z",
            "config": {"Env": null}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        read_config(text.to_string().as_bytes(), HOST).unwrap()
    }

    #[test]
    fn the_platform_of_the_host_is_chosen_from_an_index() {
        let attestation = platform_entry("att", "unknown", "unknown", None);
        let arm = platform_entry("arm", "linux", "arm64", Some("v8"));
        let windows = platform_entry("win", "windows", "amd64", None);
        let v3 = platform_entry("v3", "linux", "amd64", Some("v3"));
        let plain = platform_entry("plain", "linux", "amd64", None);
        let nameless = descriptor(MANIFESTS[0], "nameless");
        for (entries, host, expected) in [
            (
                vec![&attestation, &arm, &windows, &v3, &plain],
                "amd64",
                Some("plain"),
            ),
            (vec![&plain, &arm], "arm64", Some("arm")),
            (vec![&v3], "amd64", None),
            (vec![&arm, &windows], "amd64", None),
            (vec![&nameless], "amd64", Some("nameless")),
            (vec![&nameless, &arm], "amd64", None),
            (vec![], "amd64", None),
        ] {
            let entries: Vec<_> = entries.into_iter().cloned().collect();
            let index = index(&entries);
            let chosen = choose(&index, Platform { architecture: host });
            let chosen = chosen.ok().map(|it| digest_of(it, "index").unwrap());
            assert_eq!(chosen, expected.map(digest), "{entries:?}");
        }
        let index = index(&[attestation, arm, windows]);
        let error = choose(&index, HOST).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image is not made for linux/amd64; it is made for linux/arm64/v8, windows/amd64"
        );
    }

    #[test]
    fn layers_keep_their_order_and_learn_their_diff_ids() {
        let manifest = manifest(&[(LAYERS[1].0, "a"), (LAYERS[5].0, "b"), (LAYERS[1].0, "a")]);
        let layers = layers(&manifest, &config(&["A", "B", "A"])).unwrap();
        let found: Vec<_> = layers
            .iter()
            .map(|l| (l.digest, l.diff_id, l.wrapping))
            .collect();
        let a = (digest("a"), digest("A"), Wrapping::Gzip);
        assert_eq!(found, [a, (digest("b"), digest("B"), Wrapping::Zstd), a]);
    }

    #[test]
    fn contradicting_documents_are_refused() {
        let (gzip, zstd) = (LAYERS[1].0, LAYERS[5].0);
        let many = vec![(gzip, "a"); 128];
        let many_ids = vec!["A"; 128];
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        for (layer_list, ids, part) in [
            (&[][..], &[][..], "no layers"),
            (&[(gzip, "a")], &[], "1 layers, its config 0"),
            (&[(gzip, "a")], &["A", "B"], "1 layers, its config 2"),
            (&[(gzip, "a"), (gzip, "a")], &["A", "B"], "two different"),
            (&[(gzip, "a"), (zstd, "a")], &["A", "A"], "two different"),
            (&[(foreign, "a")], &["A"], "foreign"),
            (&many[..], &many_ids[..], "128 layers"),
        ] {
            let error = layers(&manifest(layer_list), &config(ids)).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        let mut twins =
            layers(&manifest(&[(gzip, "a"), (gzip, "a")]), &config(&["A", "A"])).unwrap();
        twins[1].size += 1;
        let error = check_twins(twins).unwrap_err();
        assert!(error.to_string().contains("two different"), "{error}");
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_sentence() {
        let helm = json!({"schemaVersion": 2, "mediaType": MANIFESTS[0], "layers": [],
            "config": descriptor("application/vnd.cncf.helm.config.v1+json", "c")});
        let Document::Manifest(helm) = read(helm.to_string().as_bytes(), None).unwrap() else {
            panic!("no manifest");
        };
        assert!(config_of(&helm).unwrap_err().to_string().contains("helm"));
        for (text, content_type, part) in [
            (json!({"schemaVersion": 1, "fsLayers": []}), "", "schema 1"),
            (json!({"schemaVersion": 2}), "text/html", "text/html"),
            (
                json!({"schemaVersion": 2, "layers": [], "manifests": []}),
                INDEXES[0],
                "both",
            ),
            (json!({"schemaVersion": 2}), MANIFESTS[0], "malformed"),
            (json!([]), MANIFESTS[0], "malformed"),
            (json!({"mediaType": "a\u{1b}[2Jb"}), "", "\"a[2Jb\""),
        ] {
            let error = read(text.to_string().as_bytes(), Some(content_type)).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(read(b"<html>", None).is_err());
    }

    #[test]
    fn the_config_of_another_platform_is_refused() {
        for (os, architecture, variant) in [
            ("windows", "amd64", ""),
            ("linux", "arm64", ""),
            ("linux", "amd64", "v4"),
            ("", "", ""),
        ] {
            let text = json!({"os": os, "architecture": architecture, "variant": variant,
                "rootfs": {"type": "layers", "diff_ids": []}});
            let error = read_config(text.to_string().as_bytes(), HOST).unwrap_err();
            assert!(matches!(error, ManifestError::Platform { .. }), "{error}");
        }
    }
}
