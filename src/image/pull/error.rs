//! Why a pull fails.

use crate::image::assembly::AssemblyError;
use crate::image::hosts::HostsError;
use crate::image::manifest::ManifestError;
use crate::image::registry::RegistryError;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry did not give what was asked of it.
    #[error("cannot pull {image}")]
    Registry {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// What is configured of the registry cannot be used.
    #[error(transparent)]
    Hosts(HostsError),
    /// The image's documents cannot be used.
    #[error("cannot use {image}")]
    Manifest {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// Its layers did not become an image.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
}

impl PullError {
    /// Whether the pull ended because the caller wanted it so.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Assembly(AssemblyError::Cancelled { .. }))
    }
}
