//! `cocoon vm list`

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::error::Failure;
use super::super::output::{self, ListArgs};
use crate::network::Address;
use crate::ops::Host;
use crate::ops::inspect::summary;
use crate::ops::list::{self, Observed};
use crate::units::ByteSize;

const HEADER: [&str; 9] = [
    "ID", "NAME", "STATE", "CPU", "MEMORY", "STORAGE", "IP", "IMAGE", "CREATED",
];

/// What the table shows of a configuration.
#[derive(Deserialize)]
struct Config {
    cpu: u32,
    memory: ByteSize,
    storage: ByteSize,
    image: String,
}

/// What it shows of a network.
#[derive(Deserialize)]
struct Network {
    nics: Vec<Nic>,
}

#[derive(Deserialize)]
struct Nic {
    address: Option<Address>,
}

/// Lists VMs, the oldest first.
pub(in crate::cli) fn list(host: &Host, args: &ListArgs) -> Result<(), Failure> {
    if args.format.is_json() {
        let vms = list::list(host)?;
        return output::json(&vms.iter().map(|vm| summary(host, vm)).collect::<Vec<_>>());
    }
    if args.quiet {
        let vms: Vec<Observed<IgnoredAny, IgnoredAny>> = list::list_as(host)?;
        output::lines(vms.iter().map(|vm| vm.record.id));
        return Ok(());
    }
    let vms: Vec<Observed<Config, Network>> = list::list_as(host)?;
    if vms.is_empty() {
        output::note("No VMs found.");
        return Ok(());
    }
    output::table(&HEADER, &vms.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn row(vm: &Observed<Config, Network>) -> Vec<String> {
    let (record, config) = (&vm.record, &vm.record.config);
    let nics = vm.network.iter().flat_map(|network| &network.nics);
    let addresses = nics.filter_map(|nic| nic.address);
    let addresses: Vec<_> = addresses.map(|address| address.ip.to_string()).collect();
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
