//! What a CNI plugin answers to ADD (CNI specification, section 5, "Success").
//!
//! Only what the guest is told is taken out of it; the rest goes on to the next plugin as it came.
//! A plugin is not trusted with more than that: sizes are bounded before this module, addresses
//! are checked in it.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::conflist;
use super::plan::Address;

/// More addresses than an interface is given.
const MAX_ADDRESSES: usize = 64;

/// The success of one ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddResult {
    /// All of it, as the next plugin gets it.
    pub(super) json: Map<String, Value>,
    /// The first IPv4 address, if there is one.
    pub(super) address: Option<Address>,
}

/// Why an answer to ADD cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// It is not JSON, or its members have other types than the specification says.
    #[error("the answer is no CNI result")]
    Malformed(#[source] serde_json::Error),
    /// It is of another version.
    #[error("the answer is of CNI version {0:?}, which cocoon does not speak")]
    Version(String),
    /// An address that no guest can use.
    #[error("the answer has the address {0:?}, which no guest can use")]
    Address(String),
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    ips: Option<Vec<WireIp>>,
    routes: Option<Vec<WireRoute>>,
}

#[derive(Deserialize)]
struct WireIp {
    address: String,
    gateway: Option<String>,
}

#[derive(Deserialize)]
struct WireRoute {
    dst: String,
    gw: Option<String>,
}

/// Reads the answer `bytes` of a plugin that was spoken to in `version`.
///
/// # Errors
/// It is no result of a version that cocoon speaks, or holds an unusable IPv4 address.
pub(super) fn parse(bytes: &[u8], version: &str) -> Result<AddResult, ResultError> {
    let mut json: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(ResultError::Malformed)?;
    let wire: Wire = serde_json::from_slice(bytes).map_err(ResultError::Malformed)?;
    match &wire.version {
        Some(found) if !conflist::speaks(found) => {
            return Err(ResultError::Version(found.clone()));
        }
        Some(_) => {}
        // Some plugins leave the version out; then it is the one they were asked in.
        None => {
            json.insert("cniVersion".to_owned(), Value::from(version));
        }
    }
    let address = address(&wire)?;
    Ok(AddResult { json, address })
}

/// Every address in a result that was read before, IPv6 too.
pub(super) fn addresses(json: &Map<String, Value>) -> Vec<IpNet> {
    let ips = json.get("ips").and_then(Value::as_array);
    let texts = ips
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["address"].as_str());
    let parsed = texts.filter_map(|text| text.parse().ok());
    parsed.take(MAX_ADDRESSES).collect()
}

/// The first IPv4 address with its gateway, which may be named by the default route alone.
fn address(wire: &Wire) -> Result<Option<Address>, ResultError> {
    for ip in wire.ips.iter().flatten() {
        let unusable = || ResultError::Address(ip.address.clone());
        let IpNet::V4(net) = ip.address.parse().map_err(|_| unusable())? else {
            continue;
        };
        if !is_host(net.addr()) || net.prefix_len() == 0 {
            return Err(unusable());
        }
        let own = ip.gateway.as_deref().filter(|gateway| !gateway.is_empty());
        let gateway = match own {
            Some(text) => Some(gateway(text)?),
            None => default_route(wire)?,
        };
        return Ok(Some(Address {
            ip: net.addr(),
            prefix: net.prefix_len(),
            gateway,
        }));
    }
    Ok(None)
}

fn default_route(wire: &Wire) -> Result<Option<Ipv4Addr>, ResultError> {
    let default = |route: &&WireRoute| route.dst == "0.0.0.0/0";
    let route = wire.routes.iter().flatten().find(default);
    let hop = route.and_then(|route| route.gw.as_deref());
    hop.filter(|gw| !gw.is_empty()).map(gateway).transpose()
}

fn gateway(text: &str) -> Result<Ipv4Addr, ResultError> {
    text.parse()
        .ok()
        .filter(|ip| is_host(*ip))
        .ok_or_else(|| ResultError::Address(text.to_owned()))
}

/// Whether `ip` can be the address of a machine on a network.
fn is_host(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address_of(json: &str) -> Result<Option<Address>, String> {
        parse(json.as_bytes(), "1.0.0")
            .map(|result| result.address)
            .map_err(|error| error.to_string())
    }

    fn some(ip: &str, prefix: u8, gateway: Option<&str>) -> Result<Option<Address>, String> {
        Ok(Some(Address {
            ip: ip.parse().unwrap(),
            prefix,
            gateway: gateway.map(|g| g.parse().unwrap()),
        }))
    }

    #[test]
    fn the_first_ipv4_address_is_taken_from_results_of_every_version() {
        let ten = || some("10.0.0.2", 16, Some("10.0.0.1"));
        for (json, expected) in [
            (
                r#"{"cniVersion":"0.3.1","interfaces":[{"name":"eth0","mac":"x","sandbox":"/n"}],
                "ips":[{"version":"4","interface":0,"address":"10.0.0.2/16","gateway":"10.0.0.1"}],"dns":{}}"#,
                ten(),
            ),
            (
                r#"{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/16","gateway":"10.0.0.1"}],
                "interfaces":[{"name":"eth0","mtu":1450}],"routes":[{"dst":"0.0.0.0/0","mtu":9}]}"#,
                ten(),
            ),
            (
                r#"{"cniVersion":"1.0.0","ips":[{"address":"fd00::2/64","gateway":"fd00::1"},
                {"address":"10.0.0.2/16","gateway":"10.0.0.1"},{"address":"10.9.9.9/8"}]}"#,
                ten(),
            ),
            (
                r#"{"ips":[{"address":"10.0.0.2/32"}],
                "routes":[{"dst":"10.1.0.0/16","gw":"10.0.0.9"},{"dst":"0.0.0.0/0","gw":"169.254.1.1"}]}"#,
                some("10.0.0.2", 32, Some("169.254.1.1")),
            ),
            (
                r#"{"ips":[{"address":"10.0.0.2/24","gateway":""}]}"#,
                some("10.0.0.2", 24, None),
            ),
            (r#"{"cniVersion":"1.0.0"}"#, Ok(None)),
            (r#"{"ips":null,"routes":null,"interfaces":null}"#, Ok(None)),
            (r#"{"ips":[{"address":"fd00::2/64"}]}"#, Ok(None)),
        ] {
            assert_eq!(address_of(json), expected, "{json}");
        }
    }

    #[test]
    fn hostile_answers_are_refused() {
        let deep = format!("{}{}", r#"{"ips":"#, "[".repeat(100_000));
        for json in [
            "",
            "null",
            "[]",
            "{}{}",
            r#"{"ips":{}}"#,
            r#"{"ips":[1]}"#,
            r#"{"ips":[{}]}"#,
            r#"{"ips":[{"address":7}]}"#,
            r#"{"ips":[{"address":"10.0.0.2"}]}"#,
            r#"{"ips":[{"address":"10.0.0.2/33"}]}"#,
            r#"{"ips":[{"address":"10.0.0.2/0"}]}"#,
            r#"{"ips":[{"address":"0.0.0.0/8"}]}"#,
            r#"{"ips":[{"address":"127.0.0.1/8"}]}"#,
            r#"{"ips":[{"address":"224.0.0.1/8"}]}"#,
            r#"{"ips":[{"address":"10.0.0.2/8 init=/bin/sh"}]}"#,
            r#"{"ips":[{"address":"10.0.0.2/8","gateway":"::1"}]}"#,
            r#"{"ips":[{"address":"10.0.0.2/8","gateway":"0.0.0.0"}]}"#,
            r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/8"}}"#,
            r#"{"cniVersion":"9"}"#,
            deep.as_str(),
        ] {
            assert!(address_of(json).is_err(), "{}", &json[..json.len().min(80)]);
        }
    }

    #[test]
    fn an_answer_goes_on_whole_and_with_a_version() {
        let result = parse(br#"{"x":{"y":[1]}}"#, "0.4.0").unwrap();
        assert_eq!(result.json["x"]["y"][0], 1);
        assert_eq!(result.json["cniVersion"], "0.4.0");
    }

    #[test]
    fn all_addresses_of_a_stored_result_are_found_and_nonsense_passed_over() {
        let json =
            r#"{"ips":[{"address":"10.0.0.2/16"},7,{"address":"x"},{"address":"fd00::2/64"}]}"#;
        let found = addresses(&serde_json::from_str(json).unwrap());
        assert_eq!(
            found,
            ["10.0.0.2/16", "fd00::2/64"].map(|a| a.parse().unwrap())
        );
        for json in [r#"{}"#, r#"{"ips":1}"#, r#"{"ips":null}"#] {
            assert!(addresses(&serde_json::from_str(json).unwrap()).is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, "1.0.0");
        }

        #[test]
        fn an_address_is_taken_as_it_is_written(ip in 0x0100_0000u32..0x7e00_0000, prefix in 1u8..=32) {
            let ip = Ipv4Addr::from(ip);
            let json = format!(r#"{{"ips":[{{"address":"{ip}/{prefix}"}}]}}"#);
            let expected = Address { ip, prefix, gateway: None };
            prop_assert_eq!(address_of(&json), Ok(Some(expected)));
        }
    }
}
