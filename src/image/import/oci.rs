//! An OCI layout: its index, manifest and config.
//!
//! ```text
//!   oci-layout    {"imageLayoutVersion": "1.0.0"}
//!   index.json ──▶ [index ─▶] manifest ──▶ config, layers
//!   blobs/sha256/<hex>        each of those, by its digest
//! ```
//! Format: OCI image specification 1.1, `image-layout.md`. Of several images in one layout that is
//! meant which is made for this host; of several such, that which has the name of the import.

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;

use super::bundle::Bundle;
use super::error::Reason;
use super::{Contents, Documents};
use crate::image::assembly::Assembly;
use crate::image::manifest::{self, Document, INDEXES, MANIFESTS, ManifestError, Platform};
use crate::image::reference::Reference;
use crate::units::Digest;

/// The member that every layout has, and nothing else.
pub(super) const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";

/// The layout's version, which has been the same since there are layouts.
const VERSION: &str = "1.0.0";

/// Annotations that name an image: that of the specification (a tag, or all of a name), and those of
/// containerd and of Docker, which writes its (all of a name).
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

/// Reads the documents of the image that is meant.
pub(super) fn read(bundle: &Bundle, assembly: &Assembly<'_>) -> Result<Contents, Reason> {
    let platform = assembly.options.platform;
    let layout = bundle.document(LAYOUT, None)?;
    let layout: Layout = serde_json::from_slice(&layout).map_err(|error| Reason::Malformed {
        name: LAYOUT,
        source: manifest::plain(&error),
    })?;
    if layout.image_layout_version != VERSION {
        let version = manifest::printable(&layout.image_layout_version);
        return Err(Reason::LayoutVersion(version));
    }
    let index = bundle.document(INDEX, None)?;
    let Document::Index(index) = manifest::read(&index, Some(INDEXES[0]))? else {
        return Err(Reason::NoImage);
    };
    let chosen = choose(&index, platform, assembly.image)?;
    let (manifest, manifest_digest) = image_manifest(bundle, chosen, platform)?;
    let config_digest = manifest::config_of(&manifest)?;
    let config = bundle.document(&place(&config_digest), Some(&config_digest))?;
    manifest::check_size(manifest.config(), &config, "config")?;
    let config = manifest::read_config(&config, platform)?;
    let layers = manifest::layers(&manifest, &config)?;
    let places = layers
        .iter()
        .map(|layer| (layer.digest, place(&layer.digest)));
    Ok(Contents {
        places: HashMap::from_iter(places),
        documents: Documents {
            manifest_digest,
            config_digest,
            created: config.created,
            layers,
        },
    })
}

/// The member with the content of this digest.
fn place(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The manifest behind `descriptor`, by way of an index of one image for several platforms.
fn image_manifest(
    bundle: &Bundle,
    descriptor: &Descriptor,
    platform: Platform,
) -> Result<(Box<ImageManifest>, Digest), Reason> {
    let index = match document(bundle, descriptor)? {
        (Document::Manifest(manifest), digest) => return Ok((manifest, digest)),
        (Document::Index(index), _) => index,
    };
    match document(bundle, manifest::choose(&index, platform)?)? {
        (Document::Manifest(manifest), digest) => Ok((manifest, digest)),
        (Document::Index(_), _) => Err(ManifestError::NestedIndex.into()),
    }
}

fn document(bundle: &Bundle, descriptor: &Descriptor) -> Result<(Document, Digest), Reason> {
    let digest = manifest::digest_of(descriptor, "index")?;
    let body = bundle.document(&place(&digest), Some(&digest))?;
    manifest::check_size(descriptor, &body, "manifest")?;
    let media_type = descriptor.media_type().to_string();
    Ok((manifest::read(&body, Some(&media_type))?, digest))
}

/// The entry of the index that is meant.
fn choose<'a>(
    index: &'a ImageIndex,
    platform: Platform,
    name: &Reference,
) -> Result<&'a Descriptor, Reason> {
    let is_image = |entry: &&Descriptor| {
        let media_type = entry.media_type().to_string();
        INDEXES.contains(&media_type.as_str()) || MANIFESTS.contains(&media_type.as_str())
    };
    let images: Vec<_> = index.manifests().iter().filter(is_image).collect();
    if images.is_empty() {
        return Err(Reason::NoImage);
    }
    let fits = |entry: &&Descriptor| {
        entry.platform().as_ref().is_none_or(|of| {
            let (os, architecture) = (of.os().to_string(), of.architecture().to_string());
            platform.runs(&os, &architecture, of.variant().as_deref())
        })
    };
    let fitting: Vec<_> = images.into_iter().filter(fits).collect();
    if let Some(only) = the_only(&fitting) {
        return Ok(only);
    }
    if fitting.is_empty() {
        // It says for which platforms there are images.
        manifest::choose(index, platform)?;
        return Err(Reason::NoImage);
    }
    let named: Vec<_> = fitting
        .iter()
        .copied()
        .filter(|entry| names_of(entry).any(|text| means(text, name)))
        .collect();
    the_only(&named).ok_or_else(|| Reason::SeveralImages {
        names: listed(fitting.iter().map(|entry| {
            let mut names = names_of(entry);
            names
                .next()
                .map_or_else(|| entry.digest().to_string(), str::to_owned)
        })),
    })
}

/// The one entry, however often it stands there.
fn the_only<'a>(entries: &[&'a Descriptor]) -> Option<&'a Descriptor> {
    let (first, others) = entries.split_first()?;
    let same = |other: &&Descriptor| other.digest() == first.digest();
    others.iter().all(same).then_some(*first)
}

fn names_of(entry: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = entry.annotations().as_ref();
    let named = move |key: &&str| annotations.and_then(|all| all.get(*key));
    NAMES.iter().filter_map(named).map(String::as_str)
}

/// Whether a text in an archive is the name, or its tag.
pub(super) fn means(text: &str, name: &Reference) -> bool {
    name.tag() == Some(text) || text.parse::<Reference>().is_ok_and(|other| other == *name)
}

/// At most 8 names, fit to be shown.
pub(super) fn listed(names: impl Iterator<Item = String>) -> Vec<String> {
    names
        .take(8)
        .map(|name| manifest::printable(&name))
        .collect()
}
