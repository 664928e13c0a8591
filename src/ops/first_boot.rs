//! What a VM of a disk image needs before it boots for the first time.

use std::rc::Rc;

use super::identity::random;
use super::{Error, Host, list};
use crate::cidata::{self, Cidata, PasswordHash};
use crate::disk::{Format, Image, ReadAt};
use crate::installed;
use crate::network::NetworkRecord;
use crate::store::{Durability, atomic};
use crate::units::{VmId, VmName};
use crate::vm::VmConfig;
use crate::vm::config::DiskRoot;

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
        find_kernel(host, config, root)?;
    }
    let name = list::get(host, id)?.record.name;
    write_cidata(host, (id, &name, config), network)
}

/// The VM process looks again when it boots; what is not there now is told before anybody waits.
fn find_kernel(host: &Host, config: &VmConfig, root: &DiskRoot) -> Result<(), Error> {
    let path = host.layout.disk_image(&root.base);
    let image = Image::open(&path, Format::Qcow2).map_err(|source| Error::File {
        action: "read",
        path,
        source,
    })?;
    let image: Rc<dyn ReadAt> = Rc::new(image);
    match installed::find(&image) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::NothingInstalled {
            image: config.image.clone(),
            source: Box::new(source),
        }),
    }
}

/// Writes the volume that tells cloud-init who the guest is.
///
/// # Errors
/// The password cannot be used, or the file not be written.
pub(super) fn write_cidata(
    host: &Host,
    (id, name, config): (VmId, &VmName, &VmConfig),
    network: Option<&NetworkRecord>,
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
