//! `firmware/manifest.toml`: files of other projects, each known by its digest.
//!
//! Invariant: an [`Entry`] has an address to fetch it from and a digest to know it by; everything else in
//! it is for people.

use serde::Deserialize;

use crate::units::Digest;

/// The list that this program was built with.
const BUILT_IN: &str = include_str!("../../../firmware/manifest.toml");

/// What can be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub name: String,
    /// Where it goes.
    pub install: Install,
    /// The machine that it is for, as Rust names it.
    pub arch: String,
    /// Which one of its kind.
    pub version: String,
    /// An http or https address.
    pub url: String,
    /// Of the file at that address.
    pub digest: Digest,
}

/// Where a file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Install {
    /// It is the UEFI firmware.
    Firmware,
    /// It is a smaller one, for who names it as the firmware: it lies beside.
    SmallFirmware,
    /// It is a gzipped tar of programs.
    CniPlugins,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    file: Vec<WrittenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "licence, origin and where the digest was found are for people, and must be there"
)]
struct WrittenEntry {
    name: String,
    install: Install,
    arch: String,
    version: String,
    license: String,
    origin: String,
    url: String,
    sha256: String,
    found: Vec<String>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// It is not TOML, or has other fields.
    #[error("the manifest is not one")]
    Form(#[source] Box<toml::de::Error>),
    /// A digest is none.
    #[error("the manifest has no SHA-256 of {0}")]
    Digest(String),
    /// An address that nothing is fetched from.
    #[error("the manifest has no http or https address of {0}")]
    Address(String),
}

impl Manifest {
    /// The one that this program was built with.
    ///
    /// # Errors
    /// None, as long as the tests pass.
    pub fn built_in() -> Result<Self, InvalidManifest> {
        Self::parse(BUILT_IN)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// It is not one, or one of its files cannot be fetched or known.
    pub fn parse(text: &str) -> Result<Self, InvalidManifest> {
        let written: Written =
            toml::from_str(text).map_err(|error| InvalidManifest::Form(Box::new(error)))?;
        let entries = written
            .file
            .into_iter()
            .map(Entry::of)
            .collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    /// The files for this machine.
    pub fn for_this_machine(&self) -> impl Iterator<Item = &Entry> {
        let ours = |entry: &&Entry| entry.arch == std::env::consts::ARCH;
        self.entries.iter().filter(ours)
    }
}

impl Entry {
    fn of(written: WrittenEntry) -> Result<Self, InvalidManifest> {
        let Ok(digest) = format!("sha256:{}", written.sha256).parse() else {
            return Err(InvalidManifest::Digest(written.name));
        };
        if !["http://", "https://"]
            .iter()
            .any(|scheme| written.url.starts_with(scheme))
        {
            return Err(InvalidManifest::Address(written.name));
        }
        Ok(Self {
            name: written.name,
            install: written.install,
            arch: written.arch,
            version: written.version,
            url: written.url,
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_manifest_has_a_firmware_and_plugins_of_which_each_is_fetched_over_tls() {
        let manifest = Manifest::built_in().unwrap();
        for install in [
            Install::Firmware,
            Install::SmallFirmware,
            Install::CniPlugins,
        ] {
            let mut entries = manifest.entries.iter();
            let for_x86 = |entry: &Entry| entry.arch == "x86_64" && entry.install == install;
            assert!(entries.any(for_x86), "{install:?}");
        }
        for entry in &manifest.entries {
            assert!(entry.url.starts_with("https://"), "{entry:?}");
            assert!(entry.url.contains(&entry.version), "{entry:?}");
        }
    }

    #[test]
    fn what_cannot_be_fetched_or_known_is_refused_by_name() {
        let good = BUILT_IN.split("[[file]]").nth(1).unwrap();
        let good = format!("[[file]]{good}");
        assert!(Manifest::parse(&good).is_ok());
        for (from, to, says) in [
            ("sha256 = \"dc", "sha256 = \"zz", "no SHA-256 of EDK"),
            (
                "url = \"https",
                "url = \"file",
                "no http or https address of EDK",
            ),
            ("license =", "licence =", "is not one"),
            (
                "install = \"firmware\"",
                "install = \"kernel\"",
                "is not one",
            ),
        ] {
            let error = Manifest::parse(&good.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
