//! Bundles that lie.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::tests::*;
use super::*;
use crate::image::fixture::{Host, gzip, tar_of};
use crate::image::manifest::MAX_DOCUMENT;

/// One entry more, as raw as it comes.
struct Extra {
    name: &'static [u8],
    kind: tar::EntryType,
    link: &'static str,
    body: Vec<u8>,
}

impl Extra {
    fn file(name: &'static [u8]) -> Self {
        Self {
            name,
            kind: tar::EntryType::Regular,
            link: "",
            body: b"x".to_vec(),
        }
    }

    fn link(name: &'static [u8], kind: tar::EntryType, link: &'static str) -> Self {
        Self {
            name,
            kind,
            link,
            body: Vec::new(),
        }
    }

    fn append(&self, to: &mut Vec<u8>) {
        let mut header = tar::Header::new_gnu();
        // Past the checks of the crate, which writes no such names.
        header.as_old_mut().name[..self.name.len()].copy_from_slice(self.name);
        header.as_old_mut().linkname[..self.link.len()].copy_from_slice(self.link.as_bytes());
        header.set_entry_type(self.kind);
        header.set_size(self.body.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        to.extend(header.as_bytes());
        to.extend(&self.body);
        to.resize(to.len().next_multiple_of(512), 0);
    }
}

/// A good archive with one entry before or behind its own.
fn with(extra: &Extra, is_first: bool) -> Vec<u8> {
    let mut members = tar_of_members(&layout(&[&root(1)]));
    members.truncate(members.len() - 1024);
    let mut whole = Vec::new();
    if is_first {
        extra.append(&mut whole);
        whole.extend(members);
    } else {
        whole = members;
        extra.append(&mut whole);
    }
    whole.resize(whole.len() + 1024, 0);
    whole
}

#[test]
fn entries_that_no_archive_has_are_refused_by_name() {
    use tar::EntryType;
    for (extra, sentence) in [
        (
            Extra::file(b"../../x"),
            "\"../../x\" is refused: its name leaves",
        ),
        (
            Extra::file(b"/../x"),
            "\"/../x\" is refused: its name leaves",
        ),
        (
            Extra::link(b"blobs/l", EntryType::Symlink, "../../etc/passwd"),
            "\"blobs/l\" is refused: it links to what is outside",
        ),
        (
            Extra::link(b"l", EntryType::Symlink, "/etc/passwd"),
            "\"l\" is refused: it links to what is outside",
        ),
        (
            Extra::link(b"l", EntryType::Link, "../etc/passwd"),
            "\"l\" is refused: it links to what is outside",
        ),
        (
            Extra::file(b"index.json"),
            "index.json\" is refused: there are two",
        ),
        (
            Extra::file(b"./oci-layout"),
            "oci-layout\" is refused: there are two",
        ),
        (
            Extra::file(b"blobs//../oci-layout"),
            "is refused: there are two",
        ),
        (
            Extra::link(b"index.json", EntryType::Symlink, "oci-layout"),
            "index.json\" is refused: there are two",
        ),
        (
            Extra::link(b"d", EntryType::Char, ""),
            "\"d\" is refused: it is no file",
        ),
        (
            Extra::link(b"p", EntryType::Fifo, ""),
            "\"p\" is refused: it is no file",
        ),
        (
            Extra::link(b"q", EntryType::new(b'Q'), ""),
            "entries of type 'Q'",
        ),
    ] {
        for is_first in [true, false] {
            let host = Host::new();
            let whole = with(&extra, is_first);
            for (what, input) in wrapped(&whole, host.dir.path()) {
                let text = refusal(&host, input);
                assert!(text.contains(sentence), "{what}, first {is_first}: {text}");
                host.assert_nothing_published();
            }
        }
    }
}

#[test]
fn a_file_with_holes_is_no_member() {
    let mut sparse = tar::Header::new_gnu();
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    sparse.set_path("blobs/hole").unwrap();
    sparse.set_size(0);
    sparse.set_mode(0o644);
    sparse.as_gnu_mut().unwrap().set_real_size(1 << 40);
    sparse.set_cksum();
    let mut whole = sparse.as_bytes().to_vec();
    whole.extend(tar_of_members(&layout(&[&root(1)])));
    let text = refusal(&Host::new(), stream(&whole));
    assert!(
        text.contains("\"blobs/hole\" is refused: it is a file with holes"),
        "{text}"
    );
}

fn too_large() -> Vec<u8> {
    vec![b' '; usize::try_from(MAX_DOCUMENT).unwrap() + 1]
}

/// A layout, changed.
type Change = fn(&mut Members);

/// The name of the member that `part` of its content tells.
fn named(members: &Members, part: &str) -> String {
    let mut all = members.iter();
    let found = all.find(|(name, body)| {
        name.starts_with("blobs") && String::from_utf8_lossy(body).contains(part)
    });
    found.unwrap().0.clone()
}

fn layer_blob(members: &Members) -> String {
    let gzip_of_root = Digest::of(&gzip(&root(1)));
    let name = format!("blobs/sha256/{}", gzip_of_root.hex());
    assert!(members.contains_key(&name));
    name
}

#[test]
fn layouts_that_contradict_themselves_are_refused() {
    let table: [(Change, &str); 11] = [
        (
            |all| drop(all.remove("index.json")),
            "it lacks \"index.json\"",
        ),
        (
            |all| drop(all.insert("oci-layout".into(), br#"{"imageLayoutVersion":"2"}"#.into())),
            "an OCI layout of version \"2\"",
        ),
        (
            |all| drop(all.insert("oci-layout".into(), b"{".into())),
            "\"oci-layout\" in it is malformed",
        ),
        (
            |all| drop(all.insert("index.json".into(), too_large())),
            "\"index.json\" in it has 4194305 bytes, and at most 4194304",
        ),
        (
            |all| drop(all.insert("oci-layout".into(), too_large())),
            "\"oci-layout\" in it has 4194305 bytes",
        ),
        (
            |all| drop(all.remove(&named(all, "schemaVersion"))),
            "which an image in it needs",
        ),
        (
            |all| {
                all.get_mut(&named(all, "schemaVersion"))
                    .unwrap()
                    .push(b' ')
            },
            "in it has the digest",
        ),
        (
            |all| all.get_mut(&named(all, "rootfs")).unwrap().push(b' '),
            "in it has the digest",
        ),
        (
            |all| drop(all.remove(&layer_blob(all))),
            "it lacks \"blobs/sha256/",
        ),
        (
            |all| all.get_mut(&layer_blob(all)).unwrap().push(0),
            "and its documents say",
        ),
        (
            |all| *all.get_mut(&layer_blob(all)).unwrap().last_mut().unwrap() ^= 1,
            "it was changed on the way",
        ),
    ];
    for (change, sentence) in table {
        let mut members = layout(&[&root(1)]);
        change(&mut members);
        let folder = folder_of(&members);
        for input in [stream(&tar_of_members(&members)), Input::at(folder.path())] {
            let host = Host::new();
            let text = refusal(&host, input);
            assert!(text.contains(sentence), "{sentence}: {text}");
            host.assert_nothing_published();
        }
    }
}

#[test]
fn saved_images_that_contradict_themselves_are_refused() {
    let tar = root(1);
    let good = saved(&[&tar], &[("l.tar", tar.clone())]);
    let config = good.keys().find(|name| name.len() == 69).unwrap().clone();
    let image = |config: &str, layers: &[&str]| json!([{"Config": config, "Layers": layers}]);
    for (manifest, sentence) in [
        (json!([]), "it holds no image"),
        (json!({}), "\"manifest.json\" in it is malformed"),
        (
            image("nothing.json", &["l.tar"]),
            "it lacks \"nothing.json\"",
        ),
        (
            image("../../etc/passwd", &["l.tar"]),
            "its name leaves the root",
        ),
        (image("/etc/passwd", &["l.tar"]), "it lacks \"/etc/passwd\""),
        (
            image(&config, &["../l.tar"]),
            "\"../l.tar\" is refused: its name leaves",
        ),
        (image(&config, &["m.tar"]), "it lacks \"m.tar\""),
        (image(&config, &[]), "the image has no layers"),
        (
            image(&config, &["l.tar", "l.tar"]),
            "manifest has 2 layers, its config 1",
        ),
        (image("l.tar", &["l.tar"]), "config is malformed"),
    ] {
        let mut members = good.clone();
        members.insert("manifest.json".into(), manifest.to_string().into());
        let host = Host::new();
        let text = refusal(&host, stream(&tar_of_members(&members)));
        assert!(text.contains(sentence), "{sentence}: {text}");
        host.assert_nothing_published();
    }
    let mut members = good.clone();
    members.get_mut(&config).unwrap().push(b' ');
    let text = refusal(&Host::new(), stream(&tar_of_members(&members)));
    assert!(text.contains("in it has the digest"), "{text}");
    // A layer that is not the one of the config.
    let mut members = good;
    members.insert("l.tar".into(), root(5));
    let text = refusal(&Host::new(), stream(&tar_of_members(&members)));
    assert!(text.contains("it was changed on the way"), "{text}");
    let members = saved(&[&tar], &[("l.tar", gzip(&root(5)))]);
    let text = refusal(&Host::new(), stream(&tar_of_members(&members)));
    assert!(text.contains("but the image's config says"), "{text}");
}

#[test]
fn links_in_an_archive_that_go_round_are_refused() {
    let tar = root(1);
    let members = saved(&[&tar], &[("a", tar.clone())]);
    let mut whole = Vec::new();
    Extra::link(b"b", tar::EntryType::Symlink, "c").append(&mut whole);
    Extra::link(b"c", tar::EntryType::Symlink, "b").append(&mut whole);
    let mut members = members;
    let text = String::from_utf8(members["manifest.json"].clone()).unwrap();
    let text = text.replace("[\"a\"]", "[\"b\"]");
    members.insert("manifest.json".into(), text.into());
    whole.extend(tar_of_members(&members));
    let text = refusal(&Host::new(), stream(&whole));
    assert!(
        text.contains("\"b\" is refused: it is a link to a link"),
        "{text}"
    );
}

#[test]
fn links_in_a_folder_may_lead_within_but_not_out() {
    let members = layout(&[&root(1)]);
    let outside = folder_of(&members);
    let blob = layer_blob(&members);
    for (target, sentence) in [
        (
            outside.path().join(&blob),
            Some("it links to what is outside"),
        ),
        (
            "../../../../../../../../etc/hostname".into(),
            Some("it links to what is outside"),
        ),
        ("../../kept".into(), None),
    ] {
        let folder = folder_of(&members);
        fs::rename(folder.path().join(&blob), folder.path().join("kept")).unwrap();
        symlink(&target, folder.path().join(&blob)).unwrap();
        let imported = try_import(&Host::new(), Input::at(folder.path()));
        match (imported, sentence) {
            (Ok(_), None) => {}
            (Err(error), Some(sentence)) => {
                let text = crate::image::fixture::chain(&error);
                assert!(text.contains(sentence), "{text}");
            }
            (imported, _) => panic!("{target:?}: {imported:?}"),
        }
    }
    // A pipe that nobody writes to.
    let folder = folder_of(&members);
    fs::remove_file(folder.path().join(&blob)).unwrap();
    let pipe = std::ffi::CString::new(folder.path().join(&blob).to_str().unwrap()).unwrap();
    nix::unistd::mkfifo(pipe.as_c_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let text = refusal(&Host::new(), Input::at(folder.path()));
    assert!(text.contains("it is no file"), "{text}");
}

#[test]
fn a_bomb_is_refused_while_it_is_kept() {
    let host = Host::new();
    let mut options = AssemblyOptions::default();
    options.limits.max_bytes = 1 << 20;
    let bomb = gzip(&tar_of(&[
        ("blobs/bomb", &vec![0; 4 << 20]),
        ("oci-layout", b"{}"),
    ]));
    assert!(bomb.len() < 64 << 10);
    let silent = crate::image::progress::Silent;
    let error = import(&name(), stream(&bomb), &options, &host.store, &silent).unwrap_err();
    let text = crate::image::fixture::chain(&error);
    assert!(
        text.contains("unpacks to more than 1048576 bytes"),
        "{text}"
    );
    host.assert_nothing_staged();
}
