//! `cocoon vm list`

use super::super::error::Failure;
use super::super::output::{self, ListArgs};
use crate::ops::Host;
use crate::ops::inspect::summary;
use crate::ops::list::{self, Observed};

const HEADER: [&str; 9] = [
    "ID", "NAME", "STATE", "CPU", "MEMORY", "STORAGE", "IP", "IMAGE", "CREATED",
];

/// Lists VMs, the oldest first.
pub(in crate::cli) fn list(host: &Host, args: &ListArgs) -> Result<(), Failure> {
    let vms = list::list(host)?;
    if args.format.is_json() {
        return output::json(&vms.iter().map(|vm| summary(host, vm)).collect::<Vec<_>>());
    }
    if args.quiet {
        vms.iter().for_each(|vm| output::line(vm.record.id));
        return Ok(());
    }
    if vms.is_empty() {
        output::note("No VMs found.");
        return Ok(());
    }
    output::table(&HEADER, &vms.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn row(vm: &Observed) -> Vec<String> {
    let (record, config) = (&vm.record, &vm.record.config);
    let addresses: Vec<_> = vm.addresses().map(|ip| ip.to_string()).collect();
    vec![
        record.id.to_string(),
        record.name.to_string(),
        record.state.to_string(),
        config.cpu.to_string(),
        config.memory.to_string(),
        config.storage.to_string(),
        output::or_dash(addresses.join(",")),
        config.image.clone(),
        output::local_time(record.created_at),
    ]
}
