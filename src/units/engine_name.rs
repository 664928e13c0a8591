//! The engines that a build may link, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineName {
    /// Cloud Hypervisor's crates, linked by `vmm-glue`.
    CloudHypervisor,
    /// The built-in engine on rust-vmm crates.
    Micro,
}

/// A text that names no engine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no engine: the engines are cloud-hypervisor and micro")]
pub struct UnknownEngine(String);

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Micro => "micro",
        })
    }
}

impl FromStr for EngineName {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cloud-hypervisor" => Ok(Self::CloudHypervisor),
            "micro" => Ok(Self::Micro),
            _ => Err(UnknownEngine(text.to_owned())),
        }
    }
}
