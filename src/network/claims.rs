//! Which networks of this host belong to this installation.
//!
//! ```text
//! <root>/net/<vm id>          the VM's NetworkRecord, as JSON
//! /var/run/netns/cocoon-*     shared by all installations of the host
//! ```
//!
//! Invariants:
//! - A claim is written before its namespace is made, and removed after it and its leases are gone.
//! - Only claimed networks are ours: GC takes down a claim whose VM has no record, and touches no
//!   namespace without a claim. The claim alone suffices for that.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::plan::{NetworkRecord, vm_of_netns};
use crate::store::atomic;
use crate::sys::netns;
use crate::units::VmId;

/// More than a record can have: a list of 1 MiB, with its quotes escaped, and results of as much.
const MAX_CLAIM_BYTES: u64 = 16 * 1024 * 1024;

/// The folder of the claims of one installation.
#[derive(Clone, Debug)]
pub struct Claims {
    dir: PathBuf,
}

/// Why a claim cannot be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The file system refused.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was to be done.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A claim is not what a claim is.
    #[error("{} is not the record of a network", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

impl Claims {
    /// The claims in the folder `dir`, which need not exist yet.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Claims the network of `record`, or replaces what was known of it.
    ///
    /// # Errors
    /// The claim cannot be written; an older one stays.
    pub fn put(&self, record: &NetworkRecord) -> Result<(), ClaimError> {
        let path = self.path(record.vm);
        let malformed = |source| ClaimError::Malformed {
            path: path.clone(),
            source,
        };
        let json = serde_json::to_vec(record).map_err(malformed)?;
        fs::create_dir_all(&self.dir).map_err(|e| file_error("create", &self.dir, e))?;
        atomic::write(&path, &json).map_err(|e| file_error("write", &path, e))
    }

    /// The claimed network of `vm`, if there is one.
    ///
    /// # Errors
    /// The claim cannot be read, or is broken.
    pub fn get(&self, vm: VmId) -> Result<Option<NetworkRecord>, ClaimError> {
        let path = self.path(vm);
        let mut json = Vec::new();
        match File::open(&path).and_then(|f| f.take(MAX_CLAIM_BYTES).read_to_end(&mut json)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| file_error("read", &path, e))?,
        };
        // A longer file ends in the middle, and is refused as broken.
        let parsed = serde_json::from_slice(&json);
        parsed
            .map(Some)
            .map_err(|source| ClaimError::Malformed { path, source })
    }

    /// Gives up the claim on the network of `vm`, which is gone. A missing claim is no error.
    ///
    /// # Errors
    /// The claim cannot be removed.
    pub fn remove(&self, vm: VmId) -> Result<(), ClaimError> {
        let path = self.path(vm);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file_error("remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// The VMs whose networks are claimed, in the order of their ids.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<VmId>, ClaimError> {
        vms_in(&self.dir, |name| name.parse().ok())
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.dir.join(vm.to_string())
    }
}

/// The VMs of **any** installation that have a network namespace on this host.
///
/// # Errors
/// The folder of namespaces cannot be read.
pub fn list_netns() -> Result<Vec<VmId>, ClaimError> {
    vms_in(Path::new(netns::DIR), vm_of_netns)
}

fn vms_in(dir: &Path, parse: impl Fn(&str) -> Option<VmId>) -> Result<Vec<VmId>, ClaimError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| file_error("read", dir, e))?,
    };
    let mut vms = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| file_error("read", dir, e))?;
        vms.extend(entry.file_name().to_str().and_then(&parse));
    }
    vms.sort_unstable();
    Ok(vms)
}

fn file_error(operation: &'static str, path: &Path, source: io::Error) -> ClaimError {
    ClaimError::File {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(vm: &str) -> NetworkRecord {
        NetworkRecord {
            vm: vm.parse().unwrap(),
            netns: "/var/run/netns/x".into(),
            network: "n".into(),
            conflist: "{ \"exact\":  \"bytes\" }\n".into(),
            nic_count: 2,
            queue_pairs: 1,
            nics: Vec::new(),
        }
    }

    #[test]
    fn a_claim_is_listed_read_back_and_given_up_once_or_twice() {
        let root = tempfile::tempdir().unwrap();
        let claims = Claims::new(root.path().join("net"));
        assert!(claims.list().unwrap().is_empty());
        let (a, b) = (record("00000000000000aa"), record("00000000000000bb"));
        claims.put(&b).unwrap();
        claims.put(&a).unwrap();
        claims.put(&a).unwrap();
        fs::write(root.path().join("net/.tmp-x"), "").unwrap();
        assert_eq!(claims.list().unwrap(), [a.vm, b.vm]);
        assert_eq!(claims.get(a.vm).unwrap(), Some(a.clone()));
        claims.remove(a.vm).unwrap();
        claims.remove(a.vm).unwrap();
        assert_eq!(claims.get(a.vm).unwrap(), None);
        assert_eq!(claims.list().unwrap(), [b.vm]);
    }

    #[test]
    fn a_broken_claim_is_listed_but_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let claims = Claims::new(root.path().to_owned());
        let vm = record("00000000000000aa").vm;
        fs::write(root.path().join(vm.to_string()), "{\"vm\":").unwrap();
        assert_eq!(claims.list().unwrap(), [vm]);
        let error = claims.get(vm).unwrap_err().to_string();
        assert!(error.contains("00000000000000aa"), "{error}");
    }
}
