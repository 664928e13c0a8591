//! What host and agent say to each other.
//!
//! ```text
//!   host                            agent
//!   Request ──────────────────────▶
//!           ◀────────────────────── Answer<T>     done, or failed with a sentence
//!   exec:   ToCommand frames ─────▶
//!           ◀────────────────────── FromCommand frames, the last of which is Ended
//!   get:    ◀────────────────────── Piece frames (see tree), the last of which is End or Failed
//!   put:    Piece frames ─────────▶
//!           ◀────────────────────── Answer<Copied>
//! ```
//! Rules for a change: a field may be added where its absence has a meaning (`serde(default)`); readers
//! pass over fields that they do not know; a request that the agent does not know is answered by a
//! failure of kind [`FailureKind::Unsupported`]. What these rules do not cover raises [`VERSION`].
//! An end of the connection takes everything back that the request still holds: a command is killed.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Version of the protocol; `hello` tells the agent's.
pub const VERSION: u32 = 1;

/// Port of the virtio socket at which the agent listens: above those that need privileges (1023), and
/// easy to see in a trace.
pub const PORT: u32 = 0xC0C0;

/// Bytes of a command's input that may be on their way to it. The agent reads on while a command does
/// not, so that the end of a connection is always seen; this bounds what it must keep.
pub const INPUT_WINDOW: usize = 256 << 10;

/// What the host asks for; the first frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Who is there: [`Hello`].
    Hello,
    /// Become somebody else: [`Renewed`].
    Identity(Identity),
    /// Take into use what was added to the VM: [`Grown`].
    Grow,
    /// Run a command: [`Started`], then its streams.
    Exec(Exec),
    /// Read a file or a folder: `()`, then its pieces.
    Get(Get),
    /// Write a file or a folder: `()`, then its pieces from the host, then [`Copied`].
    Put(Put),
    /// End: `()`, before it happens.
    Shutdown(Shutdown),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<T> {
    /// It was done.
    Done(T),
    /// It was not.
    Failed(Failure),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it means to the host.
    pub kind: FailureKind,
    /// For people; the guest's words, so see [`Failure::sentence`].
    pub message: String,
}

/// Longest sentence of a guest that is shown.
const SENTENCE_MAX: usize = 400;

impl Failure {
    /// A failure with a sentence.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The message, fit for a terminal: one line of bounded length, without control characters.
    pub fn sentence(&self) -> String {
        printable(&self.message)
    }
}

/// Words of a guest, fit for a terminal: one line of bounded length, without control characters.
pub fn printable(words: &str) -> String {
    let printed = |c: char| match c {
        c if c.is_control() => ' ',
        // They change the direction or the place of what follows.
        '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}' => ' ',
        c => c,
    };
    words.chars().take(SENTENCE_MAX).map(printed).collect()
}

/// What a failure means to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The agent does not know such a request.
    Unsupported,
    /// The request contradicts itself or the guest.
    Invalid,
    /// The command or file is not there.
    NotFound,
    /// The command is there, but cannot be run.
    CannotRun,
    /// The guest's system refused.
    #[serde(other)]
    Failed,
}

/// Who the agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// Another one after each boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The guest's name.
    pub hostname: String,
    /// cloud-init has done all that it does at this boot. Of a guest without it, nobody says so.
    #[serde(default)]
    pub cloud_init_done: bool,
}

/// Who the guest is from now on. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Random bytes for the kernel's generator, at most [`SEED_MAX`]; taken before all else.
    #[serde(default)]
    pub seed: Vec<u8>,
    /// The time, in nanoseconds since 1970.
    #[serde(default)]
    pub clock_ns: Option<u64>,
    /// The name, also in `/etc/hostname` and `/etc/hosts`.
    #[serde(default)]
    pub hostname: Option<String>,
    /// `/etc/machine-id`: 32 lower-case hex digits.
    #[serde(default)]
    pub machine_id: Option<String>,
    /// Its interfaces; those that are not named stay as they are.
    #[serde(default)]
    pub nics: Vec<NicIdentity>,
    /// Name servers for `/etc/resolv.conf`; none leaves it as it is.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Makes new host keys for sshd, if it has some.
    #[serde(default)]
    pub ssh_host_keys: bool,
}

/// Most bytes of a seed: the kernel's pool takes 32, all beyond is generosity.
pub const SEED_MAX: usize = 512;

/// What becomes of one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicIdentity {
    /// Which one.
    pub nic: WhichNic,
    /// Its Ethernet address from now on.
    #[serde(default)]
    pub mac: Option<MacAddress>,
    /// All addresses it shall have, besides IPv6 link-local ones.
    #[serde(default)]
    pub addresses: Vec<Network>,
    /// All routes it shall have, besides those that follow from its addresses.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// Names an interface of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhichNic {
    /// By its present Ethernet address.
    Mac(MacAddress),
    /// By its place among the guest's interfaces that are devices, from 0.
    Index(u32),
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// Text that is no Ethernet address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no Ethernet address")]
pub struct InvalidMac(String);

impl TryFrom<String> for MacAddress {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2);
            let parsed = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *octet = parsed.ok_or_else(|| InvalidMac(text.clone()))?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(InvalidMac(text)),
        }
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address, or the first address of a network, with the length of its prefix in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// A route through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; everywhere if absent, which needs a gateway.
    #[serde(default)]
    pub to: Option<Network>,
    /// Through whom; it need not be in a network of the interface.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// The smaller goes first.
    #[serde(default)]
    pub metric: Option<u32>,
}

/// The guest has become somebody else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// What could not be done, and without which the guest still is who it shall be; a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The guest's time when that was done, in nanoseconds since 1970: how much later the answer is heard, so late
    /// its clock may be at most. An older agent does not say it.
    #[serde(default)]
    pub clock_ns: Option<u64>,
}

/// What is in use after growing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grown {
    /// Processors that were switched on.
    pub cpus: u32,
    /// Blocks of memory that were switched on.
    pub memory_blocks: u32,
    /// Bytes of the writable disk's file system, if there is one.
    #[serde(default)]
    pub root_bytes: Option<u64>,
    /// All that is in use now: what is plugged in a moment before, the guest may not have noticed yet.
    /// Agents of before do not tell.
    #[serde(default)]
    pub in_use: Option<InUse>,
    /// What could not be done, a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How large the guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUse {
    /// Processors that are on.
    pub cpus: u32,
    /// Bytes in blocks of memory that are online, and 0 where memory cannot be plugged; the blocks cover
    /// all memory of the VM, and may reach a bit further.
    pub memory_bytes: u64,
    /// Bytes of the writable disk, and 0 where there is none.
    pub disk_bytes: u64,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program, looked for in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Added to the environment that a login of the user has.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The folder to run in; `/` if absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The user, `name`, `uid`, `name:group` or `uid:gid`; root if absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Runs in a terminal of its own.
    #[serde(default)]
    pub tty: Option<TerminalSize>,
    /// Whether input will come; else there is none.
    #[serde(default)]
    pub stdin: bool,
}

/// Characters that a terminal shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub cols: u16,
}

/// The command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its number in the guest.
    pub pid: u32,
}

/// Frames to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToCommand {
    /// The body is input, at most what [`FromCommand::InputTaken`] has made room for.
    Input,
    /// There is no more input.
    InputEnd,
    /// The terminal has another size.
    Resize(TerminalSize),
}

/// Frames from a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromCommand {
    /// The body is output; a terminal's is all of this kind.
    Output,
    /// The body is what was written to standard error.
    Error,
    /// This many bytes of input were taken: room for as many of the [`INPUT_WINDOW`].
    InputTaken(u32),
    /// The command ended; nothing follows.
    Ended(Ending),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// An absolute path.
    pub path: String,
}

/// Where to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// An absolute path.
    pub path: String,
    /// The name to take if `path` is a folder; without one, a folder's content goes into `path` itself.
    #[serde(default)]
    pub name: Option<String>,
}

/// A copy that was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Sockets, pipes and devices that were left out.
    #[serde(default)]
    pub skipped: u64,
}

/// How to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Starts again afterwards.
    #[serde(default)]
    pub reboot: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses_are_six_pairs_of_digits() {
        let mac = MacAddress::try_from("02:00:5e:10:00:ff".to_owned()).unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:01",
            "2:0:5e:10:0:ff",
            "zz:00:5e:10:00:ff",
        ] {
            assert!(MacAddress::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn fields_that_are_not_known_are_passed_over_and_absent_ones_have_a_meaning() {
        let request = r#"{"exec": {"argv": ["true"], "priority": 7}}"#;
        let expected = Exec {
            argv: vec!["true".into()],
            ..Exec::default()
        };
        assert_eq!(
            serde_json::from_str::<Request>(request).unwrap(),
            Request::Exec(expected)
        );
        assert!(serde_json::from_str::<Request>(r#"{"dance": {}}"#).is_err());
        let kind: FailureKind = serde_json::from_str(r#""of a later version""#).unwrap();
        assert_eq!(kind, FailureKind::Failed);
    }

    #[test]
    fn a_guests_sentence_cannot_move_the_cursor_or_fill_the_screen() {
        let failure = Failure::new(
            FailureKind::Failed,
            format!("a\x1b[2J\nb\u{202e}c\u{9b}d{}", "x".repeat(5000)),
        );
        let sentence = failure.sentence();
        assert!(sentence.starts_with("a [2J b c dxx"), "{sentence:?}");
        assert_eq!(sentence.chars().count(), SENTENCE_MAX);
    }
}
