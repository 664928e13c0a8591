//! What was asked for of a VM, and what that meant when it was created.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, Digest, EngineName};

/// What was asked for, and what that meant when the VM was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct VmConfig {
    /// The engine that runs it.
    pub engine: EngineName,
    /// Virtual CPUs.
    pub cpu: u32,
    /// Guest RAM.
    pub memory: ByteSize,
    /// Size of the VM's own disk.
    pub storage: ByteSize,
    /// Network interfaces.
    pub nics: u16,
    /// Whether huge pages back its RAM.
    pub hugepages: Hugepages,
    /// Name servers given to the guest.
    pub dns: Vec<Ipv4Addr>,
    /// Normalised reference of its image.
    pub image: String,
    /// Digest of that image's manifest when the VM was created; of a disk image, that of the image.
    pub image_digest: Digest,
    /// What it runs from.
    pub root: Root,
}

/// What a VM runs from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// The layers of an OCI image, below a disk of the VM's own.
    Layers(Layers),
    /// A disk of the VM's own that began as a disk image.
    Disk(DiskRoot),
}

/// The layers of an OCI image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Bottom first.
    pub layers: Vec<Digest>,
    /// The layer that holds its kernel.
    pub kernel: Digest,
    /// The layer that holds its initial RAM disk.
    pub initrd: Digest,
}

/// A disk that began as a disk image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRoot {
    /// The image.
    pub base: Digest,
    /// The UEFI firmware that boots it, or the kernel that is installed on it is booted without any.
    pub firmware: Option<PathBuf>,
}

/// Whether huge pages back a VM's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Hugepages {
    /// When enough of them are free at start.
    Auto,
    /// Always; the start fails where there are not enough.
    On,
    /// Never.
    Off,
}

impl VmConfig {
    /// The blobs that the VM needs.
    pub fn blobs(&self) -> &[Digest] {
        match &self.root {
            Root::Layers(root) => &root.layers,
            Root::Disk(root) => std::slice::from_ref(&root.base),
        }
    }
}

/// A configuration as records and manifests have it: layers stand where they always stood.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    engine: EngineName,
    cpu: u32,
    memory: ByteSize,
    storage: ByteSize,
    nics: u16,
    hugepages: Hugepages,
    dns: Vec<Ipv4Addr>,
    image: String,
    image_digest: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel_layer: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initrd_layer: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<DiskRoot>,
}

impl TryFrom<Wire> for VmConfig {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let root = match (wire.kernel_layer, wire.initrd_layer, wire.disk) {
            (Some(kernel), Some(initrd), None) => Root::Layers(Layers {
                layers: wire.layers,
                kernel,
                initrd,
            }),
            (None, None, Some(disk)) if wire.layers.is_empty() => Root::Disk(disk),
            _ => return Err("a VM runs from layers or from a disk"),
        };
        Ok(Self {
            engine: wire.engine,
            cpu: wire.cpu,
            memory: wire.memory,
            storage: wire.storage,
            nics: wire.nics,
            hugepages: wire.hugepages,
            dns: wire.dns,
            image: wire.image,
            image_digest: wire.image_digest,
            root,
        })
    }
}

impl From<VmConfig> for Wire {
    fn from(config: VmConfig) -> Self {
        let (layers, kernel_layer, initrd_layer, disk) = match config.root {
            Root::Layers(root) => (root.layers, Some(root.kernel), Some(root.initrd), None),
            Root::Disk(root) => (Vec::new(), None, None, Some(root)),
        };
        Self {
            engine: config.engine,
            cpu: config.cpu,
            memory: config.memory,
            storage: config.storage,
            nics: config.nics,
            hugepages: config.hugepages,
            dns: config.dns,
            image: config.image,
            image_digest: config.image_digest,
            layers,
            kernel_layer,
            initrd_layer,
            disk,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: &str = r#"{"engine":"micro","cpu":1,"memory":1,"storage":1,"nics":0,"hugepages":"off","dns":[],
        "image":"a","image_digest":"DIGEST","layers":["DIGEST"],"kernel_layer":"DIGEST","initrd_layer":"DIGEST"}"#;
    const DISK: &str = r#"{"engine":"micro","cpu":1,"memory":1,"storage":1,"nics":0,"hugepages":"off","dns":[],
        "image":"a","image_digest":"DIGEST","disk":{"base":"DIGEST","firmware":null}}"#;

    fn read(text: &str) -> Result<VmConfig, serde_json::Error> {
        serde_json::from_str(&text.replace("DIGEST", &Digest::of(b"x").to_string()))
    }

    #[test]
    fn a_configuration_is_of_layers_or_of_a_disk_and_reads_back_as_written() {
        let layers = read(LAYERS).unwrap();
        assert!(matches!(&layers.root, Root::Layers(root) if root.layers.len() == 1));
        let disk = read(DISK).unwrap();
        assert!(matches!(&disk.root, Root::Disk(root) if root.firmware.is_none()));
        for config in [layers, disk] {
            assert_eq!(config.blobs(), [Digest::of(b"x")]);
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(read(&text).unwrap(), config);
        }
        for (from, to) in [
            (r#""kernel_layer":"DIGEST","#, ""),
            (r#""initrd_layer""#, r#""disk""#),
            (r#""cpu":1"#, r#""cpu":1,"gpu":1"#),
        ] {
            assert!(read(&LAYERS.replace(from, to)).is_err(), "{from}");
        }
    }
}
