//! What a cloud image reads at its first boot: the NoCloud volume of cloud-init, as bytes.
//!
//! ```text
//! CIDATA                FAT12, 1 MiB, read-only for the guest
//! ├── meta-data         {"instance-id": …, "local-hostname": …}
//! ├── user-data         #cloud-config
//! │                     {"warnings", "bootcmd", "chpasswd" …, "write_files": 15-cocoon-id<i>.network …}
//! └── network-config    {"version": 2, "ethernets": {"id<i>": …}}
//! ```
//!
//! All three are written as JSON. cloud-init reads YAML, of which JSON is a part, and there a text is
//! always between quotes: a VM that is called `on`, `1.5` or `0123` is called that by its guest, too, and no
//! value becomes a key. Only the networkd files within are harder to read, being a line each.
//!
//! ## Invariants
//! - **Pure.** The same values are the same bytes: nothing here reads a clock or a random source.
//! - **One truth.** `network-config` and the networkd files tell the same of each NIC, and are there together.
//! - **No password.** A volume holds a password's hash, which is all that a caller can give.

use std::io;
use std::net::Ipv4Addr;

use serde::Serialize;

use crate::units::VmName;

mod fat;
mod meta_data;
mod network_config;
mod nic;
mod password;
mod user_data;

pub use fat::VOLUME_BYTES;
pub use nic::{Address, Nic};
pub use password::{MAX_PASSWORD, PasswordError, PasswordHash, SALT_BYTES};

/// What a guest is told of itself.
#[derive(Clone, Copy, Debug)]
pub struct Cidata<'a> {
    /// Who it is: cloud-init runs again in a guest that it knows by another one. The VM's id, as text.
    pub instance_id: &'a str,
    /// What it is called.
    pub hostname: &'a VmName,
    /// Its disk is another's, and so is the machine id on it: it makes one of its own.
    pub is_copy: bool,
    /// root's password; without one, root has what the image gave it.
    pub root_password: Option<&'a PasswordHash>,
    /// Name servers, those to ask first in front; of every NIC.
    pub dns: &'a [Ipv4Addr],
    /// NICs in the order in which the VM has them. The first one leads everywhere.
    pub nics: &'a [Nic],
}

/// Why there is no such volume.
#[derive(Debug, thiserror::Error)]
pub enum CidataError {
    /// cloud-init keeps a folder of this name in the guest.
    #[error("{0:?} is not an instance id: use 1 to 64 letters, digits and dashes")]
    InstanceId(String),
    /// No network has such a prefix.
    #[error("the address of NIC {nic} cannot be {ip}/{prefix}: a prefix has 1 to 32 bits")]
    Prefix {
        /// Place of the NIC, from 0.
        nic: usize,
        /// Its address.
        ip: Ipv4Addr,
        /// What cannot be.
        prefix: u8,
    },
    /// Not expected of values that are texts and numbers.
    #[error("cannot put {file} into words")]
    Encode {
        /// Name of the file.
        file: &'static str,
        /// What stood in the way.
        #[source]
        source: serde_json::Error,
    },
    /// Not expected of a volume in memory.
    #[error("cannot format the cidata volume")]
    Format(#[source] io::Error),
    /// There are so many NICs that it does not fit.
    #[error("cannot write {file} to the cidata volume")]
    Write {
        /// Name of the file.
        file: &'static str,
        /// What stood in the way.
        #[source]
        source: io::Error,
    },
}

impl Cidata<'_> {
    /// The volume, [`VOLUME_BYTES`] of it.
    ///
    /// # Errors
    /// The instance id or an address is none, or all of it does not fit.
    pub fn volume(&self) -> Result<Vec<u8>, CidataError> {
        fat::volume(self.instance_id, &self.files()?)
    }

    /// Names and texts of its files.
    fn files(&self) -> Result<Vec<(&'static str, String)>, CidataError> {
        let nics = nic::settings(self.nics, self.dns)?;
        let mut files = vec![
            (
                "meta-data",
                meta_data::text(self.instance_id, self.hostname)?,
            ),
            ("user-data", user_data::text(self, &nics)?),
        ];
        if !nics.is_empty() {
            files.push(("network-config", network_config::text(&nics)?));
        }
        Ok(files)
    }
}

/// `content` as the text of `file`.
fn json(file: &'static str, content: &impl Serialize) -> Result<String, CidataError> {
    let mut text = serde_json::to_string_pretty(content)
        .map_err(|source| CidataError::Encode { file, source })?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_with_tools;
