//! Terminals: raw mode that is always given back, window sizes, pseudo terminals.
//!
//! ```text
//!  user's terminal ◀─RawMode─ cocoon vm console        Pty { main ◀──▶ path }
//!   (restored on drop, or by the panic hook)             engine        console hub
//! ```
//! Invariant: a terminal that [`RawMode`] made raw has its old settings again when the guard is
//! dropped and when the process panics, also where a panic aborts. A signal that would kill the
//! process must be caught and turned into a return (see `console::signals`).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, PoisonError};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

/// How many characters a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub cols: u16,
}

impl WindowSize {
    /// Whether both sides are known; a terminal that does not know its size says 0.
    pub fn is_known(self) -> bool {
        self.rows > 0 && self.cols > 0
    }
}

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    rustix::termios::isatty(fd)
}

/// The window size of the terminal `fd`, by TIOCGWINSZ. Both ends of a pty share one.
///
/// # Errors
/// `fd` is no terminal.
pub fn window_size(fd: impl AsFd) -> io::Result<WindowSize> {
    let size = rustix::termios::tcgetwinsize(fd)?;
    Ok(WindowSize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

/// Sets the window size of the terminal `fd`, by TIOCSWINSZ; its foreground processes get SIGWINCH
/// if it changed.
///
/// # Errors
/// `fd` is no terminal.
pub fn set_window_size(fd: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(fd, size)?)
}

/// Makes the terminal `fd` raw for good: every byte passes unchanged, nothing is echoed.
///
/// # Errors
/// `fd` is no terminal.
pub fn make_raw(fd: impl AsFd) -> io::Result<()> {
    let mut settings = rustix::termios::tcgetattr(&fd)?;
    settings.make_raw();
    Ok(rustix::termios::tcsetattr(
        fd,
        OptionalActions::Now,
        &settings,
    )?)
}

/// A terminal that is raw for as long as this lives.
#[derive(Debug)]
pub struct RawMode {
    saved: Arc<Saved>,
}

#[derive(Debug)]
struct Saved {
    terminal: OwnedFd,
    settings: Termios,
}

/// The terminals that are raw now, for the panic hook: releases abort on a panic and drop nothing.
static RAW: Mutex<Vec<Arc<Saved>>> = Mutex::new(Vec::new());
static PANIC_HOOK: Once = Once::new();

impl RawMode {
    /// Makes the terminal `fd` raw until the guard is dropped.
    ///
    /// # Errors
    /// `fd` is no terminal, or the process has no descriptor left.
    pub fn enter(fd: impl AsFd) -> io::Result<Self> {
        PANIC_HOOK.call_once(restore_on_panic);
        let saved = Arc::new(Saved {
            settings: rustix::termios::tcgetattr(&fd)?,
            terminal: fd.as_fd().try_clone_to_owned()?,
        });
        let mut raw = RAW.lock().unwrap_or_else(PoisonError::into_inner);
        raw.push(Arc::clone(&saved));
        drop(raw);
        let guard = Self { saved };
        make_raw(fd)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let mut raw = RAW.lock().unwrap_or_else(PoisonError::into_inner);
        raw.retain(|saved| !Arc::ptr_eq(saved, &self.saved));
        drop(raw);
        self.saved.restore();
    }
}

impl Saved {
    /// A failure means that the terminal is gone, and its settings with it.
    fn restore(&self) {
        // Not Drain: a terminal that is stopped would keep the process from ending.
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.settings);
    }
}

fn restore_on_panic() {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The panic may have come while the list was held.
        if let Ok(raw) = RAW.try_lock() {
            raw.iter().for_each(|saved| saved.restore());
        }
        next(panic);
    }));
}

/// A pseudo terminal.
#[derive(Debug)]
pub struct Pty {
    /// The end that made it.
    pub main: OwnedFd,
    /// Where the other end is opened, such as `/dev/pts/3`. Open it with `O_NOCTTY`: a session
    /// leader without a terminal would otherwise get it as its own.
    pub path: PathBuf,
}

/// Makes a pseudo terminal, with the settings of a new terminal (echo on; see [`make_raw`]).
///
/// # Errors
/// The system has no pseudo terminal left, or `/dev/pts` is not mounted.
pub fn open_pty() -> io::Result<Pty> {
    let main = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&main)?;
    rustix::pty::unlockpt(&main)?;
    let path = rustix::pty::ptsname(&main, Vec::new())?.into_bytes();
    Ok(Pty {
        main,
        path: PathBuf::from(OsString::from_vec(path)),
    })
}

impl Pty {
    /// Opens the other end, by TIOCGPTPEER, so that mounts and renames of `/dev/pts` do not matter.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn open_peer(&self) -> io::Result<OwnedFd> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        Ok(rustix::pty::ioctl_tiocgptpeer(&self.main, flags)?)
    }
}

/// A second descriptor for what is written to `fd`, of which a full terminal or pipe does not block
/// the writer. The flag belongs to an opening, and the opening of a standard stream to all its
/// sharers, so it is opened anew; what cannot be (a socket, someone else's terminal) is only
/// duplicated and blocks as before.
///
/// # Errors
/// The process has no descriptor left.
pub fn writer_of(fd: impl AsFd) -> io::Result<OwnedFd> {
    let fd = fd.as_fd();
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    // A new opening of a regular file would begin at its start.
    if kind == FileType::Fifo || is_terminal(fd) {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Ok(own) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(own);
        }
    }
    fd.try_clone_to_owned()
}

/// Makes reads and writes of `fd` return `WouldBlock` where they would wait. Whoever shares the
/// opening of `fd` is affected too.
///
/// # Errors
/// The kernel refused, which it does for no terminal, pipe or socket.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::{LocalModes, tcgetattr};

    fn echoes(fd: impl AsFd) -> bool {
        tcgetattr(fd)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO)
    }

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let pty = open_pty().unwrap();
        let user = pty.open_peer().unwrap();
        assert!(echoes(&user));
        let raw = RawMode::enter(&user).unwrap();
        assert!(!echoes(&user));
        drop(raw);
        assert!(echoes(&user));
    }

    /// In a process of its own, because the hook restores every terminal of its process.
    #[test]
    fn raw_mode_ends_with_a_panic_that_aborts() {
        const CHILD: &str = "COCOON_TEST_PANICS_IN_RAW_MODE";
        if std::env::var_os(CHILD).is_some() {
            let _raw = RawMode::enter(std::io::stdin()).unwrap();
            assert!(!echoes(std::io::stdin()));
            let _ = std::panic::catch_unwind(|| panic!("on purpose"));
            // As in a release: nothing is dropped.
            std::process::abort();
        }
        let pty = open_pty().unwrap();
        let user = pty.open_peer().unwrap();
        let name = "sys::tty::tests::raw_mode_ends_with_a_panic_that_aborts";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .stdin(user.try_clone().unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("on purpose"), "{said}");
        assert!(echoes(&user));
    }

    #[test]
    fn both_ends_of_a_pty_share_the_window_size() {
        let pty = open_pty().unwrap();
        let size = WindowSize {
            rows: 50,
            cols: 132,
        };
        set_window_size(&pty.main, size).unwrap();
        assert_eq!(window_size(pty.open_peer().unwrap()).unwrap(), size);
    }

    #[test]
    fn the_path_of_a_pty_leads_to_its_other_end() {
        let pty = open_pty().unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let other = rustix::fs::open(&pty.path, flags, Mode::empty()).unwrap();
        make_raw(&other).unwrap();
        rustix::io::write(&other, b"\x00\n\xff").unwrap();
        let mut got = [0; 8];
        assert_eq!(rustix::io::read(&pty.main, &mut got).unwrap(), 3);
        assert_eq!(&got[..3], b"\x00\n\xff");
    }

    #[test]
    fn the_writer_of_a_pipe_does_not_block_while_the_pipe_itself_does() {
        let (_reader, pipe) = rustix::pipe::pipe().unwrap();
        let writer = writer_of(&pipe).unwrap();
        while rustix::io::write(&writer, &[0; 65536]).is_ok() {}
        let flags = rustix::fs::fcntl_getfl(&pipe).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn the_writer_of_a_file_goes_on_where_the_file_is() {
        use std::io::{Read, Seek, Write};
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one ").unwrap();
        rustix::io::write(writer_of(&file).unwrap(), b"two").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
    }

    #[test]
    fn what_is_no_terminal_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(RawMode::enter(&file).is_err());
        assert!(window_size(&file).is_err());
    }
}
