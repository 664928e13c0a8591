//! The runtime's side of CNI: the plugins of a list, one after the other, each with the result of
//! the one before it (CNI specification, section 3).
//!
//! Invariant: DEL runs every plugin, whatever the others said; a plugin whose ADD never ran must
//! accept its DEL (specification, section 4, "DEL").

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::conflist::{Conflist, Plugin};
use super::plan::NicRecord;
use super::plugin::{self, PluginError, Run, Verb};
use super::result::{self, AddResult};
use crate::units::VmId;

/// Time for one run of a plugin. The slowest, DHCP, gives its servers some 30 s.
pub const PLUGIN_TIMEOUT: Duration = Duration::from_secs(120);

/// Where the plugins are, and how long one may take.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// The folder of their programs.
    pub bin_dir: PathBuf,
    /// Time for one run of one plugin; usually [`PLUGIN_TIMEOUT`].
    pub timeout: Duration,
}

/// One interface of one VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment<'a> {
    /// The VM.
    pub(super) vm: VmId,
    /// Its namespace; empty where it no longer exists.
    pub(super) netns: &'a Path,
    /// The interface.
    pub(super) ifname: &'a str,
}

impl Plugins {
    /// Plugins in `bin_dir`, with the usual time limit.
    pub fn new(bin_dir: &Path) -> Self {
        Self {
            bin_dir: bin_dir.to_owned(),
            timeout: PLUGIN_TIMEOUT,
        }
    }

    /// Checks that the programs of all plugins of `list`, and of their address managers, exist.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self, list: &Conflist) -> Result<(), PluginError> {
        for each in list.plugins() {
            plugin::find(&each.kind, &self.bin_dir)?;
            let ipam = each.config.get("ipam").and_then(|ipam| ipam.get("type"));
            if let Some(ipam) = ipam.and_then(Value::as_str).filter(|kind| !kind.is_empty()) {
                plugin::find(ipam, &self.bin_dir)?;
            }
        }
        Ok(())
    }

    /// Programs that `list` needs and the folder does not have, or has not as programs; each once.
    pub fn missing(&self, list: &Conflist) -> Vec<String> {
        let mut missing: Vec<String> = Vec::new();
        for each in list.plugins() {
            let ipam = each.config.get("ipam").and_then(|ipam| ipam.get("type"));
            let ipam = ipam.and_then(Value::as_str).filter(|kind| !kind.is_empty());
            for kind in [Some(each.kind.as_str()), ipam].into_iter().flatten() {
                let program = plugin::find(kind, &self.bin_dir).ok();
                let runs = program
                    .and_then(|program| program.metadata().ok())
                    .is_some_and(|file| file.permissions().mode() & 0o111 != 0);
                if !runs && !missing.iter().any(|known| known == kind) {
                    missing.push(kind.to_owned());
                }
            }
        }
        missing
    }

    /// Adds one interface. Asks for the address and MAC of `wanted`, which a plugin may ignore: the
    /// caller compares. After each plugin its result is in `so_far`, so a failed ADD can be undone
    /// with what is known.
    ///
    /// # Errors
    /// The first plugin that failed; those before it have done their part.
    pub(super) fn add(
        &self,
        list: &Conflist,
        to: Attachment<'_>,
        wanted: Option<&NicRecord>,
        so_far: &mut Option<AddResult>,
    ) -> Result<(), PluginError> {
        let args = wanted.map(cni_args).unwrap_or_default();
        for each in list.plugins() {
            let previous = so_far.as_ref().map(|result| &result.json);
            let config = config(list, each, previous, wanted);
            let answer = self.run(Verb::Add, each, to, &args, &config)?;
            let parsed = result::parse(&answer, list.version());
            *so_far = Some(parsed.map_err(|source| PluginError::Result {
                plugin: each.kind.clone(),
                ifname: to.ifname.to_owned(),
                source,
            })?);
        }
        Ok(())
    }

    /// Deletes one interface, last plugin first. `result` is that of ADD, as far as it is known.
    /// Returns every error; none means that everything is undone.
    pub(super) fn del(
        &self,
        list: &Conflist,
        from: Attachment<'_>,
        result: Option<&Map<String, Value>>,
    ) -> Vec<PluginError> {
        let previous = result.filter(|_| list.del_takes_result());
        let del = |each: &Plugin| {
            let config = config(list, each, previous, None);
            self.run(Verb::Del, each, from, "", &config).err()
        };
        list.plugins().iter().rev().filter_map(del).collect()
    }

    fn run(
        &self,
        verb: Verb,
        plugin: &Plugin,
        at: Attachment<'_>,
        args: &str,
        config: &Value,
    ) -> Result<Vec<u8>, PluginError> {
        Run {
            plugin: &plugin.kind,
            bin_dir: &self.bin_dir,
            verb,
            container_id: &at.vm.to_string(),
            netns: at.netns,
            ifname: at.ifname,
            args,
            config: config.to_string().as_bytes(),
            limit: self.timeout,
        }
        .answer()
    }
}

/// What `plugin` reads on stdin: its part of the list, with what the runtime adds (specification,
/// section 3, "Deriving request configuration from plugin configuration").
fn config(
    list: &Conflist,
    plugin: &Plugin,
    previous: Option<&Map<String, Value>>,
    wanted: Option<&NicRecord>,
) -> Value {
    let mut config = plugin.config.clone();
    config.insert("cniVersion".to_owned(), Value::from(list.version()));
    config.insert("name".to_owned(), Value::from(list.name()));
    let capabilities = config.remove("capabilities");
    if let (Some(Value::Object(declared)), Some(wanted)) = (capabilities, wanted) {
        let runtime = runtime_config(&declared, wanted);
        if !runtime.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), Value::Object(previous.clone()));
    }
    Value::Object(config)
}

/// The part of `wanted` that a plugin declares it can be told (CNI conventions, "mac" and "ips").
fn runtime_config(declared: &Map<String, Value>, wanted: &NicRecord) -> Map<String, Value> {
    let can = |capability: &str| declared.get(capability) == Some(&Value::Bool(true));
    let mut runtime = Map::new();
    if can("mac") {
        runtime.insert("mac".to_owned(), json!(wanted.mac));
    }
    if let Some(address) = wanted.address.filter(|_| can("ips")) {
        let ip = format!("{}/{}", address.ip, address.prefix);
        runtime.insert("ips".to_owned(), json!([ip]));
    }
    runtime
}

/// The same for plugins that read `CNI_ARGS`, as host-local and bridge do. The MAC is asked for
/// too, so that what a plugin configures by it (anti-spoofing) is right from the start.
fn cni_args(wanted: &NicRecord) -> String {
    let mut args = "IgnoreUnknown=1".to_owned();
    if let Some(address) = wanted.address {
        args.push_str(&format!(";IP={}", address.ip));
    }
    args.push_str(&format!(";MAC={}", wanted.mac));
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::plan::Address;

    fn list(json: &Value) -> Conflist {
        Conflist::parse(&json.to_string(), Path::new("test")).unwrap()
    }

    fn wanted() -> NicRecord {
        NicRecord {
            index: 0,
            ifname: "eth0".into(),
            tap: "tap0".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500,
            queue_pairs: 1,
            address: Some(Address {
                ip: "10.0.0.2".parse().unwrap(),
                prefix: 24,
                gateway: None,
            }),
            cni_result: "{}".into(),
        }
    }

    #[test]
    fn a_plugin_is_told_only_what_it_declares() {
        for (capabilities, expected) in [
            (json!({}), None),
            (json!({"portMappings": true, "mac": false}), None),
            (
                json!({"mac": true}),
                Some(json!({"mac": "02:00:00:00:00:01"})),
            ),
            (json!({"ips": true}), Some(json!({"ips": ["10.0.0.2/24"]}))),
        ] {
            let list = list(&json!({"cniVersion": "1.0.0", "name": "n",
                "plugins": [{"type": "a", "capabilities": capabilities, "x": 1}]}));
            let told = config(&list, &list.plugins()[0], None, Some(&wanted()));
            assert_eq!(told.get("runtimeConfig"), expected.as_ref());
            assert_eq!((&told["name"], &told["x"]), (&json!("n"), &json!(1)));
            assert!(told.get("capabilities").is_none() && told.get("prevResult").is_none());
        }
    }

    #[test]
    fn an_address_is_asked_for_only_where_there_is_one() {
        let mut nic = wanted();
        assert_eq!(
            cni_args(&nic),
            "IgnoreUnknown=1;IP=10.0.0.2;MAC=02:00:00:00:00:01"
        );
        nic.address = None;
        assert_eq!(cni_args(&nic), "IgnoreUnknown=1;MAC=02:00:00:00:00:01");
    }

    #[test]
    fn a_missing_address_manager_is_found_before_anything_runs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bridge"), "").unwrap();
        let list = list(&json!({"cniVersion": "1.0.0", "name": "n",
            "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}));
        let error = Plugins::new(dir.path()).check(&list).unwrap_err();
        assert!(matches!(error, PluginError::Missing { plugin, .. } if plugin == "host-local"));
    }
}
