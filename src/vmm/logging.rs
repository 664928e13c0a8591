//! The log of a VM process.
//!
//! Engine threads run under seccomp filters that allow `futex` and `write` but not what a log with
//! rotation or colours may need. So their records go over a channel, to a thread that was started
//! before any filter and writes them to standard error, which is the VM's log file.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::sys::thread;

/// What the writing thread is sent.
enum Message {
    Record(Vec<u8>),
    /// To be answered when all that came before is written.
    Flush(Sender<()>),
}

/// The way to the writing thread.
static MESSAGES: OnceLock<Sender<Message>> = OnceLock::new();

/// Sends each record as one message.
#[derive(Clone, Debug)]
struct ChannelWriter {
    messages: Sender<Message>,
}

impl Write for ChannelWriter {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        // The receiver lives as long as the process.
        let _ = self.messages.send(Message::Record(record.to_vec()));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for ChannelWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Sends all that is logged in this process, also through the `log` crate, to standard error.
/// To be called once, before any thread that may be filtered.
///
/// # Errors
/// The writing thread cannot be started, or a logger is installed already.
pub fn install() -> io::Result<()> {
    let (messages, incoming) = channel();
    std::thread::Builder::new()
        .name("log".into())
        .stack_size(thread::STACK_BYTES)
        .spawn(move || {
            for message in incoming {
                match message {
                    // Where the log cannot be written, there is no place left to say so.
                    Message::Record(record) => drop(io::stderr().write_all(&record)),
                    Message::Flush(done) => drop(done.send(())),
                }
            }
        })?;
    // What an engine says below a warning is for its authors: a line for each device and queue.
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("cocoon", LevelFilter::INFO);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(ChannelWriter {
            messages: MESSAGES.get_or_init(|| messages).clone(),
        });
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(io::Error::other)
}

/// Waits until all that was logged is written: before this process ends, or becomes another one.
pub fn flush() {
    let (done, written) = channel();
    if let Some(messages) = MESSAGES.get()
        && messages.send(Message::Flush(done)).is_ok()
    {
        // An error says that there is nobody who writes.
        let _ = written.recv();
    }
}
