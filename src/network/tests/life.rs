//! Networks that come, stay, are lost, come back and go.

use std::time::Instant;

use super::frames::Guest;
use super::*;
use crate::sys::netns;

#[test]
fn root_veth_and_tap_have_exactly_the_filters_of_the_interface_contract() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 1, 4);
        let record = host.setup(&planned).unwrap();
        for (from, to) in [("eth0", "tap0"), ("tap0", "eth0")] {
            let shown = inside(&record, "tc", &["filter", "show", "dev", from, "ingress"]);
            for part in [
                "protocol all pref 1 u32",
                "terminal flowid",
                "match 00000000/00000000 at 0",
                &format!("mirred (Egress Redirect to device {to}) stolen"),
            ] {
                assert!(shown.contains(part), "{part:?} is not in {shown}");
            }
            assert_eq!(shown.matches("mirred").count(), 1, "{shown}");
        }
        let tap = inside(&record, "ip", &["-d", "-j", "link", "show", "dev", "tap0"]);
        let tap: Value = serde_json::from_str(&tap).unwrap();
        let data = &tap[0]["linkinfo"]["info_data"];
        assert_eq!(
            (&tap[0]["mtu"], &tap[0]["txqlen"]),
            (&1450.into(), &1000.into())
        );
        assert_eq!((&data["type"], &data["pi"]), (&"tap".into(), &false.into()));
        assert_eq!(
            (&data["vnet_hdr"], &data["multi_queue"], &data["persist"]),
            (&true.into(), &true.into(), &true.into())
        );
        let links = inside(&record, "ip", &["-o", "link", "show", "up"]);
        assert_eq!(
            links.lines().count(),
            3,
            "lo, eth0 and tap0 are up: {links}"
        );
    });
}

#[test]
fn root_lists_of_every_version_are_added_and_deleted() {
    on_a_host(|host| {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let list = list_of(version, json!([host.bridge(), {"type": "tuning"}]));
            let planned = planned(&list, 1, 1);
            let record = host.setup(&planned).unwrap();
            let address = record.nics[0].address.unwrap();
            assert_eq!(
                (address.prefix, address.gateway),
                (16, Some([10, 77, 0, 1].into()))
            );
            assert_eq!(host.leases(), [address.ip.to_string()]);
            teardown(&host.plugins, &record).unwrap();
            host.assert_clean(&record);
        }
    });
}

#[test]
fn root_teardown_may_be_done_twice_and_by_the_plan_alone() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 2, 1);
        host.setup(&planned).unwrap();
        // As after a kill: what the setup returned was never stored.
        for _ in 0..2 {
            teardown(&host.plugins, &planned).unwrap();
            host.assert_clean(&planned);
        }
    });
}

#[test]
fn root_a_lost_network_is_rebuilt_with_the_same_addresses() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 2, 2);
        let before = host.setup(&planned).unwrap();
        assert!(is_intact(&before).unwrap());
        // A reboot takes the namespace; the leases on disk stay. Another VM moves host-local on.
        netns::delete(&before.netns).unwrap();
        fs::write(&before.netns, "").unwrap();
        assert!(!is_intact(&before).unwrap());
        quiesce(&before).unwrap();
        assert!(wake(&before).is_err());
        let other = host.setup(&planned_other(&before)).unwrap();
        let after = rebuild(&host.plugins, &before).unwrap();
        for (old, new) in before.nics.iter().zip(&after.nics) {
            assert_eq!((old.mac, old.address), (new.mac, new.address));
        }
        assert!(is_intact(&after).unwrap());
        assert_eq!(host.leases().len(), 3);
        Guest::of(&after, 0).assert_connected();
        Guest::of(&after, 1).assert_connected();
        for record in [&after, &other] {
            teardown(&host.plugins, record).unwrap();
        }
        host.assert_clean(&after);
    });
}

fn planned_other(like: &NetworkRecord) -> NetworkRecord {
    let list = Conflist::parse(&like.conflist, Path::new("test")).unwrap();
    planned(&list, 1, 1)
}

#[test]
fn root_any_missing_part_makes_a_network_not_intact_and_a_rebuild_mends_it() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 1, 2);
        let mut record = host.setup(&planned).unwrap();
        for (program, damage) in [
            ("tc", "filter del dev eth0 ingress"),
            ("tc", "filter del dev tap0 ingress"),
            ("tc", "qdisc del dev eth0 ingress"),
            ("ip", "link del tap0"),
            ("ip", "link del eth0"),
            ("ip", "link set eth0 mtu 1400"),
            ("ip", "link set tap0 down"),
            ("ip", "link set eth0 address 02:00:00:00:00:77"),
        ] {
            assert!(is_intact(&record).unwrap(), "before {damage}");
            inside(&record, program, &damage.split(' ').collect::<Vec<_>>());
            assert!(!is_intact(&record).unwrap(), "after {damage}");
            let again = rebuild(&host.plugins, &record).unwrap();
            assert_eq!(again.nics[0].mac, record.nics[0].mac, "{damage}");
            assert_eq!(again.nics[0].address, record.nics[0].address, "{damage}");
            record = again;
        }
        teardown(&host.plugins, &record).unwrap();
        host.assert_clean(&record);
    });
}

#[test]
fn root_a_plugin_that_ignores_the_wanted_mac_is_overruled() {
    on_a_host(|host| {
        let deaf = format!(
            "CNI_ARGS=\"${{CNI_ARGS%;MAC=*}}\"\nsed 's/\"deaf\"/\"bridge\"/' | {REAL_PLUGINS}/bridge"
        );
        host.fake("deaf", &deaf);
        let mut bridge = host.bridge();
        bridge["type"] = "deaf".into();
        let planned = planned(&list(json!([bridge])), 1, 1);
        let before = host.setup(&planned).unwrap();
        netns::delete(&before.netns).unwrap();
        let after = rebuild(&host.plugins, &before).unwrap();
        assert_eq!(after.nics[0].mac, before.nics[0].mac);
        assert!(is_intact(&after).unwrap(), "the veth itself has the MAC");
        Guest::of(&after, 0).assert_connected();
    });
}

#[test]
fn root_a_network_without_address_management_leaves_the_guest_to_dhcp() {
    on_a_host(|host| {
        let bridge = json!({"type": "bridge", "bridge": "cni-test"});
        let planned = planned(&list(json!([bridge])), 1, 1);
        let record = host.setup(&planned).unwrap();
        assert_eq!(record.nics[0].address, None);
        assert_eq!(record.nics[0].mtu, 1500);
        let again = rebuild(&host.plugins, &record).unwrap();
        assert_eq!(again.nics[0].mac, record.nics[0].mac);
        teardown(&host.plugins, &again).unwrap();
        host.assert_clean(&again);
    });
}

#[test]
fn root_plugins_that_need_the_result_to_delete_leave_no_firewall_rule() {
    on_a_host(|host| {
        let works = Command::new("iptables-save").output();
        if !works.is_ok_and(|out| out.status.success()) {
            println!("SKIPPED: iptables does not work here");
            return;
        }
        let firewall = json!({"type": "firewall", "backend": "iptables"});
        let planned = planned(&list(json!([host.bridge(), firewall])), 1, 1);
        let record = host.setup(&planned).unwrap();
        let ip = record.nics[0].address.unwrap().ip.to_string();
        assert!(run("iptables-save", &[]).contains(&ip));
        teardown(&host.plugins, &record).unwrap();
        assert!(!run("iptables-save", &[]).contains(&ip));
        host.assert_clean(&record);
    });
}

/// The sample of the product's README, to the letter: one plugin, no list, NAT, usual lease folder.
const README_SAMPLE: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "cocoon",
  "type": "bridge",
  "bridge": "cni0",
  "isGateway": true,
  "ipMasq": true,
  "ipam": {
    "type": "host-local",
    "subnet": "10.22.0.0/16",
    "routes": [{ "dst": "0.0.0.0/0" }]
  }
}"#;

#[test]
fn root_the_sample_of_the_readme_works_and_leaves_no_rule() {
    on_a_host(|host| {
        let works = Command::new("iptables-save").output();
        if !works.is_ok_and(|out| out.status.success()) {
            println!("SKIPPED: iptables does not work here");
            return;
        }
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        nix::mount::mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), flags, none).unwrap();
        let conf_dir = host.dir.path().join("net.d");
        fs::create_dir(&conf_dir).unwrap();
        fs::write(conf_dir.join("10-cocoon.conf"), README_SAMPLE).unwrap();
        let planned = planned(&Conflist::find(&conf_dir).unwrap(), 1, 1);
        let record = host.setup(&planned).unwrap();
        let address = record.nics[0].address.unwrap();
        assert_eq!(address.gateway, Some([10, 22, 0, 1].into()));
        let vm = record.vm.to_string();
        assert!(run("iptables-save", &["-t", "nat"]).contains(&vm));
        teardown(&host.plugins, &record).unwrap();
        assert!(!run("iptables-save", &["-t", "nat"]).contains(&vm));
        let lease = format!("/var/lib/cni/networks/cocoon/{}", address.ip);
        assert!(!Path::new(&lease).exists());
    });
}

#[test]
fn root_two_nics_with_nat_on_one_network_leave_no_rule() {
    on_a_host(|host| {
        let works = Command::new("iptables-save").output();
        if !works.is_ok_and(|out| out.status.success()) {
            println!("SKIPPED: iptables does not work here");
            return;
        }
        let mut bridge = host.bridge();
        bridge["ipMasq"] = json!(true);
        let record = host.setup(&planned(&list(json!([bridge])), 2, 1)).unwrap();
        let vm = record.vm.to_string();
        assert!(run("iptables-save", &["-t", "nat"]).contains(&vm));
        teardown(&host.plugins, &record).unwrap();
        let rules = run("iptables-save", &["-t", "nat"]);
        assert!(!rules.contains(&vm) && !rules.contains("CNI-"), "{rules}");
        host.assert_clean(&record);
    });
}

#[test]
fn root_many_networks_are_made_at_once() {
    on_a_host(|host| {
        let list = list(json!([host.bridge()]));
        let plans: Vec<_> = (0..8).map(|_| planned(&list, 1, 2)).collect();
        let records: Vec<_> = std::thread::scope(|scope| {
            let setups: Vec<_> = plans
                .iter()
                .map(|p| scope.spawn(|| host.setup(p)))
                .collect();
            setups
                .into_iter()
                .map(|s| s.join().unwrap().unwrap())
                .collect()
        });
        let mut ips: Vec<_> = records
            .iter()
            .map(|r| r.nics[0].address.unwrap().ip)
            .collect();
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), 8);
        for record in &records {
            assert!(is_intact(record).unwrap());
            teardown(&host.plugins, record).unwrap();
        }
        host.assert_clean(&records[0]);
    });
}

/// Prints cocoon's own share of a setup, for the budget of `vm run`, and fails where it waits for
/// something: a busy machine with a debug build has needed 20 ms.
#[test]
fn root_a_setup_takes_little_more_than_its_plugins() {
    on_a_host(|host| {
        let clock = host.dir.path().join("clock");
        // The plugin's own time, between two readings of the clock in a wrapper around it.
        let timed = format!(
            "exec 3>>{c}; date +%s%N >&3\n\
             sed 's/\"timed\"/\"bridge\"/' | {REAL_PLUGINS}/bridge; s=$?\n\
             date +%s%N >&3; exit $s",
            c = clock.display()
        );
        host.fake("timed", &timed);
        let mut bridge = host.bridge();
        bridge["type"] = "timed".into();
        let list = list(json!([bridge]));
        let mut own = Vec::new();
        for _ in 0..10 {
            let planned = planned(&list, 1, 2);
            let _ = fs::remove_file(&clock);
            let began = Instant::now();
            let record = host.setup(&planned).unwrap();
            let whole = began.elapsed();
            let stamps = fs::read_to_string(&clock).unwrap();
            let stamps: Vec<u64> = stamps.lines().map(|l| l.parse().unwrap()).collect();
            own.push((whole - Duration::from_nanos(stamps[1] - stamps[0]), whole));
            teardown(&host.plugins, &record).unwrap();
        }
        own.sort();
        let (min, median, max) = (own[0].0, own[5].0, own[9].0);
        println!(
            "one NIC beyond its plugin, with a shell's start: min {min:?}, median {median:?}, max {max:?}; whole {:?}",
            own[5].1
        );
        assert!(median < Duration::from_millis(250), "{median:?}");
    });
}
