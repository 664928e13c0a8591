//! Entries of the Boot Loader Specification (UAPI.1), which Fedora and its relatives describe their kernels in.
//!
//! ```text
//! /boot/loader/entries/<id>.conf      title Fedora Linux (6.5.6-300.fc39.x86_64) 39
//!                                     version 6.5.6-300.fc39.x86_64
//!                                     linux /vmlinuz-6.5.6-300.fc39.x86_64
//!                                     initrd /initramfs-6.5.6-300.fc39.x86_64.img $tuned_initrd
//!                                     options $kernelopts $tuned_params
//! ```
//! `$name` is GRUB's, and stands for a variable of its environment.

use std::cmp::Ordering;

use super::version;

/// One kernel and how it is booted; paths and options as they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BlsEntry {
    /// The file's name without `.conf`, and without a count of attempts (`+3-1`).
    pub(super) id: String,
    pub(super) title: String,
    pub(super) linux: String,
    pub(super) initrd: Vec<String>,
    pub(super) options: String,
    version: String,
    sort_key: String,
    machine_id: String,
}

/// What the file `name` with this `text` says; nothing if it boots no kernel.
pub(super) fn parse(name: &str, text: &str) -> Option<BlsEntry> {
    let id = name.strip_suffix(".conf")?;
    let mut entry = BlsEntry {
        id: without_attempts(id).to_owned(),
        ..BlsEntry::default()
    };
    for line in text.lines() {
        let line = line.trim();
        let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.title),
            "linux" => value.clone_into(&mut entry.linux),
            "version" => value.clone_into(&mut entry.version),
            "sort-key" => value.clone_into(&mut entry.sort_key),
            "machine-id" => value.clone_into(&mut entry.machine_id),
            "initrd" => entry
                .initrd
                .extend(value.split_whitespace().map(str::to_owned)),
            "options" => {
                entry.options.push(' ');
                entry.options.push_str(value);
            }
            _ => {}
        }
    }
    if entry.title.is_empty() {
        entry.title.clone_from(&entry.id);
    }
    (!entry.linux.is_empty()).then_some(entry)
}

/// The id, of which systemd-boot counts the attempts: `name+left-done`.
fn without_attempts(id: &str) -> &str {
    match id.rsplit_once('+') {
        Some((id, count)) if count.chars().all(|it| it.is_ascii_digit() || it == '-') => id,
        _ => id,
    }
}

/// Newest first, as the specification sorts a menu.
pub(super) fn sort(entries: &mut [BlsEntry]) {
    entries.sort_by(order);
}

fn order(a: &BlsEntry, b: &BlsEntry) -> Ordering {
    let is_keyless = |entry: &BlsEntry| entry.sort_key.is_empty();
    let by_key = match (is_keyless(a), is_keyless(b)) {
        (false, false) => (&a.sort_key, &a.machine_id)
            .cmp(&(&b.sort_key, &b.machine_id))
            .then_with(|| version::compare(&b.version, &a.version)),
        (a, b) => a.cmp(&b),
    };
    by_key.then_with(|| version::compare(&b.id, &a.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(files: &[(&str, &str)]) -> Vec<String> {
        let mut entries: Vec<_> = files
            .iter()
            .filter_map(|(name, text)| parse(name, text))
            .collect();
        sort(&mut entries);
        entries.into_iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn an_entry_is_read_with_all_its_initrds_and_options() {
        let text = "# by hand\ntitle\tFedora Linux\nversion 6.5.6\nlinux /vmlinuz-6.5.6\n\
                    initrd /microcode.img  /initramfs.img $tuned_initrd\ninitrd /more.img\n\
                    options root=UUID=1 ro\noptions   quiet\ngrub_class fedora\n";
        let entry = parse("abc-6.5.6+3-1.conf", text).unwrap();
        assert_eq!(
            (entry.id.as_str(), entry.title.as_str()),
            ("abc-6.5.6", "Fedora Linux")
        );
        assert_eq!(entry.linux, "/vmlinuz-6.5.6");
        assert_eq!(
            entry.initrd,
            [
                "/microcode.img",
                "/initramfs.img",
                "$tuned_initrd",
                "/more.img"
            ]
        );
        assert_eq!(entry.options, " root=UUID=1 ro quiet");
    }

    #[test]
    fn what_boots_no_kernel_is_no_entry() {
        assert_eq!(parse("a.conf", "title A\nefi /EFI/a.efi\n"), None);
        assert_eq!(parse("a.conf.rpmsave", "linux /vmlinuz\n"), None);
    }

    #[test]
    fn the_newest_kernel_comes_first_and_the_rescue_last() {
        let linux = "linux /vmlinuz";
        let fedora = [
            ("0a1b-6.5.6-300.fc39.x86_64.conf", linux),
            ("0a1b-0-rescue.conf", linux),
            ("0a1b-6.5.10-300.fc39.x86_64.conf", linux),
        ];
        let expected = [
            "0a1b-6.5.10-300.fc39.x86_64",
            "0a1b-6.5.6-300.fc39.x86_64",
            "0a1b-0-rescue",
        ];
        assert_eq!(ids(&fedora), expected);
    }

    #[test]
    fn keys_and_versions_of_entries_go_before_their_names() {
        let files = [
            ("z.conf", "linux /v"),
            ("a.conf", "linux /v\nsort-key debian\nversion 6.9"),
            ("b.conf", "linux /v\nsort-key debian\nversion 6.10"),
            ("c.conf", "linux /v\nsort-key arch\nversion 1"),
        ];
        assert_eq!(ids(&files), ["c", "b", "a", "z"]);
    }
}
