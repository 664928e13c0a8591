//! One run of a CNI plugin (CNI specification, section 2): a program that is told what to do by
//! its environment and stdin, and answers on stdout.
//!
//! Invariants:
//! - A run ends: at its time limit, or with more output than allowed, the plugin and whatever it
//!   started in its process group is killed.
//! - No pipe can block cocoon: stdin is a file in memory, and stdout and stderr are read together.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;

use super::result::ResultError;

/// Largest answer; a result with a hundred routes has some ten KiB.
const MAX_STDOUT_BYTES: usize = 1024 * 1024;

/// What is kept of the first things that a plugin says on stderr; the rest is read and dropped.
const MAX_STDERR_BYTES: usize = 16 * 1024;

/// What is shown of a plugin's own words in an error.
const MAX_QUOTE_CHARS: usize = 600;

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Connect the namespace.
    Add,
    /// Undo ADD, as far as it got.
    Del,
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        })
    }
}

/// A plugin that did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// Its program is not in the plugin folder.
    #[error("the CNI plugin {plugin} is not in {}", dir.display())]
    Missing {
        /// The plugin's type.
        plugin: String,
        /// The plugin folder.
        dir: PathBuf,
    },
    /// Its program cannot be started or watched.
    #[error("cannot run the CNI plugin {plugin}")]
    Run {
        /// The plugin's type.
        plugin: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("the CNI plugin {plugin} did not finish {verb} of {ifname} in {} s and was killed", limit.as_secs_f32())]
    Timeout {
        /// The plugin's type.
        plugin: String,
        /// What it was asked.
        verb: Verb,
        /// The interface.
        ifname: String,
        /// The time that it had.
        limit: Duration,
    },
    /// It wrote too much and was killed.
    #[error(
        "the CNI plugin {plugin} answered {verb} of {ifname} with more than {MAX_STDOUT_BYTES} bytes and was killed"
    )]
    TooMuch {
        /// The plugin's type.
        plugin: String,
        /// What it was asked.
        verb: Verb,
        /// The interface.
        ifname: String,
    },
    /// It failed.
    #[error("the CNI plugin {plugin} failed {verb} of {ifname}: {reason}")]
    Failed {
        /// The plugin's type.
        plugin: String,
        /// What it was asked.
        verb: Verb,
        /// The interface.
        ifname: String,
        /// In its own words: its error message with code and details or, without one, how it ended
        /// and what it wrote.
        reason: String,
    },
    /// It succeeded with an answer that cannot be used.
    #[error("cannot use what the CNI plugin {plugin} did for {ifname}")]
    Result {
        /// The plugin's type.
        plugin: String,
        /// The interface.
        ifname: String,
        /// Why.
        #[source]
        source: ResultError,
    },
}

/// One run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    /// The plugin's type, which is the file name of its program.
    pub(super) plugin: &'a str,
    /// Where plugins are, and look for each other.
    pub(super) bin_dir: &'a Path,
    /// What to do.
    pub(super) verb: Verb,
    /// Whom it is for.
    pub(super) container_id: &'a str,
    /// The namespace; empty where it no longer exists.
    pub(super) netns: &'a Path,
    /// The interface in it.
    pub(super) ifname: &'a str,
    /// Extra arguments (`K=V;K=V`), often none.
    pub(super) args: &'a str,
    /// The plugin's configuration.
    pub(super) config: &'a [u8],
    /// When it is killed.
    pub(super) limit: Duration,
}

/// How a watched process ended.
enum Ending {
    Exited(ExitStatus),
    TimedOut,
    WroteTooMuch,
}

/// What a plugin writes when it fails (specification, section 5, "Error").
#[derive(Deserialize)]
struct WireError {
    code: u64,
    msg: Option<String>,
    details: Option<String>,
}

impl Run<'_> {
    /// Runs the plugin and returns what it wrote to stdout.
    ///
    /// # Errors
    /// It is missing, failed, took too long or wrote too much.
    pub(super) fn answer(&self) -> Result<Vec<u8>, PluginError> {
        let program = find(self.plugin, self.bin_dir)?;
        let failed = |source| PluginError::Run {
            plugin: self.plugin.to_owned(),
            source,
        };
        let begun = Instant::now();
        let mut child = self.spawn(&program).map_err(failed)?;
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let watched = watch(&mut child, self.limit, &mut stdout, &mut stderr);
        if !matches!(watched, Ok(Ending::Exited(_))) {
            kill_group(&mut child);
        }
        tracing::debug!(
            plugin = self.plugin,
            verb = %self.verb,
            ifname = self.ifname,
            milliseconds = begun.elapsed().as_secs_f64() * 1000.0,
            "a CNI plugin has ended"
        );
        let (plugin, ifname) = (self.plugin.to_owned(), self.ifname.to_owned());
        let (verb, limit) = (self.verb, self.limit);
        match watched.map_err(failed)? {
            Ending::Exited(status) if status.success() => Ok(stdout),
            Ending::Exited(status) => Err(PluginError::Failed {
                plugin,
                verb,
                ifname,
                reason: reason(status, &stdout, &stderr),
            }),
            Ending::TimedOut => Err(PluginError::Timeout {
                plugin,
                verb,
                ifname,
                limit,
            }),
            Ending::WroteTooMuch => Err(PluginError::TooMuch {
                plugin,
                verb,
                ifname,
            }),
        }
    }

    fn spawn(&self, program: &Path) -> io::Result<Child> {
        let mut config = File::from(memfd_create("cni-config", MemfdFlags::CLOEXEC)?);
        config.write_all(self.config)?;
        config.rewind()?;
        // The rest of the environment is passed on: plugins find iptables by PATH. A group of its
        // own keeps the terminal's Ctrl-C from killing a plugin between two of its steps.
        Command::new(program)
            .env("CNI_COMMAND", self.verb.to_string())
            .env("CNI_CONTAINERID", self.container_id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", self.bin_dir)
            .stdin(Stdio::from(config))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
    }
}

/// The program of `plugin`.
///
/// # Errors
/// [`PluginError::Missing`].
pub(super) fn find(plugin: &str, dir: &Path) -> Result<PathBuf, PluginError> {
    let program = dir.join(plugin);
    if program.is_file() {
        return Ok(program);
    }
    Err(PluginError::Missing {
        plugin: plugin.to_owned(),
        dir: dir.to_owned(),
    })
}

/// Reads what `child` writes until it has ended, or has used up its time or its output.
fn watch(
    child: &mut Child,
    limit: Duration,
    stdout: &mut Vec<u8>,
    stderr: &mut Vec<u8>,
) -> io::Result<Ending> {
    let deadline = Instant::now() + limit;
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut out = non_blocking(child.stdout.take().map(OwnedFd::from))?;
    let mut err = non_blocking(child.stderr.take().map(OwnedFd::from))?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Ending::TimedOut);
        }
        let ended = match wait(&pidfd, &out, &err, left)? {
            Wake::Ended => true,
            Wake::Other => false,
        };
        if !drain(&mut out, stdout, MAX_STDOUT_BYTES)? {
            return Ok(Ending::WroteTooMuch);
        }
        drain(&mut err, stderr, MAX_STDERR_BYTES)?;
        if ended {
            // A process that the plugin left behind may hold the pipes; it is not waited for.
            return Ok(Ending::Exited(child.wait()?));
        }
    }
}

/// What ended a wait: the process, or its output, a signal, the time.
enum Wake {
    Ended,
    Other,
}

fn wait(
    pidfd: &OwnedFd,
    out: &Option<File>,
    err: &Option<File>,
    left: Duration,
) -> io::Result<Wake> {
    let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
    fds.extend(
        [out, err]
            .into_iter()
            .flatten()
            .map(|file| PollFd::new(file, PollFlags::IN)),
    );
    // A span too long for the kernel's clock is as good as none.
    let timeout = Timespec::try_from(left).ok();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) if !fds[0].revents().is_empty() => Ok(Wake::Ended),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(Wake::Other),
        Err(error) => Err(error.into()),
    }
}

fn non_blocking(pipe: Option<OwnedFd>) -> io::Result<Option<File>> {
    if let Some(pipe) = &pipe {
        fcntl_setfl(pipe.as_fd(), OFlags::NONBLOCK)?;
    }
    Ok(pipe.map(File::from))
}

/// Reads what `pipe` holds now, keeps up to `max` bytes of it all, and drops the pipe at its end.
/// Returns whether everything was kept.
fn drain(pipe: &mut Option<File>, kept: &mut Vec<u8>, max: usize) -> io::Result<bool> {
    let mut whole = true;
    let mut chunk = [0; 8192];
    while let Some(file) = pipe {
        match file.read(&mut chunk) {
            Ok(0) => *pipe = None,
            Ok(count) => {
                let room = max.saturating_sub(kept.len()).min(count);
                kept.extend_from_slice(&chunk[..room]);
                whole &= room == count;
                if !whole {
                    // Whoever writes without end must not keep the caller here.
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(whole)
}

/// Ends the plugin and all that it started. Best effort: what is gone already needs no signal.
fn kill_group(child: &mut Child) {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.kill();
    let _ = child.wait();
}

/// Why a plugin failed, in its own words.
fn reason(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> String {
    if let Ok(error) = serde_json::from_slice::<WireError>(stdout) {
        let mut text = quote(error.msg.as_deref().unwrap_or_default());
        if text.is_empty() {
            text.push_str("no message");
        }
        if let Some(details) = error.details.filter(|details| !details.is_empty()) {
            text.push_str(&format!(" ({})", quote(&details)));
        }
        return format!("{text}, CNI error code {}", error.code);
    }
    let said = [stderr, stdout].into_iter().find(|text| !text.is_empty());
    let said = quote(&String::from_utf8_lossy(said.unwrap_or_default()));
    if said.is_empty() {
        return format!("{status}, without a word");
    }
    format!("{status}, saying {said}")
}

/// Foreign words, made fit for one line of a terminal.
fn quote(text: &str) -> String {
    let mut line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_QUOTE_CHARS)
        .collect();
    if text.trim().chars().nth(MAX_QUOTE_CHARS).is_some() {
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fixture::write_script;

    /// Runs a plugin that is the shell script `body`.
    fn answer(body: &str, limit: Duration) -> Result<String, PluginError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fake");
        write_script(&path, &format!("#!/bin/sh\n{body}\n"));
        let run = Run {
            plugin: "fake",
            bin_dir: dir.path(),
            verb: Verb::Add,
            container_id: "00000000000000ab",
            netns: Path::new("/var/run/netns/x"),
            ifname: "eth0",
            args: "IgnoreUnknown=1",
            config: br#"{"hello":1}"#,
            limit,
        };
        loop {
            match run.answer() {
                // Another test's fork may hold the script open for writing for a moment (ETXTBSY).
                Err(PluginError::Run { source, .. })
                    if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
                other => return other.map(|out| String::from_utf8(out).unwrap()),
            }
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_plugin_gets_its_configuration_on_stdin_and_the_rest_by_its_environment() {
        let said = answer(
            r#"cat; echo " $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS""#,
            LONG,
        );
        assert_eq!(
            said.unwrap(),
            "{\"hello\":1} ADD 00000000000000ab /var/run/netns/x eth0 IgnoreUnknown=1\n"
        );
    }

    #[test]
    fn an_error_is_told_in_the_plugins_own_words() {
        for (body, expected) in [
            (
                r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"no pool","details":"try later"}'; exit 1"#,
                "the CNI plugin fake failed ADD of eth0: no pool (try later), CNI error code 11",
            ),
            (
                r#"echo '{"code":100}'; exit 1"#,
                "the CNI plugin fake failed ADD of eth0: no message, CNI error code 100",
            ),
            (
                r"printf 'line\033[31m one\nline two' >&2; exit 3",
                "the CNI plugin fake failed ADD of eth0: exit status: 3, saying line [31m one line two",
            ),
            (
                "exit 4",
                "the CNI plugin fake failed ADD of eth0: exit status: 4, without a word",
            ),
        ] {
            assert_eq!(answer(body, LONG).unwrap_err().to_string(), expected);
        }
        let long = answer("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", LONG);
        assert!(long.unwrap_err().to_string().len() < 1000);
    }

    #[test]
    fn a_plugin_that_does_not_end_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let body = format!("sleep 61 & echo $! $$ > {}; wait", pids.display());
        let began = Instant::now();
        let error = answer(&body, Duration::from_millis(400)).unwrap_err();
        assert!(matches!(error, PluginError::Timeout { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(30));
        for pid in std::fs::read_to_string(pids).unwrap().split_whitespace() {
            let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
            // What is reaped already has no descriptor; what is killed makes it readable.
            if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
                let mut ends = [PollFd::new(&process, PollFlags::IN)];
                let patience = Timespec {
                    tv_sec: 10,
                    tv_nsec: 0,
                };
                assert_eq!(poll(&mut ends, Some(&patience)), Ok(1), "{pid:?} lives");
            }
        }
    }

    #[test]
    fn endless_output_is_cut_off() {
        let error = answer("exec yes", LONG).unwrap_err();
        assert!(matches!(error, PluginError::TooMuch { .. }), "{error}");
        // Too much on stderr is no failure.
        let error = answer("exec yes >&2", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, PluginError::Timeout { .. }), "{error}");
        let noisy = answer("head -c 3000000 /dev/zero >&2; echo ok", LONG);
        assert_eq!(noisy.unwrap(), "ok\n");
    }

    #[test]
    fn a_process_that_the_plugin_leaves_behind_is_not_waited_for() {
        let began = Instant::now();
        assert_eq!(answer("sleep 20 & echo ok", LONG).unwrap(), "ok\n");
        assert!(began.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn a_missing_plugin_is_named_with_its_folder() {
        let error = find("bridge", Path::new("/opt/none")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the CNI plugin bridge is not in /opt/none"
        );
    }
}
