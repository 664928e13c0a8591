//! "Global Flags": the flag, which goes before the variable, the variable, and the default.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::counter::{Counter, SHAPE, root_tar};
use crate::support::network::{PLUGINS, has_plugins, write_conflist};
use crate::support::private::{NETNS, hide, in_private_host};
use crate::support::{Cocoon, is_empty, stderr};

/// Somebody refuses connections there.
const NOBODY: &str = "127.0.0.1:1/image:1";

/// What a library says of a pull at the level `debug`.
const DEBUG: &str = "starting new connection";

/// What is no folder, and cannot become one.
const NOWHERE: &str = "/proc/none";

/// `args` twice: with the value `by_flag` of a flag, though the variable says something else, and with the
/// value `by_variable` of the variable.
fn twice<'a>(
    command: impl Fn(&[&str]) -> Command,
    (flag, variable): (&str, &str),
    [by_flag, by_variable]: [&'a str; 2],
    args: &[&str],
) -> [(Command, &'a str); 2] {
    let mut flagged = command(&[&[flag, by_flag], args].concat());
    flagged.env(variable, NOWHERE);
    let mut variable_set = command(args);
    variable_set.env(variable, by_variable);
    [(flagged, by_flag), (variable_set, by_variable)]
}

/// Two folders that do not exist yet.
struct Two {
    paths: [String; 2],
    _dir: tempfile::TempDir,
}

impl Two {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["flag", "variable"].map(|name| dir.path().join(name).display().to_string());
        Self { paths, _dir: dir }
    }

    fn paths(&self) -> [&str; 2] {
        self.paths.each_ref().map(String::as_str)
    }
}

fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn global_flag_config_is_a_file_and_goes_behind_variables_and_flags() {
    let cocoon = Cocoon::new();
    let place = |name: &str| cocoon.root.path().join(name).display().to_string();
    let text = format!(
        "root_dir = '{}'\nrun_dir = '{}'\n",
        place("file"),
        place("run")
    );
    let config = cocoon.file("config.toml", &text);
    let made = |name: &str| Path::new(&place(name)).join("cocoon.db").exists();
    let list = ["--config", &config, "vm", "list"];
    let mut by_file = cocoon.command(&list);
    by_file.env_remove("COCOON_ROOT_DIR");
    succeeds(by_file);
    assert!(made("file"));
    assert!(cocoon.root.path().join("run/vms").exists());
    let mut by_variable = cocoon.command(&list);
    by_variable.env("COCOON_ROOT_DIR", place("variable"));
    succeeds(by_variable);
    assert!(made("variable") && !made("flag"));
    let mut by_flag = cocoon.command(&[&list[..], &["--root-dir", &place("flag")]].concat());
    by_flag.env("COCOON_ROOT_DIR", place("other"));
    succeeds(by_flag);
    assert!(made("flag") && !made("other"));
}

#[test]
fn global_flag_root_dir_and_cocoon_root_dir() {
    let (cocoon, two) = (Cocoon::new(), Two::new());
    let names = ("--root-dir", "COCOON_ROOT_DIR");
    for (list, folder) in twice(
        |args| cocoon.command(args),
        names,
        two.paths(),
        &["vm", "list"],
    ) {
        succeeds(list);
        assert!(Path::new(folder).join("cocoon.db").exists(), "{folder}");
        assert!(Path::new(folder).join("run/vms").exists(), "{folder}");
    }
}

#[test]
fn root_global_flag_run_dir_and_cocoon_run_dir() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    let two = Two::new();
    let create = [&["vm", "create", "--nics", "0"], &SHAPE[..], &["counter"]].concat();
    let names = ("--run-dir", "COCOON_RUN_DIR");
    for (create, folder) in twice(|args| counter.command(args), names, two.paths(), &create) {
        let id = succeeds(create);
        let vm = Path::new(folder).join("vms").join(id.trim_end());
        assert!(vm.join("cow.raw").exists(), "{}", vm.display());
    }
    assert!(is_empty(&counter.cocoon.root.path().join("run/vms")));
}

#[test]
fn root_global_flag_log_dir_and_cocoon_log_dir() {
    let Some(counter) = Counter::idle(Vec::new()) else {
        return;
    };
    let two = Two::new();
    let run = [&["vm", "run", "--nics", "0"], &SHAPE[..], &["counter"]].concat();
    let names = ("--log-dir", "COCOON_LOG_DIR");
    for (run, folder) in twice(|args| counter.command(args), names, two.paths(), &run) {
        let id = succeeds(run);
        let logs = Path::new(folder).join("vms").join(id.trim_end());
        for log in ["vmm.log", "console.log"] {
            assert!(logs.join(log).exists(), "{log} in {}", logs.display());
        }
    }
}

#[test]
fn global_flag_log_level_and_cocoon_log_level() {
    let cocoon = Cocoon::new();
    let says = |flags: &[&str], variable: &str| {
        let mut pull = cocoon.command(&[flags, &["image", "pull", NOBODY]].concat());
        let output = pull.env("COCOON_LOG_LEVEL", variable).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        stderr(&output).contains(DEBUG)
    };
    assert!(!says(&[], ""));
    assert!(says(&["--log-level", "debug"], "error"));
    assert!(says(&[], "debug"));
    assert!(!says(&["--log-level", "info"], "debug"));
    let loud = cocoon.run(&["--log-level", "loud", "vm", "list"]);
    assert_eq!(loud.status.code(), Some(2));
    assert!(stderr(&loud).contains("use debug, info, warn or error"));
}

#[test]
fn root_global_flag_log_level_warn_says_what_error_does_not() {
    let Some(counter) = Counter::run() else {
        return;
    };
    for (level, says) in [("warn", true), ("error", false)] {
        counter.ok(&["vm", "start", "counter"]);
        let stop = [
            "--log-level",
            level,
            "vm",
            "stop",
            "--timeout",
            "1",
            "counter",
        ];
        let stopped = counter.try_(&stop);
        assert!(stopped.status.success());
        let told = stderr(&stopped);
        assert_eq!(told.contains("did not power off in time"), says, "{told}");
    }
}

/// Takes the namespace of a VM away, as a reboot of the host does.
fn forget_namespace(vm: &str) {
    let namespace = Path::new(NETNS).join(format!("cocoon-{vm}"));
    nix::mount::umount2(&namespace, nix::mount::MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_file(&namespace).unwrap();
}

#[test]
fn root_global_flags_cni_conf_dir_cni_bin_dir_dns_and_their_variables() {
    if !has_plugins() {
        return;
    }
    in_private_host(|| {
        let Some(counter) = Counter::idle(Vec::new()) else {
            return;
        };
        let two = Two::new();
        let [by_flag, by_variable] = two.paths();
        for (folder, network) in [(by_flag, "by-flag"), (by_variable, "by-variable")] {
            std::fs::create_dir(folder).unwrap();
            write_conflist(Path::new(folder), network);
        }
        let create = |name| [&["vm", "create", "--name", name], &SHAPE[..], &["counter"]].concat();
        let flags = ["--cni-conf-dir", by_flag, "--cni-bin-dir", PLUGINS];
        let dns = ["--dns", "9.9.9.9,1.0.0.1"];
        let mut flagged = counter.command(&[&flags, &dns[..], &create("one")].concat());
        for variable in ["COCOON_CNI_CONF_DIR", "COCOON_CNI_BIN_DIR"] {
            flagged.env(variable, NOWHERE);
        }
        flagged.env("COCOON_DNS", "8.8.4.4");
        succeeds(flagged);
        let mut variables = counter.command(&create("two"));
        variables
            .env("COCOON_CNI_CONF_DIR", by_variable)
            .env("COCOON_CNI_BIN_DIR", PLUGINS)
            .env("COCOON_DNS", "8.8.4.4");
        succeeds(variables);
        for (vm, network, dns) in [
            ("one", "by-flag", json!(["9.9.9.9", "1.0.0.1"])),
            ("two", "by-variable", json!(["8.8.4.4"])),
        ] {
            let vm = counter.json(&["vm", "inspect", vm]);
            assert_eq!(vm["network"], network);
            assert_eq!(vm["config"]["dns"], dns);
            let address = vm["network_configs"][0]["network"]["ip"].as_str();
            assert!(address.unwrap().starts_with("10.78."), "{vm}");
        }
        let nowhere = [
            (
                ["--cni-conf-dir", NOWHERE, "--cni-bin-dir", PLUGINS],
                "configuration folder",
            ),
            (
                ["--cni-conf-dir", by_flag, "--cni-bin-dir", NOWHERE],
                "plugin bridge",
            ),
        ];
        for (flags, said) in nowhere {
            let refused = counter.refused(&[&flags[..], &create("three")].concat());
            assert!(
                refused.contains(said) && refused.contains(NOWHERE),
                "{refused}"
            );
        }
    });
}

/// A host without anything in the folders that are the defaults, where a VM with a NIC finds all it needs.
fn fresh_host(test: impl FnOnce(&Counter) + Send) {
    if !has_plugins() {
        return;
    }
    in_private_host(|| {
        // What is empty counts as unset.
        let unset = ["COCOON_ROOT_DIR", "COCOON_LOG_DIR"].map(|name| (name, "".into()));
        for folder in ["/etc", "/opt", "/var/lib", "/var/log"] {
            hide(folder).unwrap();
        }
        let conflists = Path::new("/etc/cni/net.d");
        std::fs::create_dir_all(conflists).unwrap();
        write_conflist(conflists, "test");
        std::fs::create_dir("/opt/cni").unwrap();
        std::os::unix::fs::symlink(PLUGINS, "/opt/cni/bin").unwrap();
        let Some(counter) = Counter::idle(unset.into()) else {
            return;
        };
        let tar = counter.cocoon.root.path().join("vm.tar");
        std::fs::write(&tar, root_tar("fresh")).unwrap();
        counter.ok(&["image", "import", "fresh", tar.to_str().unwrap()]);
        test(&counter);
    });
}

#[test]
fn root_global_flags_without_any_the_folders_and_the_dns_are_the_defaults() {
    fresh_host(|counter| {
        let id = counter.ok(&[&["vm", "run"], &SHAPE[..], &["fresh"]].concat());
        counter.vm_goes_on(&id);
        assert!(Path::new("/var/lib/cocoon/cocoon.db").exists());
        let vm = counter.json(&["vm", "inspect", &id]);
        let run_dir = format!("/var/lib/cocoon/run/vms/{id}");
        assert_eq!(vm["run_dir"], run_dir);
        let log = format!("/var/log/cocoon/vms/{id}/console.log");
        assert_eq!(vm["console_log"], log);
        assert_eq!(vm["network"], "test", "of /etc/cni/net.d by /opt/cni/bin");
        let spec = std::fs::read_to_string(Path::new(&run_dir).join("spec.json")).unwrap();
        assert!(spec.contains(":eth0:off:8.8.8.8:1.1.1.1"), "{spec}");
    });
}

#[test]
fn root_global_flag_log_level_is_info_by_default() {
    fresh_host(|counter| {
        let id = counter.ok(&[&["vm", "create"], &SHAPE[..], &["fresh"]].concat());
        for (flags, says) in [(&[][..], true), (&["--log-level", "warn"], false)] {
            forget_namespace(&id);
            let started = counter.try_(&[flags, &["vm", "start", &id]].concat());
            let told = stderr(&started);
            assert!(started.status.success(), "{told}");
            assert_eq!(told.contains("its network is gone"), says, "{told}");
            counter.ok(&["vm", "stop", "--force", &id]);
        }
    });
}
