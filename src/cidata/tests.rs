//! What stands in the files, and that the volume holds them.

use std::io::{Cursor, Read};

use fatfs::{FatType, FileSystem, FsOptions};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::units::Mac;

pub(super) const ID: &str = "00000000000000ab";

pub(super) fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

pub(super) fn nic(last: u8, address: Option<([u8; 4], u8, Option<[u8; 4]>)>) -> Nic {
    Nic {
        mac: Mac::new([2, 0, 0, 0, 0, last]),
        address: address.map(|(ip, prefix, gateway)| Address {
            ip: ip.into(),
            prefix,
            gateway: gateway.map(Into::into),
        }),
    }
}

/// Two with a way out each, the second one's outside of its network, one without, one that asks.
pub(super) fn all_kinds() -> Vec<Nic> {
    vec![
        nic(1, Some(([10, 22, 0, 5], 16, Some([10, 22, 0, 1])))),
        nic(2, Some(([10, 9, 0, 5], 32, Some([169, 254, 1, 1])))),
        nic(3, Some(([192, 168, 7, 9], 24, None))),
        nic(4, None),
    ]
}

pub(super) fn servers() -> [Ipv4Addr; 3] {
    [[8, 8, 8, 8], [1, 1, 1, 1], [9, 9, 9, 9]].map(Ipv4Addr::from)
}

pub(super) fn password() -> PasswordHash {
    PasswordHash::new("it's \"secret\": #1", *b"twelve bytes").unwrap()
}

/// The text of one file.
fn text(cidata: &Cidata<'_>, file: &str) -> String {
    let files = cidata.files().unwrap();
    let found = files.into_iter().find(|(name, _)| *name == file);
    found.unwrap_or_else(|| panic!("there is no {file}")).1
}

/// Names and texts of what is on a volume, by name.
fn on_volume(bytes: Vec<u8>) -> Vec<(String, String)> {
    let volume = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
    let entries = volume.root_dir().iter().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| {
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        })
        .collect();
    files.sort();
    files
}

fn user_data(cidata: &Cidata<'_>) -> Value {
    let text = text(cidata, "user-data");
    serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap()
}

fn network_config(cidata: &Cidata<'_>) -> Value {
    serde_json::from_str(&text(cidata, "network-config")).unwrap()
}

#[test]
fn without_nics_a_guest_is_told_its_name_and_nothing_of_networks() {
    let cidata = Cidata {
        instance_id: ID,
        hostname: &name("web-1"),
        is_copy: false,
        root_password: None,
        dns: &servers(),
        nics: &[],
    };
    let files = cidata.files().unwrap();
    assert_eq!(
        files,
        [
            (
                "meta-data",
                "{\n  \"instance-id\": \"00000000000000ab\",\n  \"local-hostname\": \"web-1\"\n}\n"
                    .into()
            ),
            (
                "user-data",
                "#cloud-config\n{\n  \"warnings\": {\n    \"dsid_missing_source\": false\n  }\n}\n"
                    .into()
            ),
        ]
    );
}

#[test]
fn a_copy_makes_a_machine_id_of_its_own_once() {
    let cidata = Cidata {
        instance_id: ID,
        hostname: &name("web-1"),
        is_copy: true,
        root_password: None,
        dns: &[],
        nics: &[],
    };
    let user = user_data(&cidata);
    let command = &user["bootcmd"][0];
    assert_eq!(
        (&command[0], &command[1]),
        (&json!("cloud-init-per"), &json!("instance"))
    );
}

#[test]
fn one_nic_is_told_in_both_forms() {
    let cidata = Cidata {
        instance_id: ID,
        hostname: &name("web-1"),
        is_copy: false,
        root_password: Some(&password()),
        dns: &servers()[..2],
        nics: &all_kinds()[..1],
    };
    assert_eq!(
        text(&cidata, "network-config"),
        r#"{
  "version": 2,
  "ethernets": {
    "00-id0": {
      "match": {
        "macaddress": "02:00:00:00:00:01"
      },
      "addresses": [
        "10.22.0.5/16"
      ],
      "routes": [
        {
          "to": "0.0.0.0/0",
          "via": "10.22.0.1",
          "metric": 100
        }
      ],
      "nameservers": {
        "addresses": [
          "8.8.8.8",
          "1.1.1.1"
        ]
      }
    }
  }
}
"#
    );
    assert_eq!(
        text(&cidata, "user-data"),
        r##"#cloud-config
{
  "warnings": {
    "dsid_missing_source": false
  },
  "chpasswd": {
    "expire": false,
    "users": [
      {
        "name": "root",
        "password": "HASH",
        "type": "hash"
      }
    ]
  },
  "ssh_pwauth": true,
  "disable_root": false,
  "write_files": [
    {
      "path": "/etc/systemd/network/15-cocoon-id0.network",
      "owner": "root:root",
      "permissions": "0644",
      "content": "[Match]\nMACAddress=02:00:00:00:00:01\n\n[Link]\nRequiredForOnline=yes\n\n[Network]\nAddress=10.22.0.5/16\nDNS=8.8.8.8\nDNS=1.1.1.1\n\n[Route]\nGateway=10.22.0.1\nMetric=100\n"
    }
  ]
}
"##
        .replace("HASH", password().as_str())
    );
}

#[test]
fn of_several_nics_no_two_default_routes_are_equal_and_the_first_leads() {
    let cidata = Cidata {
        instance_id: ID,
        hostname: &name("web-1"),
        is_copy: false,
        root_password: None,
        dns: &servers()[..1],
        nics: &all_kinds(),
    };
    let dns = json!({"addresses": ["8.8.8.8"]});
    assert_eq!(
        network_config(&cidata)["ethernets"],
        json!({
            "00-id0": {
                "match": {"macaddress": "02:00:00:00:00:01"},
                "addresses": ["10.22.0.5/16"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.22.0.1", "metric": 100}],
                "nameservers": dns,
            },
            "00-id1": {
                "match": {"macaddress": "02:00:00:00:00:02"},
                "optional": true,
                "addresses": ["10.9.0.5/32"],
                "routes": [{"to": "0.0.0.0/0", "via": "169.254.1.1", "metric": 101, "on-link": true}],
                "nameservers": dns,
            },
            "00-id2": {
                "match": {"macaddress": "02:00:00:00:00:03"},
                "optional": true,
                "addresses": ["192.168.7.9/24"],
                "nameservers": dns,
            },
            "00-id3": {
                "match": {"macaddress": "02:00:00:00:00:04"},
                "optional": true,
                "dhcp4": true,
                "dhcp4-overrides": {"route-metric": 103},
                "nameservers": dns,
            },
        })
    );
    let written = user_data(&cidata)["write_files"].take();
    let written: Vec<_> = written.as_array().unwrap().iter().collect();
    let head = |last: u8, required: &str| {
        format!(
            "[Match]\nMACAddress=02:00:00:00:00:0{last}\n\n[Link]\nRequiredForOnline={required}\n\n[Network]\n"
        )
    };
    for (index, (file, content)) in written
        .iter()
        .zip([
            head(1, "yes")
                + "Address=10.22.0.5/16\nDNS=8.8.8.8\n\n[Route]\nGateway=10.22.0.1\nMetric=100\n",
            head(2, "no")
                + "Address=10.9.0.5/32\nDNS=8.8.8.8\n\n\
                   [Route]\nGateway=169.254.1.1\nMetric=101\nGatewayOnLink=yes\n",
            head(3, "no") + "Address=192.168.7.9/24\nDNS=8.8.8.8\n",
            head(4, "no") + "DHCP=ipv4\nDNS=8.8.8.8\n\n[DHCPv4]\nRouteMetric=103\n",
        ])
        .enumerate()
    {
        let path = format!("/etc/systemd/network/15-cocoon-id{index}.network");
        assert_eq!(file["path"], path);
        assert_eq!(file["content"], content, "{path}");
    }
    assert_eq!(written.len(), 4);
}

#[test]
fn nics_that_all_ask_by_dhcp_are_all_configured() {
    let cidata = Cidata {
        instance_id: ID,
        hostname: &name("web-1"),
        is_copy: false,
        root_password: None,
        dns: &[],
        nics: &[nic(1, None), nic(2, None)],
    };
    assert_eq!(cidata.files().unwrap().len(), 3);
    let files = user_data(&cidata)["write_files"].take();
    assert_eq!(files.as_array().map(Vec::len), Some(2));
}

#[test]
fn a_name_with_dots_is_not_cut_at_the_first() {
    let of = |text| {
        let hostname = name(text);
        let cidata = Cidata {
            instance_id: ID,
            hostname: &hostname,
            is_copy: false,
            root_password: None,
            dns: &[],
            nics: &[],
        };
        user_data(&cidata)["prefer_fqdn_over_hostname"].take()
    };
    assert_eq!(of("web.example"), Value::Bool(true));
    assert_eq!(of("web"), Value::Null);
}

#[test]
fn the_volume_is_a_fat12_called_cidata_whose_number_is_of_the_instance() {
    let hostname = name("web-1");
    let make = |instance_id| {
        let cidata = Cidata {
            instance_id,
            hostname: &hostname,
            is_copy: false,
            root_password: Some(&password()),
            dns: &servers(),
            nics: &all_kinds(),
        };
        cidata.volume().unwrap()
    };
    let bytes = make(ID);
    assert_eq!(bytes.len(), 1_048_576);
    assert_eq!(bytes, make(ID), "the same volume twice");
    let open = |bytes| FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
    let (volume, other) = (open(bytes), open(make("00000000000000ac")));
    assert_eq!(volume.fat_type(), FatType::Fat12);
    assert_eq!(volume.volume_label(), "CIDATA");
    assert_eq!(
        volume.read_volume_label_from_root_dir().unwrap().as_deref(),
        Some("CIDATA")
    );
    assert_ne!(volume.volume_id(), other.volume_id());
    assert!(!volume.read_status_flags().unwrap().dirty());
}

#[test]
fn a_thousand_nics_fit_and_what_does_not_is_refused() {
    let nics = |count| vec![all_kinds()[1]; count];
    let volume = |nics: &[Nic]| {
        let cidata = Cidata {
            instance_id: ID,
            hostname: &name("web-1"),
            is_copy: false,
            root_password: None,
            dns: &servers()[..2],
            nics,
        };
        cidata.volume()
    };
    assert!(volume(&nics(1000)).is_ok());
    let error = volume(&nics(2000)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write network-config to the cidata volume"
    );
}

prop_compose! {
    fn any_nic()(
        mac: [u8; 6],
        ip: [u8; 4],
        prefix in 1u8..=32,
        gateway: Option<[u8; 4]>,
        is_static: bool,
    ) -> Nic {
        let address = Address { ip: ip.into(), prefix, gateway: gateway.map(Into::into) };
        Nic { mac: Mac::new(mac), address: is_static.then_some(address) }
    }
}

proptest! {
    // Each one is a volume to make and to read.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn names_and_addresses_come_back_from_the_volume_as_they_went(
        hostname in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}",
        instance_id in "[a-f0-9]{16}",
        dns: Vec<[u8; 4]>,
        nics in prop::collection::vec(any_nic(), 0..8),
    ) {
        let hostname = name(&hostname);
        let dns: Vec<_> = dns.into_iter().map(Ipv4Addr::from).collect();
        let cidata = Cidata {
            instance_id: &instance_id,
            hostname: &hostname,
            is_copy: false,
            root_password: None,
            dns: &dns,
            nics: &nics,
        };
        let mut files: Vec<_> = cidata
            .files()
            .unwrap()
            .into_iter()
            .map(|(name, text)| (name.to_owned(), text))
            .collect();
        files.sort();
        prop_assert_eq!(on_volume(cidata.volume().unwrap()), files);

        let meta: Value = serde_json::from_str(&text(&cidata, "meta-data")).unwrap();
        prop_assert_eq!(&meta["instance-id"], &instance_id);
        prop_assert_eq!(&meta["local-hostname"], hostname.as_str());
        if nics.iter().any(|nic| nic.address.is_some()) {
            let config = network_config(&cidata);
            for (index, nic) in nics.iter().enumerate() {
                let told = &config["ethernets"][format!("00-id{index}")];
                prop_assert_eq!(&told["match"]["macaddress"], &nic.mac.to_string());
                let Some(address) = nic.address else {
                    prop_assert_eq!(&told["dhcp4"], true);
                    continue;
                };
                prop_assert_eq!(&told["addresses"][0], &format!("{}/{}", address.ip, address.prefix));
                let via = address.gateway.map(|ip| ip.to_string());
                prop_assert_eq!(told["routes"][0]["via"].as_str(), via.as_deref());
            }
        }
    }
}
