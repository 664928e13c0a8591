//! What a program says while it runs.

use std::io::Read;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Wait for what a guest or a program does some hundred times a second, on a busy host.
const SOON: Duration = Duration::from_secs(60);

/// The output of a program.
pub(crate) struct Heard {
    parts: Receiver<Vec<u8>>,
    text: String,
}

impl Heard {
    /// Reads `output` to its end, whether anybody listens or not.
    pub(crate) fn of(mut output: impl Read + Send + 'static) -> Self {
        let (tell, parts) = channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            // A terminal whose other end is closed fails.
            while let Ok(length @ 1..) = output.read(&mut part) {
                let _ = tell.send(part[..length].to_vec());
            }
        });
        Self {
            parts,
            text: String::new(),
        }
    }

    /// Waits until it has said `text`; returns what it said before, and forgets both.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(at) = self.text.find(text) {
                let rest = self.text.split_off(at + text.len());
                let said = std::mem::replace(&mut self.text, rest);
                return said[..at].to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let part = self.parts.recv_timeout(left);
            let part = part.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&part));
        }
    }

    /// Waits until it says no more; returns what it said since.
    pub(crate) fn rest(mut self) -> String {
        for part in self.parts {
            self.text.push_str(&String::from_utf8_lossy(&part));
        }
        self.text
    }
}
