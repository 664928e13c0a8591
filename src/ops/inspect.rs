//! `vm inspect`: all that is known of a VM, as one JSON object.
//!
//! The keys are those of the Go cocoon's object, so that its users' scripts go on working, and
//! cocoon's own beside them.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::list::{self, Observed};
use super::{Error, Host, installed_kernel, vm_process};
use crate::store::layout::VmLayout;
use crate::units::VmId;
use crate::vm::config::Root;
use crate::vm::{VmConfig, VmRecord, cmdline};
use crate::vmm::Client;
use crate::vmm::protocol::Request;

/// Describes a VM.
///
/// # Errors
/// There is no such VM, or the database failed.
pub fn inspect(host: &Host, id: VmId) -> Result<Value, Error> {
    let vm = list::get(host, id)?;
    let mut object = summary(host, &vm);
    if vm.record.state.is_alive() {
        // A VM that ends right now has nothing more to tell, and that is no failure.
        if let Ok(mut client) = Client::connect(&host.layout.vm(id).control_socket()) {
            object["pid"] = json!(client.process().pid());
            let spec = vm_process::read_spec(&host.layout.vm(id).spec());
            object["hugepages_in_use"] = json!(spec.ok().map(|spec| spec.memory.hugepages));
            object["runtime"] = client.call(Request::Info).unwrap_or(Value::Null);
        }
    }
    Ok(object)
}

/// Describes a VM by its records alone, as `vm list` does.
pub fn summary(host: &Host, vm: &Observed) -> Value {
    let (record, config) = (&vm.record, &vm.record.config);
    let layout = host.layout.vm(record.id);
    let running = record.state.is_alive();
    json!({
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "reason": record.reason,
        "engine": config.engine,
        "config": {
            "name": record.name,
            "cpu": config.cpu,
            "memory": config.memory,
            "storage": config.storage,
            "nics": config.nics,
            "image": config.image,
            "hugepages": config.hugepages,
            "dns": config.dns,
        },
        "image_digest": config.image_digest,
        "network": vm.network.as_ref().map(|network| network.network.as_str()),
        "network_configs": networks(vm),
        "storage_configs": disks(host, &layout, record),
        "boot_config": boot(host, &layout, config),
        "first_booted": record.first_booted_at.is_some(),
        "socket_path": running.then(|| layout.api_socket()).filter(|path| path.exists()),
        "vsock_socket": running.then(|| layout.vsock_socket()),
        "console_path": running.then(|| layout.console_socket()),
        "run_dir": layout.folder(),
        "console_log": layout.console_log(),
        "vmm_log": layout.vmm_log(),
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "started_at": record.started_at,
        "stopped_at": record.stopped_at,
    })
}

fn disks(host: &Host, layout: &VmLayout, record: &VmRecord) -> Vec<Value> {
    let config = &record.config;
    let disk =
        |path: PathBuf, ro: bool, serial: &str| json!({"path": path, "ro": ro, "serial": serial});
    let own = disk(layout.cow_disk(), false, cmdline::COW_SERIAL);
    match &config.root {
        Root::Layers(root) => {
            let layers =
                root.layers.iter().enumerate().map(|(i, layer)| {
                    disk(host.layout.blob(layer), true, &cmdline::layer_serial(i))
                });
            layers.chain([own]).collect()
        }
        Root::Disk(_) => {
            let cidata = || disk(layout.cidata(), true, cmdline::CIDATA_SERIAL);
            let once = has_cidata(layout, record).then(cidata);
            [own].into_iter().chain(once).collect()
        }
    }
}

/// Whether the volume of cloud-init is attached, or would be if the VM were started.
fn has_cidata(layout: &VmLayout, record: &VmRecord) -> bool {
    let spec = record
        .state
        .is_alive()
        .then(|| vm_process::read_spec(&layout.spec()));
    match spec {
        Some(Ok(spec)) => spec.has_cidata(),
        _ => record.first_booted_at.is_none(),
    }
}

fn boot(host: &Host, layout: &VmLayout, config: &VmConfig) -> Value {
    match &config.root {
        Root::Layers(root) => json!({
            "kernel_path": host.layout.kernel(&root.kernel),
            "initrd_path": host.layout.initrd(&root.initrd),
        }),
        Root::Disk(root) => match &root.firmware {
            Some(path) => json!({"firmware_path": path}),
            None => json!({"installed": installed_kernel::chosen(&layout.boot())}),
        },
    }
}

fn networks(vm: &Observed) -> Vec<Value> {
    let Some(network) = &vm.network else {
        return Vec::new();
    };
    let nic = |nic: &crate::network::NicRecord| {
        json!({
            "ifname": nic.ifname,
            "tap": nic.tap,
            "mac": nic.mac,
            "mtu": nic.mtu,
            // A queue pair is two virtqueues.
            "num_queues": u32::from(nic.queue_pairs) * 2,
            "queue_size": crate::vm::spec::QUEUE_SIZE,
            "netns_path": network.netns,
            "network": nic.address,
        })
    };
    network.nics.iter().map(nic).collect()
}
