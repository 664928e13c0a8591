//! A VM's network, made: namespace, then NIC by NIC CNI's ADD and the join with a TAP device.
//!
//! ```text
//! plan ──save──▶ netns ──▶ ADD eth0 ──save──▶ join tap0 ──▶ ADD eth1 ──▶ ...  ──▶ record
//!                  any failure: DEL of every NIC tried, last first, then the netns
//! ```
//!
//! Invariant: nothing is made before the caller has stored the plan, by which
//! [`teardown`](super::teardown::teardown) removes whatever a killed setup leaves.

use std::path::Path;

use super::cni::{Attachment, Plugins};
use super::conflist::Conflist;
use super::error::{BoxError, NetworkError, SetupError, list};
use super::plan::{Address, NetworkRecord, NicRecord, ifname, tap_name};
use super::redirect;
use super::result::AddResult;
use super::teardown::{STORED, take_down};
use crate::sys::{failpoint, netns};

/// Stores a record; called after each NIC's ADD.
pub type Save<'a> = &'a mut dyn FnMut(&NetworkRecord) -> Result<(), BoxError>;

/// Makes the network that `planned` names, whose record the caller has stored. After each ADD the
/// record so far is given to `save`.
///
/// # Errors
/// A step failed; all that was made has been undone, or is told in the error.
pub fn setup(
    plugins: &Plugins,
    planned: &NetworkRecord,
    save: Save<'_>,
) -> Result<NetworkRecord, SetupError> {
    build(plugins, planned, &[], save)
}

/// Makes the network of `record` again, after a reboot of the host or a loss of any part of it,
/// with the same addresses. No process may be in its namespace. The old leases are given back
/// first; what of that fails is logged, since most of it went with the host's last run.
///
/// # Errors
/// A step failed, or CNI gave another address; all that was made has been undone.
pub fn rebuild(plugins: &Plugins, record: &NetworkRecord) -> Result<NetworkRecord, SetupError> {
    build(plugins, record, &record.nics, &mut |_| Ok(()))
}

/// Whether all of the network of `record` is there and works; what is not is for [`rebuild`].
///
/// # Errors
/// The kernel does not say.
pub fn is_intact(record: &NetworkRecord) -> Result<bool, NetworkError> {
    Ok(record.nics.len() == usize::from(record.nic_count)
        && netns::is_netns(&record.netns)?
        && redirect::is_joined(record)?)
}

/// Sets the CNI interfaces down, so that no frame reaches the TAP devices of a VM that does not
/// run. A network that is lost is quiet already.
///
/// # Errors
/// An interface is missing or cannot be set down.
pub fn quiesce(record: &NetworkRecord) -> Result<(), NetworkError> {
    if !netns::is_netns(&record.netns)? {
        return Ok(());
    }
    Ok(redirect::set_up(record, false)?)
}

/// Sets the CNI interfaces up, for a VM that is about to run.
///
/// # Errors
/// The namespace or an interface is missing or cannot be set up.
pub fn wake(record: &NetworkRecord) -> Result<(), NetworkError> {
    Ok(redirect::set_up(record, true)?)
}

/// Checks everything, then makes it; NICs on record in `wanted` keep their addresses.
fn build(
    plugins: &Plugins,
    planned: &NetworkRecord,
    wanted: &[NicRecord],
    save: Save<'_>,
) -> Result<NetworkRecord, SetupError> {
    let failed = |source, undo| SetupError {
        vm: planned.vm,
        source: Box::new(source),
        undo,
    };
    let list = Conflist::parse(&planned.conflist, Path::new(STORED))
        .map_err(|e| failed(e.into(), Vec::new()))?;
    plugins
        .check(&list)
        .map_err(|e| failed(e.into(), Vec::new()))?;
    clear(plugins, planned, wanted).map_err(|e| failed(e, Vec::new()))?;

    netns::create(&planned.netns).map_err(|e| failed(e.into(), Vec::new()))?;
    failpoint::reach("network: namespace made");
    let mut record = NetworkRecord {
        nics: Vec::new(),
        ..planned.clone()
    };
    if let Err(error) = redirect::prepare(&record.netns) {
        let undo = take_down(plugins, &record, 0, None);
        return Err(failed(error.into(), undo));
    }
    for index in 0..planned.nic_count {
        let wanted = wanted.iter().find(|nic| nic.index == index);
        let mut added = None;
        let made = add_nic(plugins, &list, &mut record, (index, wanted), &mut added)
            .and_then(|()| save_nic(&record, index, save))
            .and_then(|()| join_last(&record));
        if let Err(error) = made {
            let undo = take_down(plugins, &record, index + 1, added.as_ref());
            return Err(failed(error, undo));
        }
    }
    Ok(record)
}

/// Removes what an earlier attempt or run of this VM left, with its leases: CNI refuses a second
/// ADD of the same interface.
fn clear(
    plugins: &Plugins,
    planned: &NetworkRecord,
    wanted: &[NicRecord],
) -> Result<(), NetworkError> {
    let live = netns::is_netns(&planned.netns)?;
    if live && let Some(pid) = netns::process_in(&planned.netns)? {
        let netns = planned.netns.clone();
        return Err(NetworkError::InUse { netns, pid });
    }
    if wanted.is_empty() && !planned.netns.exists() {
        return Ok(());
    }
    let errors = take_down(plugins, planned, planned.nic_count, None);
    if !errors.is_empty() {
        tracing::warn!(
            vm = %planned.vm,
            "not all that was left of the VM's network could be removed: {}",
            list(&errors)
        );
    }
    Ok(())
}

/// Adds one NIC and puts it on record. What ADD answered is in `added` even on failure.
fn add_nic(
    plugins: &Plugins,
    list: &Conflist,
    record: &mut NetworkRecord,
    (index, wanted): (u16, Option<&NicRecord>),
    added: &mut Option<AddResult>,
) -> Result<(), NetworkError> {
    let ifname = ifname(index);
    let attachment = Attachment {
        vm: record.vm,
        netns: &record.netns,
        ifname: &ifname,
    };
    plugins.add(list, attachment, wanted, added)?;
    failpoint::reach("network: NIC added");
    let address = added.as_ref().and_then(|result| result.address);
    if let Some(wanted) = wanted {
        same_address(&ifname, wanted.address, address)?;
    }
    let mac = wanted.map(|nic| nic.mac);
    let inspected = redirect::inspect(&record.netns, &ifname, mac)?;
    let json = added.take().map(|result| result.json).unwrap_or_default();
    record.nics.push(NicRecord {
        index,
        ifname,
        tap: tap_name(index),
        mac: inspected.mac,
        mtu: inspected.mtu,
        queue_pairs: record.queue_pairs,
        address,
        cni_result: serde_json::Value::Object(json).to_string(),
    });
    Ok(())
}

/// Refuses a lease of another address than the guest was configured with.
fn same_address(
    ifname: &str,
    wanted: Option<Address>,
    got: Option<Address>,
) -> Result<(), NetworkError> {
    let (wanted, got) = (wanted.map(|a| a.ip), got.map(|a| a.ip));
    if wanted == got {
        return Ok(());
    }
    Err(NetworkError::AddressChanged {
        ifname: ifname.to_owned(),
        wanted,
        got,
    })
}

/// Joins the NIC that was put on record last. After it was saved: the join takes the addresses off
/// the interface, and without a record no one could put them back for DEL.
fn join_last(record: &NetworkRecord) -> Result<(), NetworkError> {
    if let Some(nic) = record.nics.last() {
        redirect::join(&record.netns, nic)?;
        failpoint::reach("network: NIC joined");
    }
    Ok(())
}

fn save_nic(record: &NetworkRecord, index: u16, save: Save<'_>) -> Result<(), NetworkError> {
    save(record).map_err(|source| NetworkError::Save {
        ifname: ifname(index),
        source,
    })?;
    failpoint::reach("network: NIC recorded");
    Ok(())
}
