//! Where fuzz targets enter: one function each, which takes any bytes.

use std::path::Path;

use super::conflist::Conflist;
use super::result;

/// A configuration list, or a single plugin.
pub fn conflist(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let parse = |text: &str| Conflist::parse(text, Path::new("fuzz.conflist"));
    let Ok(list) = parse(text) else {
        return;
    };
    for plugin in list.plugins() {
        let program = Path::new("/plugins").join(&plugin.kind);
        assert_eq!(program.parent(), Some(Path::new("/plugins")), "{program:?}");
    }
    // DEL reads what ADD has kept.
    let kept = parse(list.json()).expect("what was kept can be read");
    assert_eq!((kept.name(), kept.version()), (list.name(), list.version()));
    assert_eq!(kept.plugins().len(), list.plugins().len());
    let _ = (list.bridge(), list.masquerades(), list.opens_firewall());
}

/// The answer of a plugin to ADD.
pub fn cni_result(data: &[u8]) {
    let Ok(result) = result::parse(data, "1.0.0") else {
        return;
    };
    if let Some(address) = result.address {
        assert!((1..=32).contains(&address.prefix), "{address:?}");
    }
    result::addresses(&result.json);
    // The next plugin gets it.
    let next = serde_json::to_vec(&result.json).expect("what was read can be written");
    let next = result::parse(&next, "1.0.0").expect("what was written can be read");
    assert_eq!(next.address, result.address);
}

/// So that the entries stay alive where nobody fuzzes.
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // A look, not a search.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_harm_the_readers_of_cni(
            kind in "[a./\\x00]{0,4}", address in "[0-9./:]{0,18}", data in any::<Vec<u8>>()
        ) {
            conflist(&data);
            cni_result(&data);
            let list = serde_json::json!({"cniVersion": "1.0.0", "name": "n", "type": kind});
            conflist(list.to_string().as_bytes());
            let answer = serde_json::json!({"ips": [{"address": address, "gateway": "10.0.0.1"}]});
            cni_result(answer.to_string().as_bytes());
        }
    }
}
