//! What goes wrong with a VM's network. A failure in the middle is undone, and what the undo could
//! not do is told with it: nothing is swallowed.

use std::error::Error;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::conflist::ConflistError;
use super::plugin::PluginError;
use super::redirect::DeviceError;
use crate::sys::netns::NetnsError;
use crate::units::VmId;

/// A failure of the caller's, passed through.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// One step that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The stored configuration list is broken.
    #[error(transparent)]
    Conflist(#[from] ConflistError),
    /// A CNI plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A step inside the VM's network namespace failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A step on the VM's network namespace failed.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The namespace exists, and is not a crash's: someone uses it.
    #[error("the network namespace {} is in use by process {pid}", netns.display())]
    InUse {
        /// The namespace.
        netns: PathBuf,
        /// A process in it.
        pid: u32,
    },
    /// CNI gave a rebuilt NIC another address than the guest has.
    #[error(
        "CNI gave {ifname} the address {} instead of {}, which the guest has",
        or_none(*got), or_none(*wanted)
    )]
    AddressChanged {
        /// The NIC.
        ifname: String,
        /// The address on record.
        wanted: Option<Ipv4Addr>,
        /// The address of the new lease.
        got: Option<Ipv4Addr>,
    },
    /// The caller could not save a record.
    #[error("cannot save the record of {ifname}")]
    Save {
        /// The NIC whose record it was.
        ifname: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// A stored CNI result is broken.
    #[error("the stored CNI result of {ifname} is broken")]
    StoredResult {
        /// The NIC whose result it is.
        ifname: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

/// A network that could not be set up, and has been undone.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the network of VM {vm}{}", undo_failures(undo))]
pub struct SetupError {
    /// The VM.
    pub vm: VmId,
    /// What failed.
    #[source]
    pub source: Box<NetworkError>,
    /// What the undo could not do; it is left behind, for the next teardown.
    pub undo: Vec<NetworkError>,
}

/// A network that could not be taken down whole. Everything was attempted.
#[derive(Debug, thiserror::Error)]
#[error("cannot take down all of the network of VM {vm}: {}", list(errors))]
pub struct TeardownError {
    /// The VM.
    pub vm: VmId,
    /// What failed, in the order of the attempts; at least one.
    pub errors: Vec<NetworkError>,
}

fn or_none(ip: Option<Ipv4Addr>) -> String {
    ip.map_or_else(|| "none".to_owned(), |ip| ip.to_string())
}

fn undo_failures(undo: &[NetworkError]) -> String {
    if undo.is_empty() {
        return String::new();
    }
    format!(" (and not all of it could be undone: {})", list(undo))
}

/// The errors with their causes, in one line: an error has one source, and these are several.
pub(super) fn list(errors: &[NetworkError]) -> String {
    let mut line = String::new();
    for error in errors {
        let separator = if line.is_empty() { "" } else { "; " };
        // Writing to a String cannot fail.
        let _ = write!(line, "{separator}{error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            let _ = write!(line, ": {error}");
            cause = error.source();
        }
    }
    line
}
