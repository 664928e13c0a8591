//! CNI configuration lists (CNI specification, section 1): found in a folder, checked, and kept to
//! the byte, so that DEL can use what ADD used whatever becomes of the folder.
//!
//! ```text
//! <conf dir>/*.conflist        the first by name is used
//! <conf dir>/*.{conf,json}     where there is no list: the first plugin by name, as a list of one
//! ```
//!
//! Invariant: a [`Conflist`] has a name, a version that cocoon speaks, and plugins whose types are
//! bare file names.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Versions of the specification that cocoon speaks, oldest first. The first has the result format
/// of the second.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Largest configuration file; the largest in use have some ten KiB.
const MAX_BYTES: usize = 1024 * 1024;

/// More plugins than any list chains.
const MAX_PLUGINS: usize = 32;

/// A checked configuration list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflist {
    name: String,
    version: &'static str,
    plugins: Vec<Plugin>,
    json: String,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plugin {
    /// File name of its program.
    pub(super) kind: String,
    /// Its part of the list, as written.
    pub(super) config: Map<String, Value>,
}

/// Why there is no usable configuration list.
#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    /// The folder does not exist.
    #[error("the CNI configuration folder {} does not exist", .0.display())]
    NoFolder(PathBuf),
    /// The folder has no configuration.
    #[error("the CNI configuration folder {} has no *.conflist, *.conf or *.json file", .0.display())]
    NoneFound(PathBuf),
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What cannot be read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not JSON.
    #[error("{} is not JSON", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A file is JSON, but no CNI configuration.
    #[error("{} is no CNI configuration list: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Conflist {
    /// The list that the folder `dir` offers: its first `*.conflist` by name or, where there is
    /// none, its first single plugin (`*.conf`, `*.json`).
    ///
    /// # Errors
    /// The folder or every configuration is missing, or the chosen one is broken: a broken list is
    /// not passed over in favour of the next.
    pub fn find(dir: &Path) -> Result<Self, ConflistError> {
        let names = names_in(dir)?;
        let lists = names.iter().find(|n| has_extension(n, &["conflist"]));
        let single = || names.iter().find(|n| has_extension(n, &["conf", "json"]));
        let chosen = lists
            .or_else(single)
            .ok_or_else(|| ConflistError::NoneFound(dir.to_owned()))?;
        Self::parse(&read_capped(chosen)?, chosen)
    }

    /// Checks the list `json`; `origin` is named by errors. A single plugin becomes a list of one.
    ///
    /// # Errors
    /// It is not JSON, or breaks the specification.
    pub fn parse(json: &str, origin: &Path) -> Result<Self, ConflistError> {
        let value: Value = serde_json::from_str(json).map_err(|source| ConflistError::NotJson {
            path: origin.to_owned(),
            source,
        })?;
        check(value, json).map_err(|reason| ConflistError::Invalid {
            path: origin.to_owned(),
            reason,
        })
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The list as its file has it; of a single plugin, the list that was made of it.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The host's bridge on which its NICs stand, if it has a plugin that makes one.
    pub fn bridge(&self) -> Option<&str> {
        let mut plugins = self.plugins.iter();
        let bridge = plugins.find(|plugin| plugin.kind == "bridge")?;
        // The plugin's own default (cni.dev, "bridge plugin").
        Some(text(&bridge.config, "bridge").unwrap_or("cni0"))
    }

    /// Whether a plugin hides the guests' addresses behind the host's, for which it needs a firewall.
    pub fn masquerades(&self) -> bool {
        let asks = |plugin: &Plugin| plugin.config.get("ipMasq").and_then(Value::as_bool);
        self.plugins
            .iter()
            .any(|plugin| asks(plugin).unwrap_or(false))
    }

    /// Whether a plugin opens the host's firewall for each NIC.
    pub fn opens_firewall(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.kind == "firewall")
    }

    /// The version of the specification that its plugins are spoken to in.
    pub(super) fn version(&self) -> &'static str {
        self.version
    }

    /// The plugins in the order of ADD; at least one.
    pub(super) fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// Whether the list's version has `prevResult` in DEL (0.4.0 and later).
    pub(super) fn del_takes_result(&self) -> bool {
        !self.version.starts_with("0.3.")
    }
}

/// Whether cocoon understands results of this version.
pub(super) fn speaks(version: &str) -> bool {
    VERSIONS.contains(&version)
}

fn names_in(dir: &Path) -> Result<Vec<PathBuf>, ConflistError> {
    let failed = |source| ConflistError::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ConflistError::NoFolder(dir.to_owned()));
        }
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            names.push(path);
        }
    }
    names.sort();
    Ok(names)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension()
        .is_some_and(|found| extensions.iter().any(|e| found == *e))
}

fn read_capped(path: &Path) -> Result<String, ConflistError> {
    let failed = |source| ConflistError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    File::open(path)
        // One byte more than allowed tells a file of the limit from a longer one.
        .and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text))
        .map_err(failed)?;
    if text.len() > MAX_BYTES {
        return Err(ConflistError::Invalid {
            path: path.to_owned(),
            reason: format!("it has more than {MAX_BYTES} bytes"),
        });
    }
    Ok(text)
}

/// The list in `value`, or what is wrong with it.
fn check(value: Value, json: &str) -> Result<Conflist, String> {
    let Value::Object(mut list) = value else {
        return Err("it is not an object".to_owned());
    };
    let mut json = json.to_owned();
    if !list.contains_key("plugins") && list.contains_key("type") {
        list = list_of_one(list);
        json = Value::Object(list.clone()).to_string();
    }
    let name = text(&list, "name").ok_or("it has no \"name\"")?.to_owned();
    if !is_network_name(&name) {
        return Err(format!(
            "the name {name:?} must be letters, digits, dots, dashes and underscores, the first a letter or digit"
        ));
    }
    let version = version(&list)?;
    let Some(Value::Array(plugins)) = list.remove("plugins") else {
        return Err("it has no list of \"plugins\"".to_owned());
    };
    if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
        return Err(format!("it must have 1 to {MAX_PLUGINS} plugins"));
    }
    let plugins = plugins.into_iter().map(plugin).collect::<Result<_, _>>()?;
    Ok(Conflist {
        name,
        version,
        plugins,
        json,
    })
}

/// A list whose one plugin is `plugin`, with the plugin's own name and version.
fn list_of_one(mut plugin: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for key in ["name", "cniVersion"] {
        if let Some(value) = plugin.remove(key) {
            list.insert(key.to_owned(), value);
        }
    }
    let plugins = vec![Value::Object(plugin)];
    list.insert("plugins".to_owned(), Value::Array(plugins));
    list
}

/// The newest version that the list offers (`cniVersion`, and since 1.1 `cniVersions`) and cocoon
/// speaks.
fn version(list: &Map<String, Value>) -> Result<&'static str, String> {
    let several = list.get("cniVersions").and_then(Value::as_array);
    let offered: Vec<&str> = several
        .into_iter()
        .flatten()
        .chain(list.get("cniVersion"))
        .filter_map(Value::as_str)
        .collect();
    if offered.is_empty() {
        return Err("it has no \"cniVersion\"".to_owned());
    }
    let spoken = VERSIONS.iter().rfind(|known| offered.contains(known));
    spoken.copied().ok_or_else(|| {
        format!(
            "its cniVersion is {:?}; cocoon speaks {}",
            offered.join(", "),
            VERSIONS.join(", ")
        )
    })
}

fn plugin(value: Value) -> Result<Plugin, String> {
    let Value::Object(config) = value else {
        return Err("a plugin is not an object".to_owned());
    };
    let kind = text(&config, "type")
        .ok_or("a plugin has no \"type\"")?
        .to_owned();
    // The type becomes a file name in the plugin folder, and must not lead out of it.
    if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\0']) {
        return Err(format!("the plugin type {kind:?} is not a file name"));
    }
    Ok(Plugin { kind, config })
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// The grammar of network names in the specification, section 1.
fn is_network_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn the_first_list_by_name_is_used_before_any_single_plugin() {
        let single = r#"{"cniVersion":"1.0.0","name":"single","type":"bridge"}"#;
        let dir = folder(&[
            ("20-b.conflist", &LIST.replace("\"n\"", "\"b\"")),
            ("10-a.conflist", &LIST.replace("\"n\"", "\"a\"")),
            ("00-first.conf", single),
            ("00-first.conflist.bak", "broken"),
            ("README", "broken"),
        ]);
        fs::create_dir(dir.path().join("00-folder.conflist")).unwrap();
        assert_eq!(Conflist::find(dir.path()).unwrap().name(), "a");
    }

    #[test]
    fn what_a_list_asks_of_the_host_is_read() {
        for (plugins, bridge, masquerades, opens) in [
            (r#"{"type":"bridge"}"#, Some("cni0"), false, false),
            (
                r#"{"type":"bridge","bridge":"br7","ipMasq":true}"#,
                Some("br7"),
                true,
                false,
            ),
            (
                r#"{"type":"ptp","ipMasq":true},{"type":"firewall"}"#,
                None,
                true,
                true,
            ),
        ] {
            let json = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}"#);
            let list = Conflist::parse(&json, Path::new("x")).unwrap();
            assert_eq!(list.bridge(), bridge, "{plugins}");
            assert_eq!(list.masquerades(), masquerades, "{plugins}");
            assert_eq!(list.opens_firewall(), opens, "{plugins}");
        }
    }

    #[test]
    fn a_list_is_kept_to_the_byte() {
        let spaced = format!("  {LIST}\n\n");
        let dir = folder(&[("a.conflist", &spaced)]);
        assert_eq!(Conflist::find(dir.path()).unwrap().json(), spaced);
    }

    #[test]
    fn a_single_plugin_becomes_a_list_that_reads_back_as_itself() {
        let single =
            r#"{"cniVersion":"0.4.0","name":"cocoon","type":"bridge","ipam":{"type":"x"}}"#;
        for name in ["a.conf", "a.json", "a.conflist"] {
            let dir = folder(&[(name, single)]);
            let list = Conflist::find(dir.path()).unwrap();
            assert_eq!((list.name(), list.version()), ("cocoon", "0.4.0"));
            assert_eq!(list.plugins().len(), 1);
            assert_eq!(list.plugins()[0].config["ipam"]["type"], "x");
            assert_eq!(
                Conflist::parse(list.json(), Path::new("record")).unwrap(),
                list
            );
        }
    }

    #[test]
    fn the_newest_version_that_both_sides_speak_is_chosen() {
        for (offer, expected) in [
            (r#""cniVersion":"0.3.1""#, Some("0.3.1")),
            (r#""cniVersion":"1.1.0""#, Some("1.1.0")),
            (
                r#""cniVersions":["0.4.0","1.1.0","9.0.0"],"cniVersion":"1.0.0""#,
                Some("1.1.0"),
            ),
            (r#""cniVersions":["1.0.0"]"#, Some("1.0.0")),
            (r#""cniVersion":"0.2.0""#, None),
            (r#""cniVersion":"2.0.0""#, None),
            (r#""cniVersion":1"#, None),
            (r#""x":1"#, None),
        ] {
            let json = format!(r#"{{{offer},"name":"n","plugins":[{{"type":"a"}}]}}"#);
            let version = Conflist::parse(&json, Path::new("x")).map(|l| l.version());
            assert_eq!(version.ok(), expected, "{offer}");
        }
    }

    #[test]
    fn a_broken_list_is_refused_with_its_path_and_reason() {
        for (json, reason) in [
            ("", "is not JSON"),
            ("{", "is not JSON"),
            ("[]", "not an object"),
            (r#"{"cniVersion":"1.0.0","plugins":[]}"#, "\"name\""),
            (r#"{"cniVersion":"1.0.0","name":"a b","plugins":[]}"#, "a b"),
            (
                r#"{"cniVersion":"1.0.0","name":"../x","plugins":[]}"#,
                "../x",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "\"plugins\""),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#,
                "\"plugins\"",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
                "1 to 32",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[1]}"#,
                "not an object",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#,
                "\"type\"",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../sh"}]}"#,
                "../sh",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":""}]}"#,
                "file name",
            ),
        ] {
            let dir = folder(&[("00-a.conflist", json), ("10-b.conflist", LIST)]);
            let error = Conflist::find(dir.path()).unwrap_err().to_string();
            assert!(error.contains("00-a.conflist"), "{json}: {error}");
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    #[test]
    fn a_missing_folder_an_empty_one_and_a_huge_file_are_told_apart() {
        let dir = folder(&[]);
        let missing = dir.path().join("net.d");
        assert!(matches!(
            Conflist::find(&missing),
            Err(ConflistError::NoFolder(path)) if path == missing
        ));
        assert!(matches!(
            Conflist::find(dir.path()),
            Err(ConflistError::NoneFound(path)) if path == dir.path()
        ));
        fs::write(dir.path().join("a.conflist"), " ".repeat(MAX_BYTES + 1)).unwrap();
        let error = Conflist::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
    }
}
