//! What happens to the VM after its boot, told from what the VMM reports.
//!
//! ```text
//!  reports          rebooting, rebooted ──────────────────────────▶ Rebooted
//!                   rebooting, and it is not to ──────▶ end VMM ─▶ Stopped(GuestReset)
//!                   shut down, the VMM is still there ─▶ end VMM ─▶ Stopped(GuestPowerOff)
//!                   panicked, and no reboot in time ──▶ end VMM ─▶ Stopped(GuestPanic)
//!  end of the VMM   someone asked (power_off, SIGTERM) ──────────▶ Stopped(Stopped)
//!                   no one asked ────────────────────────────────▶ Stopped(EngineFailure)
//! ```
//! Invariant: `Stopped` comes once, last, and after the VMM's main thread and API server are gone.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use cocoon::vm::spec::OnReset;
use cocoon::vmm::engine::{Event, StopReason};
use serde::Deserialize;

use crate::client::Client;
use crate::error::{Cause, Error, chain};

/// Wait for a panicked guest to reboot itself, as `kernel.panic` may tell it to after some seconds;
/// beyond a minute and a margin it is taken to hang, which is what the default of 0 does.
const PANIC_GRACE: Duration = Duration::from_secs(70);

/// Wait for the API server's thread after the VMM's own; it has nothing left to do.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// What the watching threads tell.
#[derive(Debug)]
pub(crate) enum Note {
    /// The VMM reported an event.
    Report(Report),
    /// The VMM's main thread is over.
    Ended(Result<(), Cause>),
    /// Its API server is over too, and the socket removed.
    Closed,
}

/// An event of the VMM that matters to cocoon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The guest has reset itself.
    Rebooting,
    /// It runs again.
    Rebooted,
    /// The VM is gone from the VMM.
    ShutDown,
    /// The guest's kernel panicked.
    Panicked,
}

/// The VMM's JSON of an event (`event_monitor`, struct `Event`).
#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    properties: Option<HashMap<String, String>>,
}

impl Report {
    /// The report in an event's JSON, if it is one that matters.
    pub(crate) fn read(json: &str) -> Option<Self> {
        let wire: Wire<'_> = serde_json::from_str(json).ok()?;
        match (wire.source.as_ref(), wire.event.as_ref()) {
            ("vm", "rebooting") => Some(Self::Rebooting),
            ("vm", "rebooted") => Some(Self::Rebooted),
            ("vm", "shutdown") => Some(Self::ShutDown),
            // A guest with a crash kernel loaded says so instead, and looks after itself.
            ("guest", "panic") => {
                (wire.properties?.get("event")? == "panic").then_some(Self::Panicked)
            }
            _ => None,
        }
    }
}

/// Follows one VM to its end.
#[derive(Debug)]
pub(crate) struct Life {
    /// Where the watching threads tell.
    pub(crate) notes: Receiver<Note>,
    /// To whom cocoon listens.
    pub(crate) events: Sender<Event>,
    /// The VMM.
    pub(crate) client: Arc<Client>,
    /// Set when cocoon or a signal asked for the end.
    pub(crate) asked_to_end: Arc<AtomicBool>,
    /// The VMM itself boots a VM again, or tries to: where it is not to, it is ended then.
    pub(crate) on_reset: OnReset,
}

impl Life {
    /// Tells what happens until the VM is over.
    pub(crate) fn follow(self) {
        let reason = self.until_the_end();
        // The receiver may have been dropped by a process that is ending anyway.
        let _ = self.events.send(Event::Stopped(reason));
    }

    fn until_the_end(&self) -> StopReason {
        let mut found = None;
        let mut panicked: Option<Instant> = None;
        let end = loop {
            match self.next(panicked) {
                Some(Note::Report(Report::Rebooting)) => {
                    panicked = None;
                    if self.on_reset == OnReset::End {
                        found = Some(StopReason::GuestReset);
                    }
                }
                Some(Note::Report(Report::Rebooted)) if self.on_reset == OnReset::End => {
                    self.end_vmm()
                }
                Some(Note::Report(Report::Rebooted)) => {
                    // As above.
                    let _ = self.events.send(Event::Rebooted);
                }
                Some(Note::Report(Report::Panicked)) => {
                    log::warn!("the guest's kernel panicked");
                    panicked = Some(Instant::now() + PANIC_GRACE);
                }
                Some(Note::Report(Report::ShutDown)) => {
                    // A VMM that is ending itself takes no more questions.
                    let vmm_ends = matches!(self.client.info(), Err(Error::Gone));
                    if found.is_none() && !vmm_ends {
                        found = Some(StopReason::GuestPowerOff);
                        self.end_vmm();
                    }
                }
                Some(Note::Ended(end)) => break end,
                Some(Note::Closed) => {}
                None => {
                    panicked = None;
                    found = Some(StopReason::GuestPanic);
                    self.end_vmm();
                }
            }
        };
        match &end {
            // There may be nothing left to boot, which is why it was not to.
            Err(cause) if found == Some(StopReason::GuestReset) => {
                log::debug!("the VMM has ended: {}", chain(cause));
            }
            Err(cause) => log::error!("the VMM failed: {}", chain(cause)),
            Ok(()) => {}
        }
        self.until_closed();
        verdict(found, self.asked_to_end.load(Ordering::SeqCst))
    }

    /// The next note, or nothing when `deadline` has passed.
    fn next(&self, deadline: Option<Instant>) -> Option<Note> {
        let gone = || Note::Ended(Err(Cause::text("its threads are gone")));
        let Some(deadline) = deadline else {
            return Some(self.notes.recv().unwrap_or_else(|_| gone()));
        };
        let patience = deadline.saturating_duration_since(Instant::now());
        match self.notes.recv_timeout(patience) {
            Ok(note) => Some(note),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(gone()),
        }
    }

    fn end_vmm(&self) {
        if let Err(error) = self.client.shut_down() {
            log::error!("cannot end the VMM: {}", chain(&error));
        }
    }

    fn until_closed(&self) {
        let deadline = Instant::now() + CLOSE_GRACE;
        loop {
            match self.next(Some(deadline)) {
                Some(Note::Closed) => return,
                Some(Note::Ended(_)) | None => {
                    log::warn!("the VMM's API server does not end");
                    return;
                }
                Some(Note::Report(_)) => {}
            }
        }
    }
}

/// Why the VM is over: what was found out while it ran, else who asked for it.
fn verdict(found: Option<StopReason>, asked: bool) -> StopReason {
    match (found, asked) {
        (Some(reason), _) => reason,
        (None, true) => StopReason::Stopped,
        (None, false) => StopReason::EngineFailure,
    }
}

/// Ends the VMM of a VM that never ran, and waits until its threads are gone.
///
/// # Errors
/// The VMM is stuck.
pub(crate) fn abandon(client: &Client, notes: &Receiver<Note>) -> Result<(), Error> {
    client.shut_down()?;
    let deadline = Instant::now() + CLOSE_GRACE;
    loop {
        let patience = deadline.saturating_duration_since(Instant::now());
        match notes.recv_timeout(patience) {
            Ok(Note::Closed) => return Ok(()),
            Ok(_) => {}
            Err(_) => return Err(Error::Silent(CLOSE_GRACE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use vmm::api::ApiRequest;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    fn event(source: &str, event: &str, properties: &str) -> String {
        format!(
            r#"{{"timestamp":{{"secs":1,"nanos":2}},"source":"{source}","event":"{event}","properties":{properties}}}"#
        )
    }

    #[test]
    fn only_events_that_matter_are_read() {
        let panic = r#"{"event":"panic"}"#;
        let crash = r#"{"event":"crash_loaded"}"#;
        let cases = [
            (event("vm", "rebooting", "null"), Some(Report::Rebooting)),
            (event("vm", "rebooted", "null"), Some(Report::Rebooted)),
            (event("vm", "shutdown", "null"), Some(Report::ShutDown)),
            (event("guest", "panic", panic), Some(Report::Panicked)),
            (event("guest", "panic", crash), None),
            (event("guest", "panic", "null"), None),
            (event("vmm", "shutdown", "null"), None),
            (
                event("virtio-device", "activated", r#"{"id":"_net0"}"#),
                None,
            ),
            ("no json".to_owned(), None),
        ];
        for (json, report) in cases {
            assert_eq!(Report::read(&json), report, "{json}");
        }
    }

    #[test]
    fn an_end_that_no_one_asked_for_is_a_failure() {
        assert_eq!(verdict(None, false), StopReason::EngineFailure);
        assert_eq!(verdict(None, true), StopReason::Stopped);
        let off = StopReason::GuestPowerOff;
        assert_eq!(verdict(Some(off), true), off);
    }

    /// What a VM's life looks like when its VMM has already gone away.
    fn lived(asked: bool, on_reset: OnReset, notes: Vec<Note>) -> Vec<Event> {
        let (tell, told) = channel();
        for note in notes {
            tell.send(note).unwrap();
        }
        drop(tell);
        let (requests, inbox) = channel::<ApiRequest>();
        drop(inbox);
        let (events, seen) = channel();
        Life {
            notes: told,
            events,
            client: Arc::new(Client::new(requests, EventFd::new(0).unwrap())),
            asked_to_end: Arc::new(AtomicBool::new(asked)),
            on_reset,
        }
        .follow();
        seen.iter().collect()
    }

    #[test]
    fn a_reboot_is_told_and_the_stop_comes_last() {
        let notes = vec![
            Note::Report(Report::Rebooting),
            Note::Report(Report::Rebooted),
            Note::Report(Report::ShutDown),
            Note::Ended(Ok(())),
            Note::Closed,
        ];
        let stopped = Event::Stopped(StopReason::Stopped);
        assert_eq!(
            lived(true, OnReset::Boot, notes),
            [Event::Rebooted, stopped]
        );
    }

    #[test]
    fn a_reset_after_which_nothing_is_to_boot_is_the_end_whether_something_did_or_not() {
        let reset = Event::Stopped(StopReason::GuestReset);
        let rebooting = || Note::Report(Report::Rebooting);
        for notes in [
            vec![
                rebooting(),
                Note::Report(Report::Rebooted),
                Note::Ended(Ok(())),
            ],
            vec![rebooting(), Note::Ended(Err(Cause::text("no kernel")))],
        ] {
            assert_eq!(lived(false, OnReset::End, notes), [reset]);
        }
    }

    #[test]
    fn a_failed_vmm_is_an_engine_failure_even_if_its_threads_vanish() {
        let failed = [Event::Stopped(StopReason::EngineFailure)];
        let ended = Note::Ended(Err(Cause::text("broken")));
        assert_eq!(
            lived(false, OnReset::Boot, vec![ended, Note::Closed]),
            failed
        );
        assert_eq!(lived(false, OnReset::Boot, vec![]), failed);
    }
}
