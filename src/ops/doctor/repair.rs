//! `doctor --fix`: what can be put right without asking.
//!
//! ```text
//!  folders          made, as the first command would
//!  kvm, tun         their modules loaded, where the device is not there
//!  ip-forward       set now, and at the next boot by /etc/sysctl.d/90-cocoon.conf
//!  forward-rules    iptables -I FORWARD, for the ways that are shut
//!  cni-conflist     10-cocoon.conflist, where there is no configuration at all
//! ```
//! Invariants: what a check passed is not touched, and no file that exists is written. Whoever repairs
//! holds the lock `<root>/locks/doctor.lock`, so two at once do not do it twice.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::Serialize;

use super::UNFINISHED;
use super::firewall::{self, Firewall};
use super::network::{IP_FORWARD, OWN_NAME, TUN, needs, own_json};
use super::{Finding, Verdict};
use crate::config::Config;
use crate::network::Conflist;
use crate::network::conflist::ConflistError;
use crate::store::Layout;
use crate::store::layout::LayoutError;
use crate::sys::cpu::HostCpu;
use crate::sys::failpoint;
use crate::sys::flock::FileLock;

/// Addresses of guests if the user names no others; the Go cocoon's.
pub const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 0), 16);

/// The longest prefix with an address for the bridge and one for a guest.
pub const LONGEST_PREFIX: u8 = 30;

/// Sets ip_forward at boot (sysctl.d(5)). Above the distributions' own, below a user's 99.
const SYSCTL_FILE: &str = "/etc/sysctl.d/90-cocoon.conf";

/// Something that was put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// The check that it is for.
    pub name: &'static str,
    /// What was done.
    pub did: String,
}

impl Repair {
    pub(super) fn new(name: &'static str, did: String) -> Self {
        Self { name, did }
    }
}

/// Why something was not put right.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum RepairError {
    #[error("only root may repair a host")]
    NotRoot,
    #[error("cannot take the lock {}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Folder(#[from] LayoutError),
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run {command}")]
    Program {
        command: String,
        #[source]
        source: io::Error,
    },
    #[error("{command} failed: {output}")]
    Refused { command: String, output: String },
    #[error("cannot write a CNI configuration: {subnet} overlaps {route} of {device}")]
    SubnetInUse {
        subnet: Ipv4Net,
        route: Ipv4Net,
        device: String,
    },
}

/// What was repaired, and what could not be.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was done, in order.
    pub repairs: Vec<Repair>,
    /// What failed; the rest was tried all the same.
    pub failures: Vec<RepairError>,
}

impl Outcome {
    fn note(&mut self, done: Result<Vec<Repair>, RepairError>) {
        match done {
            Ok(repairs) => self.repairs.extend(repairs),
            Err(error) => self.failures.push(error),
        }
    }
}

/// Refuses a user who may not repair.
///
/// # Errors
/// The effective user is not root.
pub fn require_root() -> Result<(), RepairError> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(RepairError::NotRoot)
    }
}

/// Makes cocoon's folders, and holds the lock of those who repair.
///
/// # Errors
/// A folder or the lock cannot be made.
pub(super) fn lock(config: &Config) -> Result<FileLock, RepairError> {
    let layout = Layout::new(&config.root_dir, &config.run_dir, &config.log_dir);
    layout.prepare()?;
    let path = layout.locks().join("doctor.lock");
    FileLock::exclusive(&path).map_err(|source| RepairError::Lock { path, source })
}

/// Repairs what `found` did not pass.
///
/// # Errors
/// This is not root, or nothing can be begun. What cannot be repaired is among the outcome's failures.
pub fn repair(config: &Config, found: &[Finding], subnet: Ipv4Net) -> Result<Outcome, RepairError> {
    require_root()?;
    let missing: Vec<_> = [&config.root_dir, &config.run_dir, &config.log_dir]
        .into_iter()
        .filter(|folder| !folder.exists())
        .cloned()
        .collect();
    let _lock = lock(config)?;
    let fails = |name| {
        let mut found = found.iter();
        found.any(|finding| finding.name == name && finding.verdict != Verdict::Pass)
    };
    let mut outcome = Outcome::default();
    outcome.note(folders(config, &missing));
    if fails("kvm") && !Path::new("/dev/kvm").exists() {
        outcome.note(load("kvm", kvm_module()));
    }
    if fails("tun") && !Path::new(TUN).exists() {
        outcome.note(load("tun", Some("tun")));
    }
    if fails("cni-conflist") {
        outcome.note(conflist(&config.cni_conf_dir, subnet));
    }
    if fails("ip-forward") {
        outcome.note(forward());
    }
    if fails("forward-rules") {
        outcome.note(rules(&config.cni_conf_dir));
    }
    Ok(outcome)
}

fn folders(config: &Config, missing: &[PathBuf]) -> Result<Vec<Repair>, RepairError> {
    let logs = &config.log_dir;
    fs::create_dir_all(logs).map_err(|source| RepairError::File {
        action: "make the folder",
        path: logs.clone(),
        source,
    })?;
    let made = |folder: &PathBuf| Repair::new("folders", format!("made {}", folder.display()));
    Ok(missing.iter().map(made).collect())
}

/// The module that drives this processor's virtualization.
fn kvm_module() -> Option<&'static str> {
    let features = HostCpu::of_this_host().unwrap_or_default().features;
    match (features.contains("vmx"), features.contains("svm")) {
        (true, _) => Some("kvm_intel"),
        (_, true) => Some("kvm_amd"),
        // There is nothing to drive.
        _ => None,
    }
}

fn load(name: &'static str, module: Option<&str>) -> Result<Vec<Repair>, RepairError> {
    let Some(module) = module else {
        return Ok(Vec::new());
    };
    run("modprobe", &[module])?;
    Ok(vec![Repair::new(
        name,
        format!("loaded the module {module}"),
    )])
}

fn run(program: &str, args: &[&str]) -> Result<(), RepairError> {
    let command = || format!("{program} {}", args.join(" "));
    let output = firewall::run(program, args).map_err(|source| RepairError::Program {
        command: command(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(RepairError::Refused {
        command: command(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Writes a configuration where there is none. Another one's may be broken: that is the user's to mend.
fn conflist(dir: &Path, subnet: Ipv4Net) -> Result<Vec<Repair>, RepairError> {
    match Conflist::find(dir) {
        Err(ConflistError::NoFolder(_) | ConflistError::NoneFound(_)) => {}
        _ => return Ok(Vec::new()),
    }
    let routes = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    if let Some((device, route)) = overlapping(&routes, subnet) {
        return Err(RepairError::SubnetInUse {
            subnet,
            route,
            device,
        });
    }
    let path = dir.join(OWN_NAME);
    let made = fs::create_dir_all(dir).and_then(|()| write_new(&path, &own_json(subnet)));
    let is_new = made.map_err(|source| RepairError::File {
        action: "write",
        path: path.clone(),
        source,
    })?;
    let did = format!("wrote {}, with {subnet} for guests", path.display());
    Ok(is_new
        .then(|| Repair::new("cni-conflist", did))
        .into_iter()
        .collect())
}

/// The route of another network that has addresses of `subnet`. A bridge of an earlier configuration of
/// cocoon's own is no other.
fn overlapping(routes: &str, subnet: Ipv4Net) -> Option<(String, Ipv4Net)> {
    // Iface Destination Gateway Flags RefCnt Use Metric Mask ..., addresses as the memory has them.
    let address = |hex: &str| {
        let bytes = u32::from_str_radix(hex, 16).ok()?.to_le_bytes();
        Some(Ipv4Addr::from(bytes))
    };
    routes.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let (device, to, mask) = (*fields.first()?, *fields.get(1)?, *fields.get(7)?);
        let route = Ipv4Net::with_netmask(address(to)?, address(mask)?).ok()?;
        let overlaps = route.contains(&subnet) || subnet.contains(&route);
        // Everything is in the default route.
        (route.prefix_len() > 0 && overlaps && device != "cni0").then(|| (device.to_owned(), route))
    })
}

/// Writes a file that does not exist yet, whole or not at all; says whether it did. Removes what a killed
/// repair left beside it, for whoever repairs holds the lock.
fn write_new(path: &Path, text: &str) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(parent);
    let mut file = unfinished?;
    file.write_all(text.as_bytes())?;
    // Programs of others read it, too.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    failpoint::reach("doctor: file written under another name");
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error.error),
    }
}

fn forward() -> Result<Vec<Repair>, RepairError> {
    let failed = |path: &str, source| RepairError::File {
        action: "write",
        path: path.into(),
        source,
    };
    let mut repairs = Vec::new();
    let path = Path::new(SYSCTL_FILE);
    // A host without the folder has other means, of which its user knows.
    if path.parent().is_some_and(Path::is_dir) {
        let text =
            "# Guests of cocoon reach the world through this host.\nnet.ipv4.ip_forward = 1\n";
        if write_new(path, text).map_err(|error| failed(SYSCTL_FILE, error))? {
            repairs.push(Repair::new(
                "ip-forward",
                format!("wrote {SYSCTL_FILE}, for the next boot"),
            ));
        }
    }
    // At the end: a host that forwards has nothing to be repaired.
    let mut file = OpenOptions::new()
        .write(true)
        .open(IP_FORWARD)
        .map_err(|error| failed(IP_FORWARD, error))?;
    file.write_all(b"1\n")
        .map_err(|error| failed(IP_FORWARD, error))?;
    repairs.push(Repair::new(
        "ip-forward",
        "set net.ipv4.ip_forward to 1".to_owned(),
    ));
    Ok(repairs)
}

fn rules(conf_dir: &Path) -> Result<Vec<Repair>, RepairError> {
    let needs = needs(Conflist::find(conf_dir).ok().as_ref());
    // Read anew: since the check, the list may have come, and another one's rules.
    let (Firewall::Iptables(rules), Some(bridge), false) =
        (Firewall::read(), needs.bridge, needs.opened_by_plugin)
    else {
        return Ok(Vec::new());
    };
    let ways = firewall::ways(&rules, &bridge);
    let mut repairs = Vec::new();
    for args in firewall::opening(&bridge, ways) {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        run("iptables", &args)?;
        repairs.push(Repair::new(
            "forward-rules",
            format!("iptables {}", args[2..].join(" ")),
        ));
    }
    Ok(repairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
        eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\n\
        eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n\
        podman0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\n\
        cni0\t0000590A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\n";

    #[test]
    fn a_subnet_of_another_network_is_told_and_the_default_route_is_none() {
        for (subnet, device) in [
            ("10.88.0.0/16", Some("podman0")),
            ("10.88.7.0/24", Some("podman0")),
            ("10.0.0.0/8", Some("podman0")),
            ("192.168.0.0/24", Some("eth0")),
            ("10.89.0.0/16", None),
            ("10.90.0.0/16", None),
        ] {
            let found = overlapping(ROUTES, subnet.parse().unwrap());
            assert_eq!(
                found.map(|(device, _)| device).as_deref(),
                device,
                "{subnet}"
            );
        }
        assert_eq!(overlapping("", DEFAULT_SUBNET), None);
    }

    #[test]
    fn a_configuration_is_written_once_and_no_other_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("net.d");
        let subnet = "10.254.7.0/24".parse().unwrap();
        assert_eq!(conflist(&conf, subnet).unwrap().len(), 1);
        let written = fs::read(conf.join(OWN_NAME)).unwrap();
        assert_eq!(conflist(&conf, DEFAULT_SUBNET).unwrap(), []);
        assert_eq!(fs::read(conf.join(OWN_NAME)).unwrap(), written);
        assert_eq!(fs::read_dir(&conf).unwrap().count(), 1);

        let broken = dir.path().join("broken");
        fs::create_dir(&broken).unwrap();
        fs::write(broken.join("a.conflist"), "{").unwrap();
        assert_eq!(conflist(&broken, subnet).unwrap(), []);
        assert_eq!(fs::read_dir(&broken).unwrap().count(), 1);
    }
}
