//! Scripts as distributions have them, and as nobody should.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;

use super::*;
use crate::installed::bls;

/// What Debian 12's grub-mkconfig makes for two kernels, `/boot` not being a partition of its own.
const DEBIAN: &str = include_str!("../../tests/samples/debian12.cfg");

/// The same with `GRUB_DEFAULT=saved`.
const DEBIAN_SAVED: &str = include_str!("../../tests/samples/debian12-saved.cfg");

/// By hand, after what Ubuntu 24.04's scripts make for its cloud images: a `/boot` of its own, and a first
/// try without an initrd.
const UBUNTU: &str = include_str!("../../tests/samples/ubuntu2404-cloud.cfg");

/// By hand, after what Fedora 39's scripts make: the kernels are in entries of their own.
const FEDORA: &str = include_str!("../../tests/samples/fedora39.cfg");

const UUID: &str = "11111111-2222-3333-4444-555555555555";

#[derive(Default)]
struct Texts {
    files: BTreeMap<String, String>,
    entries: Vec<BlsEntry>,
}

impl Texts {
    fn with(path: &str, text: &str) -> Self {
        let mut it = Self::default();
        it.files.insert(path.to_owned(), text.to_owned());
        it
    }
}

impl Files for Texts {
    fn read(&self, path: &str) -> Option<String> {
        self.files.get(path).cloned()
    }

    fn size(&self, path: &str) -> Option<u64> {
        self.files.get(path).map(|text| text.len() as u64)
    }

    fn has_folder(&self, path: &str) -> bool {
        path == "/boot"
    }

    fn entries(&self) -> Vec<BlsEntry> {
        self.entries.clone()
    }
}

fn choice(text: &str, files: &Texts) -> Result<Choice, GrubError> {
    Menu::read(text, "/boot/grub", files)?.choose()
}

/// What GRUB's own parser says of a script; nothing, and a line that says so, if it is not installed.
fn is_script(text: &str) -> Option<bool> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(format!("{text}\n").as_bytes()).unwrap();
    let checked = Command::new("grub-script-check").arg(file.path()).output();
    if checked.is_err() {
        println!("SKIPPED: grub-script-check is not installed; it is in grub-common");
    }
    checked.ok().map(|output| output.status.success())
}

fn boot(text: &str, files: &Texts) -> Boot {
    assert_ne!(is_script(text), Some(false), "{text}");
    match choice(text, files) {
        Ok(Choice::Boot(boot)) => boot,
        other => panic!("{other:?}"),
    }
}

/// What is left of a script that only sets `x` before it boots.
fn value_of_x(script: &str) -> Vec<String> {
    let text = format!("{script}\nmenuentry 'a' {{ linux /k $x }}");
    boot(&text, &Texts::default()).arguments
}

#[test]
fn debians_script_boots_its_newest_kernel() {
    let boot = boot(DEBIAN, &Texts::default());
    assert_eq!(boot.title, "Debian GNU/Linux");
    assert_eq!(boot.kernel, "/boot/vmlinuz-6.1.0-13-amd64");
    assert_eq!(boot.initrd, ["/boot/initrd.img-6.1.0-13-amd64"]);
    let root = format!("root=UUID={UUID}");
    let arguments = [
        &root,
        "ro",
        "console=tty0",
        "console=ttyS0,115200",
        "earlyprintk=ttyS0,115200",
        "consoleblank=0",
        "quiet",
    ];
    assert_eq!(boot.arguments, arguments);
}

#[test]
fn the_environment_block_names_an_entry_by_number_title_or_id() {
    let submenu = "Advanced options for Debian GNU/Linux";
    let title = "Debian GNU/Linux, with Linux 6.1.0-9-amd64";
    let old = format!("gnulinux-advanced-{UUID}>gnulinux-6.1.0-9-amd64-advanced-{UUID}");
    let table = [
        ("", "Debian GNU/Linux"),
        ("0", "Debian GNU/Linux"),
        ("1>2", title),
        ("1", "Debian GNU/Linux, with Linux 6.1.0-13-amd64"),
        ("1>99", "Debian GNU/Linux, with Linux 6.1.0-13-amd64"),
        (&old, title),
        (&format!("{submenu}>{title}"), title),
        (
            &format!("{submenu}>3"),
            "Debian GNU/Linux, with Linux 6.1.0-9-amd64 (recovery mode)",
        ),
        // GRUB looks into no submenu that is not named.
        (title, "Debian GNU/Linux"),
        ("no such entry", "Debian GNU/Linux"),
        ("7", "Debian GNU/Linux"),
    ];
    for (saved, expected) in table {
        for name in ["saved_entry", "next_entry"] {
            let block = format!("# GRUB Environment Block\n{name}={saved}\n######");
            let files = Texts::with("/boot/grub/grubenv", &block);
            assert_eq!(boot(DEBIAN_SAVED, &files).title, expected, "{name} {saved}");
        }
    }
}

#[test]
fn a_title_may_have_the_character_that_parts_a_path() {
    let script = "set default='a>>b>c>>d'\nsubmenu 'a>b' { menuentry 'x' { linux /x }\n\
                  menuentry 'c>d' { linux /k } }";
    assert_eq!(boot(script, &Texts::default()).kernel, "/k");
}

#[test]
fn ubuntus_cloud_images_boot_with_their_initrd() {
    let boot = boot(UBUNTU, &Texts::with("/boot/grub/grubenv", "####"));
    assert_eq!(boot.title, "Ubuntu");
    assert_eq!(
        boot.initrd,
        ["/microcode.cpio", "/initrd.img-6.8.0-31-generic"]
    );
    let root = "root=PARTUUID=0a1b2c3d-0000-4000-8000-00000000000f";
    assert_eq!(
        boot.arguments,
        [root, "ro", "console=tty1", "console=ttyS0"]
    );
}

#[test]
fn fedoras_entries_are_the_menu_of_its_script() {
    let entry = |id: &str, options: &str| {
        let text = format!(
            "title Fedora {id}\nlinux /vmlinuz-{id}\ninitrd /i-{id} $tuned_initrd\n{options}"
        );
        bls::parse(&format!("{id}.conf"), &text).unwrap()
    };
    let entries = vec![
        entry("6.5.10", "options $kernelopts $tuned_params"),
        entry("6.5.6", "options root=UUID=5 ro 'a b'"),
    ];
    let mut files = Texts {
        entries,
        ..Texts::default()
    };
    let newest = boot(FEDORA, &files);
    assert_eq!(
        (newest.title.as_str(), newest.kernel.as_str()),
        ("Fedora 6.5.10", "/vmlinuz-6.5.10")
    );
    let root = "root=UUID=55555555-2222-3333-4444-555555555555";
    assert_eq!(newest.arguments, [root, "ro", "rootflags=subvol=root"]);
    assert_eq!(newest.initrd, ["/i-6.5.10"]);

    let block = "# GRUB Environment Block\nkernelopts=root=LABEL=x rw\nboot_success=0\n###";
    files
        .files
        .insert("/boot/grub/grubenv".to_owned(), block.to_owned());
    assert_eq!(boot(FEDORA, &files).arguments, ["root=LABEL=x", "rw"]);

    let block = "# GRUB Environment Block\nsaved_entry=6.5.6\n###";
    files
        .files
        .insert("/boot/grub/grubenv".to_owned(), block.to_owned());
    let saved = boot(FEDORA, &files);
    assert_eq!(
        (saved.kernel.as_str(), saved.initrd.len()),
        ("/vmlinuz-6.5.6", 1)
    );
    assert_eq!(saved.arguments, ["root=UUID=5", "ro", "a b"]);
}

#[test]
fn words_quotes_and_variables_are_those_of_a_shell() {
    let table: [(&str, &[&str]); 14] = [
        ("set x={a}", &["{a}"]),
        ("set x=a", &["a"]),
        ("x=a", &["a"]),
        ("set x='a b'", &["a", "b"]),
        ("y='a b'; set x=\"$y c\"", &["a", "b", "c"]),
        ("set x=\"a\\$y\"", &["a$y"]),
        ("set x='a$y'", &["a$y"]),
        ("y=1; set x=a${y}b$y", &["a1b1"]),
        ("set x=a\\\nb", &["ab"]),
        ("set x=a # b", &["a"]),
        ("set x=a#b", &["a#b"]),
        ("set x=a; unset x", &[]),
        ("set x=\"\"", &[]),
        (
            "function f {\nset x=no\n}\nfor i in 1 2; do set x=no; done\nset x=a; f",
            &["a"],
        ),
    ];
    for (script, expected) in table {
        assert_eq!(value_of_x(script), expected, "{script}");
    }
}

#[test]
fn conditions_hold_as_they_do_in_grub() {
    let table = [
        ("[ a = a ]", true),
        ("[ a == b ]", false),
        ("[ a != b ]", true),
        ("[ \"$none\" ]", false),
        ("[ -z \"$none\" ]", true),
        ("[ -n \"$none\" -o 2 -gt 1 ]", true),
        ("[ -n a -a 1 -eq 2 ]", false),
        ("[ ! -z a ]", true),
        ("test -d /boot", true),
        ("[ -d /bot ]", false),
        ("[ -s $prefix/grubenv ]", true),
        ("[ -f (hd0,gpt1)/boot/grub/grubenv ]", true),
        ("[ -e /nothing ]", false),
        ("loadfont $font", false),
        ("true", true),
        ("false", false),
    ];
    let files = Texts::with("/boot/grub/grubenv", "a=b\n");
    for (condition, expected) in table {
        let script = format!(
            "if {condition}; then set x=yes\nelif false; then set x=no\nelse\nset x=no; fi\n\
             menuentry a {{ linux /k $x }}"
        );
        let expected = if expected { "yes" } else { "no" };
        assert_eq!(boot(&script, &files).arguments, [expected], "{condition}");
    }
}

#[test]
fn a_script_may_bring_in_another() {
    let files = Texts::with(
        "/boot/grub/custom.cfg",
        "menuentry 'custom' --id=c { linuxefi /c; initrdefi /i }",
    );
    let script = "set default=c\nmenuentry a { linux /a }\nsource ${config_directory}/custom.cfg";
    let boot = boot(script, &files);
    assert_eq!(
        (boot.title.as_str(), boot.kernel.as_str()),
        ("custom", "/c")
    );
    assert_eq!(boot.initrd, ["/i"]);
}

#[test]
fn what_boots_no_kernel_is_said() {
    let script = "menuentry 'Firmware' { fwsetup }";
    let files = Texts::default();
    assert_eq!(
        choice(script, &files),
        Ok(Choice::Other("Firmware".to_owned()))
    );
    assert_eq!(choice("set timeout=1", &files), Ok(Choice::Nothing));
    assert_eq!(choice("submenu a { true }", &files), Ok(Choice::Nothing));
}

#[test]
fn what_is_no_script_is_refused_by_its_line() {
    let table = [
        ("menuentry 'a' {\nlinux /k\n", 3),
        ("set a='b\n\n", 3),
        ("\nset a=\"b", 2),
        ("if true\nfi", 2),
        ("fi", 1),
        ("}", 1),
        ("\n{ linux /k }", 2),
        ("a ${b", 1),
        ("if true; then a }", 1),
    ];
    for (script, line) in table {
        assert_ne!(is_script(script), Some(true), "{script}");
        match choice(script, &Texts::default()) {
            Err(GrubError::Syntax { line: found, .. }) => assert_eq!(found, line, "{script}"),
            other => panic!("{script}: {other:?}"),
        }
    }
}

#[test]
fn a_script_without_end_ends() {
    let deep = "if true; then ".repeat(100_000);
    assert!(choice(&deep, &Texts::default()).is_err());
    let deep = "submenu a { ".repeat(30) + &"}".repeat(30);
    assert_eq!(choice(&deep, &Texts::default()), Err(GrubError::TooMuch));

    let doubled = format!("x=1\n{}", "set x=$x$x\n".repeat(1000));
    assert_eq!(choice(&doubled, &Texts::default()), Err(GrubError::TooMuch));

    let itself = Texts::with("/boot/grub/a", "source /boot/grub/a");
    assert_eq!(
        choice("source /boot/grub/a", &itself),
        Err(GrubError::TooMuch)
    );
}
