//! Networks that fail half way: nothing stays, and everything is told.

use super::*;
use crate::sys::netns;

/// Fails its ADD after the bridge has done its part; accepts DEL.
const FAILS_ADD: &str = r#"[ "$CNI_COMMAND" = DEL ] && exit 0
echo '{"cniVersion":"1.0.0","code":7,"msg":"no room","details":"sorry"}'; exit 1"#;

/// Passes on what came before it: `prevResult`, which stands before `type` in the configuration.
const PASSES: &str =
    r#"[ "$CNI_COMMAND" = DEL ] || sed 's/.*"prevResult"://; s/,"type":"last".*$//'"#;

/// The whole story of an error.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[test]
fn root_a_failed_add_is_deleted_in_reverse_and_leaves_nothing() {
    on_a_host(|host| {
        host.fake("first", "[ $CNI_COMMAND = DEL ] || echo '{}'");
        host.fake("last", FAILS_ADD);
        let list = list(json!([{"type": "first"}, host.bridge(), {"type": "last"}]));
        let planned = planned(&list, 1, 1);
        let error = host.setup(&planned).unwrap_err();
        assert_eq!(
            told(&error),
            format!(
                "cannot set up the network of VM {}: \
                 the CNI plugin last failed ADD of eth0: no room (sorry), CNI error code 7",
                planned.vm
            )
        );
        assert!(error.undo.is_empty());
        let netns = planned.netns.display();
        assert_eq!(
            host.calls(),
            [
                format!("first ADD eth0 [{netns}] []"),
                format!("last ADD eth0 [{netns}] []"),
                format!("last DEL eth0 [{netns}] []"),
                format!("first DEL eth0 [{netns}] []"),
            ]
        );
        host.assert_clean(&planned);
    });
}

#[test]
fn root_the_nics_before_a_failed_one_are_undone_too() {
    on_a_host(|host| {
        let only_second = format!("[ $CNI_COMMAND$CNI_IFNAME = ADDeth0 ] && {{ {PASSES}; exit; }}");
        host.fake("last", &format!("{only_second}\n{FAILS_ADD}"));
        let planned = planned(&list(json!([host.bridge(), {"type": "last"}])), 3, 1);
        let error = told(&host.setup(&planned).unwrap_err());
        assert!(
            error.contains("last failed ADD of eth1: no room"),
            "{error}"
        );
        let asked: Vec<_> = host.calls().iter().map(|c| c[..13].to_owned()).collect();
        assert_eq!(
            asked,
            [
                "last ADD eth0",
                "last ADD eth1",
                "last DEL eth1",
                "last DEL eth0"
            ]
        );
        host.assert_clean(&planned);
    });
}

#[test]
fn root_a_record_that_cannot_be_saved_undoes_its_nic() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 2, 1);
        let mut second_fails = |record: &NetworkRecord| match record.nics.len() {
            2 => Err("the database is gone".into()),
            _ => Ok(()),
        };
        let error = told(&setup(&host.plugins, &planned, &mut second_fails).unwrap_err());
        assert!(
            error.ends_with("cannot save the record of eth1: the database is gone"),
            "{error}"
        );
        host.assert_clean(&planned);
    });
}

#[test]
fn root_what_the_undo_cannot_do_is_told_and_the_rest_is_done() {
    on_a_host(|host| {
        host.fake("last", r#"echo '{"code":9,"msg":"never"}'; exit 1"#);
        let planned = planned(&list(json!([host.bridge(), {"type": "last"}])), 1, 1);
        let error = host.setup(&planned).unwrap_err();
        assert_eq!(error.undo.len(), 1);
        let said = error.to_string();
        assert!(said.contains("could be undone"), "{said}");
        assert!(said.contains("last failed DEL of eth0: never"), "{said}");
        host.assert_clean(&planned);
        let error = teardown(&host.plugins, &planned).unwrap_err();
        assert_eq!(error.errors.len(), 1);
        assert!(error.to_string().contains("never"), "{error}");
    });
}

#[test]
fn root_a_missing_plugin_is_named_before_anything_is_made() {
    on_a_host(|host| {
        host.fake("first", "exit 0");
        let planned = planned(&list(json!([{"type": "first"}, {"type": "calico"}])), 1, 1);
        let error = told(&host.setup(&planned).unwrap_err());
        let dir = host.plugins.bin_dir.display();
        assert!(
            error.ends_with(&format!("the CNI plugin calico is not in {dir}")),
            "{error}"
        );
        assert!(host.calls().is_empty());
        assert!(!planned.netns.exists());
    });
}

#[test]
fn root_a_plugin_that_hangs_is_killed_and_undone() {
    on_a_host(|host| {
        host.fake("slow", "[ $CNI_COMMAND = DEL ] || exec sleep 61");
        let plugins = Plugins {
            timeout: Duration::from_secs(5),
            ..host.plugins.clone()
        };
        let planned = planned(&list(json!([host.bridge(), {"type": "slow"}])), 1, 1);
        let error = setup(&plugins, &planned, &mut |_| Ok(())).unwrap_err();
        assert!(told(&error).contains("slow did not finish ADD of eth0 in 5 s"));
        assert!(error.undo.is_empty(), "{error}");
        host.assert_clean(&planned);
    });
}

#[test]
fn root_an_interface_that_no_plugin_made_is_missed_and_everything_undone() {
    on_a_host(|host| {
        host.fake("liar", r#"echo '{"cniVersion":"1.0.0"}'"#);
        let planned = planned(&list(json!([{"type": "liar"}])), 1, 1);
        let error = told(&host.setup(&planned).unwrap_err());
        assert!(error.contains("there is no eth0 in"), "{error}");
        assert!(!planned.netns.exists());
        assert_eq!(host.calls().len(), 2);
    });
}

#[test]
fn root_answers_that_are_no_results_are_refused_and_undone() {
    on_a_host(|host| {
        for answer in [
            "",
            "[]",
            r#"{"cniVersion":"7.0.0"}"#,
            r#"{"ips":[{"address":"10.0.0.1"}]}"#,
        ] {
            host.fake(
                "liar",
                &format!("[ $CNI_COMMAND = DEL ] || echo '{answer}'"),
            );
            let planned = planned(&list(json!([host.bridge(), {"type": "liar"}])), 1, 1);
            let error = told(&host.setup(&planned).unwrap_err());
            assert!(
                error.contains("cannot use what the CNI plugin liar did for eth0"),
                "{error}"
            );
            host.assert_clean(&planned);
        }
    });
}

#[test]
fn root_a_rebuild_that_gets_another_address_is_refused_and_undone() {
    on_a_host(|host| {
        let count = host.dir.path().join("count");
        host.fake(
            "counting",
            &format!(
                "[ $CNI_COMMAND = DEL ] && exit 0\necho x >> {c}\n\
                 echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.77.0.'$(wc -l < {c})9'/16\"}}]}}'",
                c = count.display()
            ),
        );
        let mut bridge = host.bridge();
        bridge["isGateway"] = false.into();
        bridge["ipam"] = json!({"type": "counting"});
        let planned = planned(&list(json!([bridge])), 1, 1);
        let record = host.setup(&planned).unwrap();
        assert_eq!(record.nics[0].address.unwrap().ip.to_string(), "10.77.0.19");
        let error = told(&rebuild(&host.plugins, &record).unwrap_err());
        assert!(
            error.ends_with(
                "CNI gave eth0 the address 10.77.0.29 instead of 10.77.0.19, which the guest has"
            ),
            "{error}"
        );
        host.assert_clean(&record);
        let asked = format!("[IgnoreUnknown=1;IP=10.77.0.19;MAC={}]", record.nics[0].mac);
        assert!(host.calls().iter().any(|c| c.ends_with(&asked)));
    });
}

#[test]
fn root_a_lost_namespace_is_told_to_plugins_as_an_empty_one() {
    on_a_host(|host| {
        host.fake("last", PASSES);
        let planned = planned(&list(json!([host.bridge(), {"type": "last"}])), 1, 1);
        let record = host.setup(&planned).unwrap();
        netns::delete(&record.netns).unwrap();
        teardown(&host.plugins, &record).unwrap();
        assert_eq!(host.calls().last().unwrap(), "last DEL eth0 [] []");
        assert_eq!(host.leases(), [""; 0]);
    });
}

#[test]
fn root_what_a_killed_setup_left_does_not_hinder_the_next() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 1, 1);
        // Killed after all was made, with nothing but the plan on record.
        host.setup(&planned).unwrap();
        let record = host.setup(&planned).unwrap();
        assert_eq!(host.leases().len(), 1);
        teardown(&host.plugins, &record).unwrap();
        // Killed between the name and its mount.
        fs::write(&planned.netns, "").unwrap();
        let record = host.setup(&planned).unwrap();
        assert!(is_intact(&record).unwrap());
    });
}

#[test]
fn root_a_namespace_that_a_process_is_in_is_not_taken_away() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 1, 1);
        let record = host.setup(&planned).unwrap();
        let mut process = netns::run_in(&record.netns, || Command::new("sleep").arg("60").spawn())
            .unwrap()
            .unwrap();
        for attempt in [host.setup(&planned), rebuild(&host.plugins, &record)] {
            let error = told(&attempt.unwrap_err());
            let expected = format!("is in use by process {}", process.id());
            assert!(error.ends_with(&expected), "{error}");
        }
        assert!(is_intact(&record).unwrap());
        process.kill().unwrap();
        process.wait().unwrap();
    });
}

#[test]
fn root_a_broken_stored_list_loses_the_leases_but_not_the_namespace() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 1, 1);
        let mut record = host.setup(&planned).unwrap();
        record.conflist = "{".to_owned();
        let error = teardown(&host.plugins, &record).unwrap_err();
        assert!(
            error.to_string().contains("the stored CNI configuration"),
            "{error}"
        );
        assert!(!record.netns.exists());
    });
}
