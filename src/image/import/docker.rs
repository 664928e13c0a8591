//! What `docker save` writes, and others after it (skopeo, podman, crane, kaniko, nix).
//!
//! ```text
//!   manifest.json   [{"Config": "<name>", "RepoTags": ["name:tag"], "Layers": ["<name>", ...]}]
//!   <config name>   {"architecture", "os", "rootfs": {"diff_ids": [...]}}
//!   <layer name>    a tar, bottom first; some programs compress it; it may be a link to another
//! ```
//! Format: Docker image specification 1.2, "Combined Image JSON + Filesystem Changeset Format". It has no
//! manifest of the image and no digests of the members, so the image goes by the digest of its config, as
//! Docker calls it itself, and a layer by that of its member.

use std::collections::HashMap;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::bundle::{Bundle, Piece};
use super::error::Reason;
use super::oci::{listed, means};
use super::{CHUNK, Contents, Documents};
use crate::image::assembly::Assembly;
use crate::image::decode;
use crate::image::manifest::{self, Layer, Wrapping};
use crate::image::reference::Reference;
use crate::units::Digest;

/// The member that every such archive has.
pub(super) const MANIFEST: &str = "manifest.json";

/// Bytes that tell how a layer is compressed.
const MAGIC: usize = 4;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Reads the documents of the image that is meant.
pub(super) fn read(bundle: &Bundle, assembly: &Assembly<'_>) -> Result<Contents, Reason> {
    let images = bundle.document(MANIFEST, None)?;
    let images: Vec<Image> =
        serde_json::from_slice(&images).map_err(|error| Reason::Malformed {
            name: MANIFEST,
            source: manifest::plain(&error),
        })?;
    let image = choose(&images, assembly.image)?;
    let body = bundle.document(&image.config, digest_in(&image.config).as_ref())?;
    let config = manifest::read_config(&body, assembly.options.platform)?;
    manifest::check_count(image.layers.len(), &config)?;
    let mut layers: Vec<Layer> = Vec::new();
    let mut places = HashMap::new();
    for (name, diff_id) in image.layers.iter().zip(&config.diff_ids) {
        let layer = layer(bundle, name, *diff_id, assembly)?;
        places.insert(layer.digest, name.clone());
        layers.push(layer);
    }
    let config_digest = Digest::of(&body);
    Ok(Contents {
        places,
        documents: Documents {
            manifest_digest: config_digest,
            config_digest,
            created: config.created,
            layers: manifest::check_twins(layers)?,
        },
    })
}

fn choose<'a>(images: &'a [Image], name: &Reference) -> Result<&'a Image, Reason> {
    let tags = |image: &'a Image| image.repo_tags.iter().flatten();
    match images {
        [] => Err(Reason::NoImage),
        [only] => Ok(only),
        several => {
            let mut named = several
                .iter()
                .filter(|image| tags(image).any(|tag| means(tag, name)));
            match (named.next(), named.next()) {
                (Some(one), None) => Ok(one),
                _ => Err(Reason::SeveralImages {
                    names: listed(several.iter().map(|image| {
                        let mut tags = tags(image);
                        tags.next().unwrap_or(&image.config).clone()
                    })),
                }),
            }
        }
    }
}

/// The digest that a config is called by: `<hex>.json`, `sha256:<hex>` or `blobs/sha256/<hex>`.
fn digest_in(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let hex = last.strip_suffix(".json").unwrap_or(last);
    let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
    format!("sha256:{hex}").parse().ok()
}

/// A tar that is not compressed is its own diff id; the digest of another one must be found out.
fn layer(
    bundle: &Bundle,
    name: &str,
    diff_id: Digest,
    assembly: &Assembly<'_>,
) -> Result<Layer, Reason> {
    let mut piece = bundle.open(name)?;
    let size = piece.left();
    let wrapping = decode::wrapping_of(&piece.next(MAGIC)?);
    let digest = match wrapping {
        Wrapping::None => diff_id,
        _ => digest(bundle.open(name)?, assembly)?,
    };
    Ok(manifest::layer_of_archive(digest, diff_id, size, wrapping))
}

fn digest(mut piece: Piece, assembly: &Assembly<'_>) -> Result<Digest, Reason> {
    let mut hasher = Sha256::new();
    while piece.left() > 0 {
        if assembly.options.cancel.is_cancelled() {
            return Err(assembly.cancelled().into());
        }
        hasher.update(piece.next(CHUNK)?);
    }
    Ok(Digest::finish(hasher))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_called_by_its_digest_in_several_ways() {
        let digest = Digest::of(b"config");
        let hex = digest.hex();
        for name in [
            format!("{hex}.json"),
            format!("sha256:{hex}"),
            format!("blobs/sha256/{hex}"),
        ] {
            assert_eq!(digest_in(&name), Some(digest), "{name}");
        }
        assert_eq!(digest_in("config.json"), None);
    }
}
