//! `cocoon vm clone`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use super::create;
use crate::network::NicRecord;
use crate::ops::grow::Wanted;
use crate::ops::identity::Introduced;
use crate::ops::{self, Host};
use crate::sys::interrupt::Interrupt;
use crate::units::{ByteSize, VmId, VmName};
use crate::vm::config::Root;

/// What `cocoon vm clone` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CloneArgs {
    /// VM name [default: cocoon-clone-<id>]
    #[arg(long)]
    name: Option<VmName>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Fail, and leave no clone, where the guest has no agent that gives it its own identity
    #[arg(long)]
    require_identity: bool,
    #[command(flatten)]
    format: FormatArgs,
    /// Snapshot: its name, id, or the first digits of its id
    #[arg(add = ArgValueCandidates::new(completion::snapshots))]
    snapshot: String,
}

/// What a VM out of a snapshot may have more of.
#[derive(Debug, clap::Args)]
pub(super) struct SizeArgs {
    /// CPUs, not fewer than the snapshot has [default: unchanged]
    #[arg(long, value_name = "N")]
    cpu: Option<u32>,
    /// Memory size, not less than the snapshot has, by whole 128M [default: unchanged]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Size of the VM's own disk, not less than the snapshot has [default: unchanged]
    #[arg(long, value_name = "SIZE")]
    storage: Option<ByteSize>,
    /// Number of network interfaces, which is that of the snapshot
    #[arg(long, value_name = "N")]
    nics: Option<u16>,
}

impl SizeArgs {
    pub(super) fn request(&self, snapshot: &str, name: Option<VmName>) -> ops::clone::Request {
        ops::clone::Request {
            snapshot: snapshot.to_owned(),
            name,
            sizes: Wanted {
                cpu: self.cpu,
                memory: self.memory,
                storage: self.storage,
                nics: self.nics,
            },
            require_identity: false,
        }
    }
}

/// Makes a running VM out of a snapshot.
pub(in crate::cli) fn clone(host: &Host, args: &CloneArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let request = ops::clone::Request {
        require_identity: args.require_identity,
        ..args.sizes.request(&args.snapshot, args.name.clone())
    };
    let cloned = ops::clone::clone(host, &request, &interrupt)?;
    let id = cloned.lock.id();
    let name = create::show(host, id, &args.format)?;
    output::note(format_args!(
        "{name} runs; its console: cocoon vm console {name}"
    ));
    match cloned.introduced {
        Introduced::Done(warnings) => warnings.iter().for_each(output::note),
        Introduced::NoAgent => {
            tell_how_to_set_it_up(host, id)?;
            tell_how_to_grow(cloned.grown);
        }
    }
    Ok(())
}

fn tell_how_to_set_it_up(host: &Host, id: VmId) -> Result<(), Failure> {
    output::note("its guest has no agent, and goes on as the VM that was saved");
    let vm = ops::list::get(host, id)?;
    if let Root::Disk(_) = vm.record.config.root {
        output::note("once it reboots, cloud-init makes it a machine of its own; until then:");
    }
    if let Some(network) = vm.network {
        output::note("paste this into it, for addresses of its own:");
        let devices = match vm.record.config.root {
            Root::Layers(_) => Devices::Named,
            Root::Disk(_) => Devices::Found,
        };
        output::note(setup_script(&network.nics, devices));
    }
    if let Root::Disk(_) = vm.record.config.root {
        output::note("and this, for a name, an id and keys of its own:");
        output::note(name_script(&vm.record.name));
    }
    Ok(())
}

/// Tells what a guest without an agent needs to use what it has more of.
pub(super) fn tell_how_to_grow(grown: bool) {
    if grown {
        output::note("paste this into it, for what it has more of:");
        output::note(GROW_SCRIPT);
    }
}

/// What has a guest use all of its processors, memory and disk, as shell commands; what is in use stays
/// so. The disk is mounted where the guest does not see it, and resize2fs must.
const GROW_SCRIPT: &str = r#"
grep -lx 0 /sys/devices/system/cpu/cpu*/online | while read -r f; do echo 1 >"$f"; done
grep -lx offline /sys/devices/system/memory/memory*/state | while read -r f; do echo online >"$f"; done
disk=/dev/$(basename "$(dirname "$(grep -lx cocoon-cow /sys/block/*/serial)")")
at=$(mktemp -d) && mount "$disk" "$at" && resize2fs "$disk"; umount "$at" && rmdir "$at"
"#;

/// How a guest calls its NICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Devices {
    /// As it was told to.
    Named,
    /// As it likes, in the order of their places on the bus.
    Found,
}

/// What gives a systemd guest its own name, as shell commands.
fn name_script(name: &VmName) -> String {
    format!(
        r#"
hostnamectl set-hostname {name}
rm -f /etc/machine-id /var/lib/dbus/machine-id && systemd-machine-id-setup
rm -f /etc/ssh/ssh_host_* && ssh-keygen -A && systemctl try-restart ssh sshd
"#
    )
}

/// What gives the guest its own addresses, as shell commands.
fn setup_script(nics: &[NicRecord], devices: Devices) -> String {
    let words = |word: &dyn Fn(&NicRecord) -> String| {
        let words: Vec<_> = nics.iter().map(|nic| format!("'{}'", word(nic))).collect();
        words.join(" ")
    };
    let address = |nic: &NicRecord| {
        nic.address
            .map_or_else(String::new, |at| format!("{}/{}", at.ip, at.prefix))
    };
    let gateway = |nic: &NicRecord| {
        let gateway = nic.address.and_then(|at| at.gateway);
        gateway.map_or_else(String::new, |gateway| gateway.to_string())
    };
    let devices = match devices {
        Devices::Named => format!("devs=({})", words(&|nic| nic.ifname.clone())),
        Devices::Found => concat!(
            "mapfile -t devs < <(for d in /sys/class/net/*; do [ ! -e \"$d/device\" ] || ",
            "basename \"$d\"; done | sort -V)"
        )
        .to_owned(),
    };
    format!(
        r#"
echo 3 > /proc/sys/vm/drop_caches
{devices}
macs=({macs})
addrs=({addresses})
gws=({gateways})
for i in "${{!devs[@]}}"; do
  ip link set dev "${{devs[$i]}}" down && ip link set dev "${{devs[$i]}}" address "${{macs[$i]}}" && ip link set dev "${{devs[$i]}}" up
  ip addr flush dev "${{devs[$i]}}"
  [ -n "${{addrs[$i]}}" ] && ip addr add "${{addrs[$i]}}" dev "${{devs[$i]}}"
  [ -n "${{gws[$i]}}" ] && ip route replace default via "${{gws[$i]}}"
done
"#,
        macs = words(&|nic| nic.mac.to_string()),
        addresses = words(&address),
        gateways = words(&gateway),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Address;
    use crate::units::Mac;

    #[test]
    fn the_script_has_a_word_for_each_nic_even_where_nothing_is_known() {
        let nic = |index, address| NicRecord {
            index,
            ifname: format!("eth{index}"),
            tap: String::new(),
            mac: Mac::new([2, 0, 0, 0, 0, 7]),
            mtu: 1500,
            queue_pairs: 1,
            address,
            cni_result: String::new(),
        };
        let address = Address {
            ip: [10, 22, 0, 5].into(),
            prefix: 16,
            gateway: Some([10, 22, 0, 1].into()),
        };
        let nics = [nic(0, Some(address)), nic(1, None)];
        let script = setup_script(&nics, Devices::Named);
        assert!(setup_script(&nics, Devices::Found).contains("mapfile -t devs"));
        for line in [
            "devs=('eth0' 'eth1')",
            "macs=('02:00:00:00:00:07' '02:00:00:00:00:07')",
            "addrs=('10.22.0.5/16' '')",
            "gws=('10.22.0.1' '')",
        ] {
            assert!(script.lines().any(|l| l == line), "no {line} in {script}");
        }
    }
}
