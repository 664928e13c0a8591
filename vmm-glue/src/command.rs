//! [`VmSpec`] to the command line of Cloud Hypervisor's own program, for `cocoon vm debug`.
//!
//! ```text
//! VmSpec ──convert──▶ VmConfig ──flags──▶ --cpus boot=2,max=8 --disk path=… path=… --console tty …
//! ```
//! Invariant: what Cloud Hypervisor reads out of the flags is what `convert` makes, but for the console,
//! which is on the caller's terminal. So they are made of the [`VmConfig`], and no option is decided here.

use std::fmt::Display;
use std::path::Path;

use cocoon::vm::spec::VmSpec;
use cocoon::vmm::engine::Flag;
use vmm::vm_config::{
    BalloonConfig, ConsoleOutputMode, CpusConfig, DiskConfig, MemoryConfig, NetConfig,
    PayloadConfig, VmConfig, VsockConfig,
};

use crate::convert;

/// What a value may hold that needs no quotes among Cloud Hypervisor's options.
const PLAIN: &str = "-_./:+%@";

/// The flags for `spec`'s VM. Its API socket is there as in cocoon's own process.
pub(crate) fn flags(spec: &VmSpec) -> Vec<Flag> {
    let config = on_terminal(spec);
    let mut flags = vec![flag(
        "--api-socket",
        [Options::default().add("path", text(&spec.paths.api_socket))],
    )];
    flags.extend(config.payload.iter().flat_map(payload));
    flags.push(flag("--cpus", [cpus(&config.cpus)]));
    flags.push(flag("--memory", [memory(&config.memory)]));
    flags.extend(list("--disk", config.disks.as_deref(), disk));
    flags.extend(list("--net", config.net.as_deref(), nic));
    flags.extend(config.vsock.as_ref().map(|v| flag("--vsock", [vsock(v)])));
    flags.extend(
        config
            .balloon
            .as_ref()
            .map(|b| flag("--balloon", [balloon(b)])),
    );
    let source = Options::default().add("src", text(&config.rng.src));
    flags.push(flag("--rng", [source]));
    for (name, is_on) in [
        ("--watchdog", config.watchdog),
        ("--pvpanic", config.pvpanic),
    ] {
        flags.extend(is_on.then(|| flag(name, [])));
    }
    flags.push(switch("--serial", &config.serial.common.mode));
    flags.push(switch("--console", &config.console.common.mode));
    flags
}

/// The configuration of `spec`'s VM, for a person at a terminal.
fn on_terminal(spec: &VmSpec) -> VmConfig {
    let mut config = convert::vm_config(spec);
    for mode in [
        &mut config.console.common.mode,
        &mut config.serial.common.mode,
    ] {
        if *mode == ConsoleOutputMode::Pty {
            *mode = ConsoleOutputMode::Tty;
        }
    }
    config
}

fn payload(payload: &PayloadConfig) -> Vec<Flag> {
    let file = |name, path: &Option<_>| path.as_deref().map(|path| (name, text(path)));
    let parts = [
        file("--firmware", &payload.firmware),
        file("--kernel", &payload.kernel),
        file("--initramfs", &payload.initramfs),
        payload.cmdline.clone().map(|line| ("--cmdline", line)),
    ];
    let parts = parts.into_iter().flatten();
    let whole = |(name, value)| Flag {
        name,
        values: vec![value],
    };
    parts.map(whole).collect()
}

fn cpus(cpus: &CpusConfig) -> Options {
    Options::default()
        .add("boot", cpus.boot_vcpus)
        .add("max", cpus.max_vcpus)
}

fn memory(memory: &MemoryConfig) -> Options {
    let mut options = Options::default().add("size", bytes(memory.size));
    if let Some(room) = memory.hotplug_size {
        options = options.add("hotplug_size", bytes(room));
    }
    if memory.hugepages {
        options = options.add("hugepages", on(true));
    }
    if let Some(size) = memory.hugepage_size {
        options = options.add("hugepage_size", bytes(size));
    }
    if memory.reserve {
        options = options.add("reserve", on(true));
    }
    options
}

fn disk(disk: &DiskConfig) -> Options {
    let mut options = Options::default();
    if let Some(path) = &disk.path {
        options = options.add("path", text(path));
    }
    options = options
        .add("readonly", on(disk.readonly))
        .add("direct", on(disk.direct))
        .add("sparse", on(disk.sparse))
        .add("image_type", disk.image_type)
        .add("backing_files", on(disk.backing_files))
        .add("num_queues", disk.num_queues)
        .add("queue_size", disk.queue_size);
    match &disk.serial {
        Some(serial) => options.add("serial", serial),
        None => options,
    }
}

fn nic(nic: &NetConfig) -> Options {
    let mut options = Options::default();
    if let Some(tap) = &nic.tap {
        options = options.add("tap", tap);
    }
    options = options
        .add("mac", nic.mac)
        .add("num_queues", nic.num_queues)
        .add("queue_size", nic.queue_size);
    match nic.mtu {
        Some(mtu) => options.add("mtu", mtu),
        None => options,
    }
}

fn vsock(vsock: &VsockConfig) -> Options {
    Options::default()
        .add("cid", vsock.cid)
        .add("socket", text(&vsock.socket))
}

fn balloon(balloon: &BalloonConfig) -> Options {
    Options::default()
        .add("size", bytes(balloon.size))
        .add("deflate_on_oom", on(balloon.deflate_on_oom))
        .add("free_page_reporting", on(balloon.free_page_reporting))
}

/// A console that is off, or on the terminal.
fn switch(name: &'static str, mode: &ConsoleOutputMode) -> Flag {
    let is_on = matches!(mode, ConsoleOutputMode::Tty);
    Flag {
        name,
        values: vec![if is_on { "tty" } else { "off" }.to_owned()],
    }
}

fn list<T>(name: &'static str, list: Option<&[T]>, of: impl Fn(&T) -> Options) -> Option<Flag> {
    list.map(|list| flag(name, list.iter().map(of)))
}

fn flag(name: &'static str, values: impl IntoIterator<Item = Options>) -> Flag {
    Flag {
        name,
        values: values.into_iter().map(|options| options.0).collect(),
    }
}

/// In the largest unit in which it is a whole number.
fn bytes(size: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let whole = |(shift, _): &(u32, _)| size > 0 && size.trailing_zeros() >= *shift;
    match units.into_iter().find(whole) {
        Some((shift, unit)) => format!("{}{unit}", size >> shift),
        None => size.to_string(),
    }
}

fn on(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// The path is text: nobody could type it else.
fn text(path: &Path) -> String {
    path.display().to_string()
}

/// `key=value,…`, as `option_parser` of Cloud Hypervisor reads it.
#[derive(Debug, Default)]
struct Options(String);

impl Options {
    /// With `key`. In quotes every byte stands for itself, but for the quote, which is doubled.
    fn add(mut self, key: &str, value: impl Display) -> Self {
        let value = value.to_string();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || PLAIN.contains(c);
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(key);
        self.0.push('=');
        if value.chars().all(is_plain) {
            self.0.push_str(&value);
        } else {
            self.0
                .push_str(&format!("\"{}\"", value.replace('"', "\"\"")));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cocoon::units::ByteSize;
    use std::collections::BTreeMap;
    use vmm::config::VmParams;

    fn spec() -> VmSpec {
        serde_json::from_str(include_str!("../tests/golden/oci.spec.json")).unwrap()
    }

    /// The configuration that Cloud Hypervisor's program makes of the flags.
    fn read(flags: &[Flag]) -> VmConfig {
        let mut given: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for flag in flags {
            let values = flag.values.iter().map(String::as_str).collect();
            assert!(given.insert(flag.name, values).is_none(), "{}", flag.name);
        }
        // Its api socket is no part of a VM.
        given.remove("--api-socket").unwrap();
        let mut many = |name| given.remove(name);
        let disks = many("--disk");
        let net = many("--net");
        let is_on = |values: Option<Vec<&str>>| values.is_some_and(|values| values.is_empty());
        let watchdog = is_on(many("--watchdog"));
        let pvpanic = is_on(many("--pvpanic"));
        let mut one = |name| {
            let values = given.remove(name)?;
            assert_eq!(values.len(), 1, "{name}");
            Some(values[0])
        };
        let params = VmParams {
            cpus: one("--cpus").unwrap(),
            memory: one("--memory").unwrap(),
            memory_zones: None,
            firmware: one("--firmware"),
            kernel: one("--kernel"),
            initramfs: one("--initramfs"),
            cmdline: one("--cmdline"),
            rate_limit_groups: None,
            disks,
            net,
            rng: one("--rng").unwrap(),
            balloon: one("--balloon"),
            fs: None,
            generic_vhost_user: None,
            pmem: None,
            serial: one("--serial").unwrap(),
            console: one("--console").unwrap(),
            // The program's default.
            debug_console: "off,iobase=0xe9",
            devices: None,
            user_devices: None,
            vdpa: None,
            vsock: one("--vsock"),
            pvpanic,
            numa: None,
            watchdog,
            rtc: None,
            pci_segments: None,
            platform: None,
            tpm: None,
            landlock_enable: false,
            landlock_rules: None,
        };
        let config = VmConfig::parse(params).unwrap();
        assert!(given.is_empty(), "{given:?} is no flag of the program");
        config
    }

    fn json(mut config: VmConfig) -> serde_json::Value {
        // As its parser does with what it has read.
        config.validate().unwrap();
        serde_json::to_value(config).unwrap()
    }

    type Change = fn(&mut VmSpec);

    #[test]
    fn cloud_hypervisor_reads_what_cocoon_makes_itself() {
        let changes: [Change; 8] = [
            |_| {},
            |s| s.nics.clear(),
            |s| (s.watchdog, s.vsock, s.memory.balloon) = (false, None, None),
            |s| (s.memory.hugepages, s.memory.balloon) = (true, None),
            |s| s.memory.max = s.memory.size,
            |s| s.memory.size = ByteSize::from_bytes((1 << 30) + 4096),
            |s| (s.cpus.boot, s.cpus.max) = (3, 3),
            |s| {
                s.nics.push(s.nics[0].clone());
                s.nics[1].tap = "tap 1".into();
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut spec = spec();
            change(&mut spec);
            let flags = flags(&spec);
            assert_eq!(
                json(read(&flags)),
                json(on_terminal(&spec)),
                "change {number}: {flags:?}"
            );
        }
    }

    #[test]
    fn paths_of_any_text_arrive_as_they_are() {
        for name in [
            "a,b", "a=b", "[", "]", "\"", "a\"\"b\"", " a ", "ä", "a\nb", "'", "\\", "$x", ",",
        ] {
            let mut spec = spec();
            for disk in &mut spec.disks {
                disk.path = format!("/{name}").into();
            }
            spec.vsock.as_mut().unwrap().socket = format!("/run/{name}/v.sock").into();
            let config = read(&flags(&spec));
            assert_eq!(json(config), json(on_terminal(&spec)), "{name:?}");
        }
    }

    #[test]
    fn nothing_but_the_console_is_otherwise_than_in_cocoons_own_process() {
        let mut ours = serde_json::to_value(convert::vm_config(&spec())).unwrap();
        let theirs = serde_json::to_value(on_terminal(&spec())).unwrap();
        assert_eq!(ours["console"]["mode"], "Pty");
        ours["console"]["mode"] = "Tty".into();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn the_flags_of_an_oci_vm_are_these() {
        let lines: Vec<_> = flags(&spec())
            .iter()
            .map(|flag| {
                [&[flag.name.to_owned()], &flag.values[..]]
                    .concat()
                    .join(" ")
                    + "\n"
            })
            .collect();
        assert_eq!(
            lines.concat(),
            include_str!("../tests/golden/oci.flags.txt"),
            "the flags are now:\n{}",
            lines.concat()
        );
    }
}
