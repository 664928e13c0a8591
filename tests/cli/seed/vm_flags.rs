//! "VM Flags", of `vm create`, `vm run` and `vm debug`.

use std::path::Path;

use crate::support::Cocoon;
use crate::support::counter::{Counter, SHAPE, install};
use crate::support::network::{PLUGINS, has_plugins, write_conflist};
use crate::support::private::in_private_host;

/// Runs `test` on a host that has a network.
fn with_a_network(test: impl FnOnce(&Counter) + Send) {
    if !has_plugins() {
        return;
    }
    in_private_host(|| {
        let dir = tempfile::tempdir().unwrap();
        write_conflist(dir.path(), "test");
        let env = vec![
            ("COCOON_CNI_BIN_DIR", PLUGINS.into()),
            ("COCOON_CNI_CONF_DIR", dir.path().to_owned()),
        ];
        if let Some(counter) = Counter::idle(env) {
            test(&counter);
        }
    });
}

/// Its name, processors, memory, storage and NICs, as records have them.
fn shape(vm: &serde_json::Value) -> (&str, [u64; 4]) {
    let number = |key| vm["config"][key].as_u64().unwrap();
    let numbers = ["cpu", "memory", "storage", "nics"].map(number);
    (vm["name"].as_str().unwrap(), numbers)
}

/// The threads of a process whose names begin with `name`.
fn threads(pid: &serde_json::Value, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    names
        .filter(|own| own.as_ref().is_ok_and(|own| own.starts_with(name)))
        .count()
}

/// Whether a process has memory of just this size mapped in one piece.
fn maps(pid: &serde_json::Value, bytes: u64) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let address = |text: &str| u64::from_str_radix(text, 16).unwrap();
    maps.lines().any(|line| {
        let (from, rest) = line.split_once('-').unwrap();
        let to = rest.split(' ').next().unwrap();
        address(to) - address(from) == bytes
    })
}

#[test]
fn root_vm_flags_without_any_vm_create_makes_cocoon_image_2_cpus_1g_10g_1_nic() {
    with_a_network(|counter| {
        let id = counter.ok(&["vm", "create", "counter"]);
        let vm = counter.json(&["vm", "inspect", &id]);
        assert_eq!(shape(&vm), ("cocoon-counter", [2, 1 << 30, 10 << 30, 1]));
        assert_eq!(vm["network_configs"].as_array().unwrap().len(), 1);
        let folder = Path::new(vm["run_dir"].as_str().unwrap());
        let disk = folder.join("cow.raw").metadata().unwrap();
        assert_eq!(disk.len(), 10 << 30);
        // The next one cannot have the same name.
        let id = counter.ok(&["vm", "create", "counter"]);
        let vm = counter.json(&["vm", "inspect", &id]);
        assert_eq!(vm["name"], "cocoon-counter-2");
    });
}

#[test]
fn root_vm_flags_name_cpu_memory_storage_and_nics_are_what_vm_run_gives_the_vm() {
    with_a_network(|counter| {
        let flags = "--name web --cpu 3 --memory 96M --storage 80M --nics 2";
        let flags: Vec<_> = flags.split(' ').collect();
        counter.ok(&[&["vm", "run"], &flags[..], &["counter"]].concat());
        let vm = counter.json(&["vm", "inspect", "web"]);
        assert_eq!(shape(&vm), ("web", [3, 96 << 20, 80 << 20, 2]));
        assert_eq!(threads(&vm["pid"], "vcpu"), 3);
        assert!(maps(&vm["pid"], 96 << 20));
        let folder = Path::new(vm["run_dir"].as_str().unwrap());
        let disk = folder.join("cow.raw").metadata().unwrap();
        assert_eq!(disk.len(), 80 << 20);
        let spec = std::fs::read_to_string(folder.join("spec.json")).unwrap();
        for part in ["cocoon.hostname=web", ":eth0:off", ":eth1:off"] {
            assert!(spec.contains(part), "{part:?} is not in {spec}");
        }
        let nics = vm["network_configs"].as_array().unwrap();
        let taps: Vec<_> = nics.iter().map(|nic| nic["tap"].as_str()).collect();
        assert_eq!(taps, [Some("tap0"), Some("tap1")]);
    });
}

#[test]
fn root_vm_flag_nics_is_0_for_a_vm_without_a_network_on_a_host_without_one() {
    let nowhere = ("COCOON_CNI_CONF_DIR", "/proc/none".into());
    let Some(counter) = Counter::idle(vec![nowhere]) else {
        return;
    };
    let create = [&["vm", "create"], &SHAPE[..], &["counter"]].concat();
    let refused = counter.refused(&create);
    assert!(refused.contains("/proc/none"), "{refused}");
    let id = counter.ok(&[&create[..], &["--nics", "0"]].concat());
    let vm = counter.json(&["vm", "inspect", &id]);
    assert_eq!(vm["network_configs"], serde_json::json!([]));
}

#[test]
fn vm_flags_and_their_defaults_are_in_what_vm_debug_prints() {
    let cocoon = Cocoon::new();
    install(&cocoon);
    for (flags, parts, absent) in [
        (
            "",
            [
                "# VM cocoon-counter ",
                "\"boot\": 2,",
                "\"size\": 1073741824,",
                "truncate -s 10737418240 ",
                "\"tap\": \"tap0\"",
            ],
            "tap1",
        ),
        (
            "--name web --cpu 3 --memory 96M --storage 80M --nics 0",
            [
                "# VM web ",
                "\"boot\": 3,",
                "\"size\": 100663296,",
                "truncate -s 83886080 ",
                "\"nics\": []",
            ],
            "tap0",
        ),
    ] {
        let flags: Vec<_> = flags.split_whitespace().collect();
        let debug = ["vm", "debug", "--engine", "micro"];
        let script = cocoon.ok(&[&debug, &flags[..], &["counter"]].concat());
        for part in parts {
            assert!(script.contains(part), "{part:?} is not in {script}");
        }
        assert!(!script.contains(absent), "{absent:?} is in {script}");
    }
}
