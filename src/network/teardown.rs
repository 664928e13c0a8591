//! A VM's network, taken down: whole, half made, or lost with the host's last run.
//!
//! ```text
//! per NIC, last first:  addresses back on eth<i> (down) ──▶ DEL of every plugin
//! once more             DEL of those NICs whose first one failed                     then the netns
//! ```
//! A second DEL is no superstition: two NICs of one VM on one network share one chain of NAT rules
//! (the `bridge` plugin names it after network and container), and the first DEL fails to remove
//! it, with all else done, because the other NIC still uses it.
//!
//! Invariants:
//! - Every step is attempted, whatever the others said, and may be attempted again.
//! - Plugins find what they left: the result of ADD, and the interface with its addresses.

use std::path::Path;

use serde_json::{Map, Value};

use super::cni::{Attachment, Plugins};
use super::conflist::Conflist;
use super::error::{NetworkError, TeardownError};
use super::plan::{NetworkRecord, ifname};
use super::redirect;
use super::result::{self, AddResult};
use crate::sys::{failpoint, netns};

/// What errors call the configuration list of a record.
pub(super) const STORED: &str = "the stored CNI configuration";

/// Gives back the addresses of every NIC that `record` plans, and deletes the namespace. No process
/// may be left in it. What is gone already is no error.
///
/// # Errors
/// All steps that failed; the others are done.
pub fn teardown(plugins: &Plugins, record: &NetworkRecord) -> Result<(), TeardownError> {
    let errors = take_down(plugins, record, record.nic_count, None);
    if errors.is_empty() {
        return Ok(());
    }
    let vm = record.vm;
    Err(TeardownError { vm, errors })
}

/// Undoes the first `tried` NICs of `record`, last first, and the namespace. `half_added` is what
/// ADD of the last one answered before it failed. Returns all errors.
pub(super) fn take_down(
    plugins: &Plugins,
    record: &NetworkRecord,
    tried: u16,
    half_added: Option<&AddResult>,
) -> Vec<NetworkError> {
    let mut errors = Vec::new();
    match Conflist::parse(&record.conflist, Path::new(STORED)) {
        Ok(list) => delete_nics(plugins, &list, record, tried, half_added, &mut errors),
        // Without the list no lease can be given back, but the namespace can go.
        Err(error) => errors.push(error.into()),
    }
    errors.extend(netns::delete(&record.netns).err().map(NetworkError::from));
    failpoint::reach("network: namespace gone");
    errors
}

fn delete_nics(
    plugins: &Plugins,
    list: &Conflist,
    record: &NetworkRecord,
    tried: u16,
    half_added: Option<&AddResult>,
    errors: &mut Vec<NetworkError>,
) {
    let live = netns::is_netns(&record.netns).unwrap_or_else(|error| {
        errors.push(error.into());
        false
    });
    let netns = if live {
        record.netns.as_path()
    } else {
        Path::new("")
    };
    let mut again = Vec::new();
    for index in (0..tried).rev() {
        let stored = stored_result(record, index).unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        let last = half_added.filter(|_| index + 1 == tried);
        let result = stored.or_else(|| last.map(|half| half.json.clone()));
        if let Some(result) = result.as_ref().filter(|_| live) {
            let addresses = result::addresses(result);
            let restored = redirect::restore_addresses(netns, &ifname(index), &addresses);
            errors.extend(restored.err().map(NetworkError::from));
        }
        let from = Attachment {
            vm: record.vm,
            netns,
            ifname: &ifname(index),
        };
        if !plugins.del(list, from, result.as_ref()).is_empty() {
            again.push((index, result));
        }
        failpoint::reach("network: NIC deleted");
    }
    for (index, result) in again {
        let from = Attachment {
            vm: record.vm,
            netns,
            ifname: &ifname(index),
        };
        let failed = plugins.del(list, from, result.as_ref());
        errors.extend(failed.into_iter().map(NetworkError::from));
    }
}

/// What ADD of NIC `index` answered, if it is on record.
fn stored_result(
    record: &NetworkRecord,
    index: u16,
) -> Result<Option<Map<String, Value>>, NetworkError> {
    let Some(nic) = record.nics.iter().find(|nic| nic.index == index) else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(&nic.cni_result);
    parsed
        .map(Some)
        .map_err(|source| NetworkError::StoredResult {
            ifname: nic.ifname.clone(),
            source,
        })
}
