//! The steps of the verbs, at each of which a test can end the process as `kill -9` does.
//!
//! ```text
//! reach("clone: disk copied") ──▶ a line in the list ──▶ is it the step that was asked for? ──▶ SIGKILL
//!                                      └── the second time: "clone: disk copied (2)"
//! ```
//! A name says what has just been done. A test runs a verb once undisturbed, reads the list, and then runs
//! it once for each line; so a new step is tested as soon as it has a name.
//!
//! Invariant: without the feature `failpoints` there is nothing of this in the program, and with it
//! nothing happens in a process that was not [armed](arm).

#[cfg(feature = "failpoints")]
pub use armed::{Points, arm, reach};

/// Says that what `step` names has just been done.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_step: &'static str) {}

#[cfg(feature = "failpoints")]
mod armed {
    use std::collections::HashMap;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use rustix::process::{Signal, getpid, kill_process};

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// What is to happen in this process, and at which step.
    #[derive(Debug, Default)]
    pub struct Points {
        /// Where it ends, by SIGKILL.
        pub kill: Option<String>,
        /// Where it stands still, by SIGSTOP, until somebody sends SIGCONT.
        pub stop: Option<String>,
        /// A file that gets a line for each step that is reached.
        pub list: Option<PathBuf>,
    }

    #[derive(Debug)]
    struct Armed {
        points: Points,
        /// How often each step has been reached.
        reached: Mutex<HashMap<&'static str, u32>>,
    }

    /// Arms this process, once: what comes later is ignored.
    pub fn arm(points: Points) {
        let reached = Mutex::default();
        let _ = ARMED.set(Armed { points, reached });
    }

    /// Says that what `step` names has just been done.
    ///
    /// # Panics
    /// The list cannot be written: what a test would read there would not be all.
    pub fn reach(step: &'static str) {
        let Some(armed) = ARMED.get() else { return };
        let name = armed.count(step);
        armed.note(&name);
        for (at, signal) in [
            (&armed.points.stop, Signal::STOP),
            (&armed.points.kill, Signal::KILL),
        ] {
            if at.as_ref() == Some(&name) {
                // Neither can be refused by oneself.
                let _ = kill_process(getpid(), signal);
            }
        }
    }

    impl Armed {
        /// The step's name, with a number from the second time on.
        fn count(&self, step: &'static str) -> String {
            let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
            let times = reached.entry(step).or_default();
            *times += 1;
            match *times {
                1 => step.to_owned(),
                times => format!("{step} ({times})"),
            }
        }

        fn note(&self, name: &str) {
            let Some(list) = &self.points.list else {
                return;
            };
            let noted = OpenOptions::new()
                .create(true)
                .append(true)
                .open(list)
                // In one write: threads that reach steps at once each have a line of their own.
                .and_then(|mut list| list.write_all(format!("{name}\n").as_bytes()));
            if let Err(error) = noted {
                panic!("cannot write the list {}: {error}", list.display());
            }
        }
    }
}
