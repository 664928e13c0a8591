//! Pulls an image: from a name in a registry to verified layers on disk.
//!
//! ```text
//!   reference ──▶ index ──platform──▶ manifest ──▶ config
//!                                        └─▶ layers ─▶ assembly
//! ```
//! All network I/O runs on the calling thread.
//!
//! Invariant: what the manifest names is fetched by its digest, from the hosts of its registry alone. See
//! `assembly` for what becomes of the layers, and for what stays of a pull that failed.

use std::path::PathBuf;

use oci_spec::image::{Descriptor, ImageManifest};
use tokio::sync::mpsc;

use super::assembly::{Assembly, AssemblyError, AssemblyOptions, Documents, ReadyImage, Supply};
use super::blobs::BlobStore;
use super::decode::Chunk;
use super::download::Download;
use super::manifest::{self, Document, Layer, ManifestError};
use super::progress::{Progress, PullEvent};
use super::reference::Reference;
use super::registry::{RegistryError, Repository};
use super::retry::RetryPolicy;
use super::route::{Ask, NoRoute, Route};
use crate::units::Digest;

mod error;

#[cfg(test)]
pub(super) mod fault_server;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_hosts;
#[cfg(test)]
mod tests_of_processes;
#[cfg(test)]
mod tests_with_a_registry;

pub use error::PullError;

/// How to pull.
#[derive(Debug, Default)]
pub struct PullOptions {
    /// Docker's `config.json`, which need not exist; without it access is anonymous.
    pub docker_config: Option<PathBuf>,
    /// The folder with containerd's `hosts.toml` files, which need not exist.
    pub registry_config: Option<PathBuf>,
    /// When to repeat a failed request.
    pub retry: RetryPolicy,
    /// How its layers become an image.
    pub assembly: AssemblyOptions,
}

/// Pulls an image into `store`. Layers that are present are not transferred again; if all are, only
/// the image's documents are read.
///
/// # Errors
/// See [`PullError`]; no work files are left.
pub fn pull(
    reference: &Reference,
    options: &PullOptions,
    store: &BlobStore,
    progress: &dyn Progress,
) -> Result<ReadyImage, PullError> {
    let assembly = Assembly {
        image: reference,
        options: &options.assembly,
        store,
        progress,
    };
    let runtime = assembly.runtime()?;
    let (folder, logins) = (
        options.registry_config.as_deref(),
        options.docker_config.as_ref(),
    );
    let route = Route::new(reference, folder, logins).map_err(|none| match none {
        NoRoute::Hosts(source) => PullError::Hosts(source),
        NoRoute::Registry(source) => registry_failed(reference, source),
    })?;
    let pull = Pull {
        reference,
        options,
        progress,
        route,
    };
    let documents = runtime.block_on(assembly.unless_cancelled(pull.resolve()))?;
    let staging = store.stage().map_err(AssemblyError::from)?;
    assembly.run(&documents, &pull, &staging, &runtime)
}

fn registry_failed(reference: &Reference, source: RegistryError) -> PullError {
    PullError::Registry {
        image: reference.to_string(),
        source: Box::new(source),
    }
}

struct Pull<'a> {
    reference: &'a Reference,
    options: &'a PullOptions,
    progress: &'a dyn Progress,
    route: Route,
}

impl Supply for Pull<'_> {
    type Error = PullError;

    fn sources(&self) -> usize {
        self.route.count(Ask::Pull)
    }

    fn passes_over(&self, source: usize, layer: &Layer, actual: Digest) {
        if let Ok((host, _)) = self.route.hosts(Ask::Pull, source) {
            let lie = RegistryError::DigestMismatch {
                registry: host.registry().to_owned(),
                what: format!("layer {}", layer.digest.short()),
                expected: layer.digest,
                actual,
            };
            self.progress.event(PullEvent::NextHost { reason: &lie });
        }
    }

    async fn send(
        &self,
        layer: &Layer,
        first: usize,
        to: mpsc::Sender<Chunk>,
    ) -> Result<(), PullError> {
        let hosts = self.route.hosts(Ask::Pull, first);
        let hosts = hosts.map_err(|error| self.registry_failed(error))?;
        let download = Download::new(hosts, layer, self.progress);
        let downloaded = download.run(&self.options.retry, to).await;
        downloaded.map_err(|error| self.registry_failed(error))
    }
}

impl Pull<'_> {
    fn registry_failed(&self, source: RegistryError) -> PullError {
        registry_failed(self.reference, source)
    }

    fn unusable(&self, source: ManifestError) -> PullError {
        PullError::Manifest {
            image: self.reference.to_string(),
            source,
        }
    }

    async fn ask<T>(
        &self,
        ask: Ask,
        attempt: impl AsyncFn(&Repository) -> Result<T, RegistryError>,
    ) -> Result<T, PullError> {
        let (policy, progress) = (&self.options.retry, self.progress);
        let done = self.route.ask(ask, policy, progress, attempt).await;
        done.map_err(|error| self.registry_failed(error))
    }

    /// Reads the image's documents.
    async fn resolve(&self) -> Result<Documents, PullError> {
        let platform = self.options.assembly.platform;
        let (manifest, manifest_digest) = self.platform_manifest().await?;
        let config_digest = manifest::config_of(&manifest);
        let config_digest = config_digest.map_err(|error| self.unusable(error))?;
        let what = format!("config {}", config_digest.short());
        let config = self.ask(Ask::Pull, async |host: &Repository| {
            host.small_blob(&what, &config_digest).await
        });
        let config = config.await?;
        manifest::check_size(manifest.config(), &config, "config")
            .map_err(|error| self.unusable(error))?;
        let config = manifest::read_config(&config, platform);
        let config = config.map_err(|error| self.unusable(error))?;
        let layers = manifest::layers(&manifest, &config).map_err(|error| self.unusable(error))?;
        Ok(Documents {
            manifest_digest,
            config_digest,
            created: config.created,
            layers,
        })
    }

    /// The manifest for the platform, by way of an index if there is one.
    async fn platform_manifest(&self) -> Result<(Box<ImageManifest>, Digest), PullError> {
        let wanted = self.reference.digest();
        let target = match (wanted, self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let index = match self.document(&target, wanted, None).await? {
            (Document::Manifest(manifest), digest) => return Ok((manifest, digest)),
            (Document::Index(index), _) => index,
        };
        let chosen = manifest::choose(&index, self.options.assembly.platform);
        let chosen = chosen.map_err(|error| self.unusable(error))?;
        let digest = manifest::digest_of(chosen, "index");
        let digest = digest.map_err(|error| self.unusable(error))?;
        let target = digest.to_string();
        match self.document(&target, Some(&digest), Some(chosen)).await? {
            (Document::Manifest(manifest), digest) => Ok((manifest, digest)),
            (Document::Index(_), _) => Err(self.unusable(ManifestError::NestedIndex)),
        }
    }

    async fn document(
        &self,
        target: &str,
        expected: Option<&Digest>,
        descriptor: Option<&Descriptor>,
    ) -> Result<(Document, Digest), PullError> {
        let ask = expected.map_or(Ask::Resolve, |_| Ask::Pull);
        let fetched = self.ask(ask, async |host: &Repository| {
            host.manifest(target, expected).await
        });
        let fetched = fetched.await?;
        let sized = descriptor.map_or(Ok(()), |descriptor| {
            manifest::check_size(descriptor, &fetched.body, "manifest")
        });
        sized.map_err(|error| self.unusable(error))?;
        let document = manifest::read(&fetched.body, fetched.content_type.as_deref());
        let document = document.map_err(|error| self.unusable(error))?;
        Ok((document, fetched.digest))
    }
}
