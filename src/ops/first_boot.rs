//! What a VM of a disk image needs before it boots for the first time.

use std::time::Duration;

use jiff::Timestamp;

use super::identity::random;
use super::installed_kernel::{self, KernelError};
use super::vm_process::{self, chain};
use super::{Error, Host, exec, list};
use crate::agent::Agent;
use crate::cidata::{self, Cidata, PasswordHash};
use crate::network::NetworkRecord;
use crate::store::{Durability, atomic};
use crate::units::{VmId, VmName};
use crate::vm::config::{DiskRoot, Root};
use crate::vm::{VmConfig, VmRecord, records};

/// How long an agent that has just answered may take to answer once more.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Refuses an image that could never boot, and writes what cloud-init in the guest is to read.
///
/// # Errors
/// There is nothing to boot, or the volume cannot be written.
pub(super) fn prepare(
    host: &Host,
    (id, config): (VmId, &VmConfig),
    root: &DiskRoot,
    network: Option<&NetworkRecord>,
) -> Result<(), Error> {
    if root.firmware.is_none() {
        find_kernel(host, id, config)?;
    }
    let name = list::get(host, id)?.record.name;
    write_cidata(host, (id, &name, config), network, false)
}

/// The VM process looks again when it boots; what is not there now is told before anybody waits.
fn find_kernel(host: &Host, id: VmId, config: &VmConfig) -> Result<(), Error> {
    match installed_kernel::find(&host.layout.vm(id).cow_disk()) {
        Ok(_) => Ok(()),
        Err(KernelError::Nothing(source)) => Err(Error::NothingInstalled {
            image: config.image.clone(),
            source: Box::new(source),
        }),
        Err(KernelError::File {
            action,
            path,
            source,
        }) => Err(Error::File {
            action,
            path,
            source,
        }),
    }
}

/// Writes the volume that tells cloud-init who the guest is; of a clone, that its disk was another's.
///
/// # Errors
/// The password cannot be used, or the file not be written.
pub(super) fn write_cidata(
    host: &Host,
    (id, name, config): (VmId, &VmName, &VmConfig),
    network: Option<&NetworkRecord>,
    is_copy: bool,
) -> Result<(), Error> {
    let password = match host.config.root_password.as_deref() {
        Some(password) => Some(PasswordHash::new(password, random()?).map_err(Error::Password)?),
        None => None,
    };
    let nics = network
        .map(|network| network.nics.as_slice())
        .unwrap_or_default();
    let nics: Vec<_> = nics
        .iter()
        .map(|nic| cidata::Nic {
            mac: nic.mac,
            address: nic.address.map(|address| cidata::Address {
                ip: address.ip,
                prefix: address.prefix,
                gateway: address.gateway,
            }),
        })
        .collect();
    let volume = Cidata {
        instance_id: &id.to_string(),
        hostname: name,
        is_copy,
        root_password: password.as_ref(),
        dns: &config.dns,
        nics: &nics,
    }
    .volume()
    .map_err(Error::Cidata)?;
    let path = host.layout.vm(id).cidata();
    atomic::write(&path, &volume, Durability::Full).map_err(|source| Error::File {
        action: "write",
        path,
        source,
    })
}

/// Asks the agent of a guest of which nobody knows yet whether its first boot is complete, and writes it down.
/// Whoever used the agent has what they wanted, whatever it says to this.
pub(super) fn ask(host: &Host, vm: &VmRecord, agent: &Agent<'_>) {
    let is_open = vm.first_booted_at.is_none() && matches!(vm.config.root, Root::Disk(_));
    if is_open && let Err(error) = ask_and_record(host, vm, agent) {
        tracing::warn!(vm = %vm.name, error = %chain(&error).join(": "), "the guest's first boot is not known");
    }
}

fn ask_and_record(host: &Host, vm: &VmRecord, agent: &Agent<'_>) -> Result<(), Error> {
    let mut db = host.database()?;
    let run = db.read(|tx| records::run_of(tx, vm.id))?;
    // What was saved has booted elsewhere, or before; as whom, its cloud-init does not say.
    let spec = vm_process::read_spec(&host.layout.vm(vm.id).spec());
    let Some(run) = run.filter(|_| spec.is_ok_and(|spec| spec.saved.is_none())) else {
        return Ok(());
    };
    let said = agent.hello(AT_ONCE);
    if said
        .map_err(|source| exec::failed(vm.name.clone(), source))?
        .cloud_init_done
    {
        let now = Timestamp::now();
        db.write(Durability::Full, |tx| {
            records::report_first_boot(tx, vm.id, run, now)
        })?;
    }
    Ok(())
}
