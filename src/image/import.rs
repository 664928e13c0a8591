//! Imports an image: from a file, a folder or a stream to verified layers on disk.
//!
//! ```text
//!   folder ─────────────────────────────────────────┐
//!   file, stream ─▶ gzip | zstd | none ─▶ sorting ──┴▶ bundle ─▶ OCI | docker ─▶ documents ─▶ assembly
//!                                           └────────▶ one tar ─▶ converter ─▶ staging ─▶ blobs, boot
//! ```
//! What it is, its content alone tells:
//!
//! | content | is |
//! |---|---|
//! | a member `oci-layout` | an OCI layout (image-spec 1.1, `image-layout.md`); the layers of its manifest |
//! | a member `manifest.json` | what `docker save` writes (Docker image specification 1.2); each layer a tar |
//! | a qcow2 image, or a raw disk | no matter of this module: see `cloud` |
//! | any other tar | the one layer of an image that has no documents: its config is made here |
//!
//! A tar that may yet turn out to be a bundle is kept in an unnamed file of the staging folder; one that
//! turns out to be a root file system goes through the converter as it comes, in bounded memory.
//!
//! Invariants: a blob that has a digest is checked against it, and each layer against its diff id; no
//! name in a bundle is ever a path of this host; members that lie are refused by name. What stays of an
//! import that failed is what stays of such a pull, see `assembly`; of a single tar, nothing.

use std::collections::HashMap;
use std::io::Read;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::assembly::{
    Assembly, AssemblyError, AssemblyOptions, Claim, Documents, ReadyImage, Supply,
};
use super::blobs::{BlobStore, Staging, uuid_of};
use super::decode::{Chunk, Hashed};
use super::layer;
use super::manifest::{self, Layer, Wrapping};
use super::progress::{LayerRef, Progress, PullEvent};
use super::reference::Reference;
use crate::sys::failpoint;
use crate::units::Digest;

mod bundle;
mod disk;
mod docker;
mod error;
mod oci;
mod sorting;
mod source;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_archives;
#[cfg(test)]
mod tests_of_attacks;
#[cfg(test)]
mod tests_of_documents;
#[cfg(test)]
mod tests_of_streams;
#[cfg(test)]
mod tests_with_tools;

use bundle::Bundle;
pub use disk::{Kind, kind};
pub use error::{ImportError, MemberRefusal, Reason};
pub use source::Input;
use source::{Opened, Watch};

/// Bytes of a layer that are read and sent at once.
const CHUNK: usize = 128 << 10;

/// Imports an image into `store`, as `name`. Layers that are present are not converted again.
///
/// # Errors
/// See [`ImportError`]; no work files are left.
pub fn import(
    name: &Reference,
    input: Input,
    options: &AssemblyOptions,
    store: &BlobStore,
    progress: &dyn Progress,
) -> Result<ReadyImage, ImportError> {
    let assembly = Assembly {
        image: name,
        options,
        store,
        progress,
    };
    let what = input.to_string();
    let imported = run(&assembly, input);
    imported.map_err(|reason| ImportError {
        input: what,
        // A read that was cancelled is told by whoever reads as an error of its own.
        reason: Box::new(if options.cancel.is_cancelled() {
            assembly.cancelled().into()
        } else {
            reason
        }),
    })
}

fn run(assembly: &Assembly<'_>, input: Input) -> Result<ReadyImage, Reason> {
    let runtime = assembly.runtime()?;
    let staging = assembly.store.stage().map_err(AssemblyError::from)?;
    let watch = Watch {
        options: assembly.options,
        progress: assembly.progress,
    };
    let opened = source::open(input, &staging, watch)?;
    failpoint::reach("import: looked at");
    match opened {
        Opened::Tar(tar) => one_layer(assembly, tar, &staging, &runtime),
        Opened::Bundle(bundle) => {
            let contents = contents(&bundle, assembly)?;
            let shelf = Shelf {
                bundle: &bundle,
                places: &contents.places,
                progress: assembly.progress,
            };
            assembly.run(&contents.documents, &shelf, &staging, &runtime)
        }
    }
}

/// What a bundle has of an image.
struct Contents {
    documents: Documents,
    /// The member that each layer is.
    places: HashMap<Digest, String>,
}

fn contents(bundle: &Bundle, assembly: &Assembly<'_>) -> Result<Contents, Reason> {
    if bundle.has(oci::LAYOUT)? {
        oci::read(bundle, assembly)
    } else {
        docker::read(bundle, assembly)
    }
}

/// Layers in a bundle.
struct Shelf<'a> {
    bundle: &'a Bundle,
    places: &'a HashMap<Digest, String>,
    progress: &'a dyn Progress,
}

impl Supply for Shelf<'_> {
    type Error = Reason;

    fn sources(&self) -> usize {
        1
    }

    fn passes_over(&self, _source: usize, _layer: &Layer, _actual: Digest) {}

    /// Reading blocks the other layers' reading, but hardly ever their conversion: a file is read many
    /// times faster than its content is decompressed and compressed again.
    async fn send(
        &self,
        layer: &Layer,
        _first: usize,
        to: mpsc::Sender<Chunk>,
    ) -> Result<(), Reason> {
        let mut piece = self.bundle.open(&self.places[&layer.digest])?;
        piece.check_size(layer.size)?;
        loop {
            let bytes: Bytes = piece.next(CHUNK)?.into();
            let chunk = match bytes.len() {
                0 => Chunk::End,
                count => {
                    self.progress.event(PullEvent::LayerAdvanced {
                        layer: layer.digest,
                        bytes: count as u64,
                    });
                    Chunk::Bytes(bytes)
                }
            };
            let is_end = matches!(chunk, Chunk::End);
            // Whoever is gone has failed for a reason of its own.
            if to.send(chunk).await.is_err() || is_end {
                return Ok(());
            }
        }
    }
}

/// Makes an image of one tar, whose digest is known when it has passed.
fn one_layer(
    assembly: &Assembly<'_>,
    tar: Box<dyn Read + '_>,
    staging: &Staging,
    runtime: &Runtime,
) -> Result<ReadyImage, Reason> {
    let options = assembly.options;
    let place = staging.layer_to_be().map_err(AssemblyError::from)?;
    let mut tar = Hashed::new(tar);
    let paths = place.paths();
    let converted = layer::convert(&mut tar, options.compression, &options.limits, &paths)?;
    let size = tar.count();
    let digest = tar.digest();
    let report = converted.finish(uuid_of(&digest))?;
    assembly.bootable(
        report.has_kernel.then_some(()),
        report.has_initrd.then_some(()),
    )?;
    let documents = documents_of(digest, size, options);
    assembly.progress.event(PullEvent::Resolved {
        manifest: documents.manifest_digest,
        layers: &[LayerRef {
            digest,
            compressed_size: size,
        }],
    });
    let claim = assembly.unless_cancelled(assembly.claim(&digest));
    let fetched = match runtime.block_on(claim)? {
        Claim::Here(fetched) => fetched,
        Claim::Ours(lock) => {
            let stored = assembly.store.publish(&place.of(&digest), &lock);
            assembly.made(&digest, stored.map_err(AssemblyError::from)?)
        }
    };
    Ok(assembly.finish(&documents, &HashMap::from([(digest, fetched)]))?)
}

/// The documents of an image that has none: the same tar gives the same ones.
fn documents_of(tar: Digest, size: u64, options: &AssemblyOptions) -> Documents {
    let architecture = options.platform.architecture;
    // Not by a serializer, whose order of keys may change.
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{tar}"]}}}}"#
    );
    let config = Digest::of(config.as_bytes());
    Documents {
        manifest_digest: config,
        config_digest: config,
        created: None,
        layers: vec![manifest::layer_of_archive(tar, tar, size, Wrapping::None)],
    }
}
