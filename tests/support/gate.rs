//! A gate before a server: what the server sends passes as far as the test lets it.
//!
//! ```text
//! client ──▶ gate ──▶ server
//!        ◀── │ ◀──    so many bytes, then it holds, until more are let through or all connections are cut
//! ```

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

#[derive(Default)]
struct State {
    /// Bytes that may still pass.
    open: u64,
    /// Bytes that have passed.
    passed: u64,
    /// Connections with bytes that may not pass.
    held: usize,
    /// By a number that none of them has after another.
    connections: HashMap<u64, TcpStream>,
    next: u64,
    over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A gate that goes with the test. It begins closed.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Gate {
    /// A gate before `server`.
    pub(crate) fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let gate = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if gate.lock().over {
                    break;
                }
                relay(&gate, client.unwrap(), server);
            }
        });
        Self { address, shared }
    }

    /// As users call the image `name` behind it.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.address)
    }

    /// Lets so many more bytes pass.
    pub(crate) fn let_through(&self, bytes: u64) {
        let mut state = self.shared.lock();
        state.open = state.open.saturating_add(bytes);
        self.shared.changed.notify_all();
    }

    /// Breaks off all connections, and waits until nothing is held any more.
    pub(crate) fn cut(&self) {
        let mut state = self.shared.lock();
        for (_, connection) in state.connections.drain() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Who holds something finds that nobody wants it.
        self.shared.changed.notify_all();
        while state.held > 0 {
            state = self.shared.changed.wait(state).unwrap();
        }
    }
}

/// What tests do that kill and halt.
#[cfg(feature = "failpoints")]
impl Gate {
    /// Lets nothing more pass.
    pub(crate) fn close(&self) {
        self.shared.lock().open = 0;
    }

    /// Bytes that have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.shared.lock().passed
    }

    /// Waits until something may not pass.
    pub(crate) fn wait_until_held(&self) {
        /// Wait for a client to come to the gate, on a busy host.
        const SOON: std::time::Duration = std::time::Duration::from_secs(60);
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, SOON, |state| state.held == 0);
        assert!(!waited.unwrap().1.timed_out(), "nothing comes to the gate");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.cut();
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits until some of `wanted` bytes may pass, and says how many; none once the connection is cut.
    fn ask(&self, wanted: usize, connection: u64) -> usize {
        let mut state = self.lock();
        if state.open == 0 {
            state.held += 1;
            self.changed.notify_all();
            while state.open == 0 && state.has(connection) {
                state = self.changed.wait(state).unwrap();
            }
            state.held -= 1;
            self.changed.notify_all();
        }
        if !state.has(connection) {
            return 0;
        }
        let granted = wanted.min(usize::try_from(state.open).unwrap_or(usize::MAX));
        state.open -= granted as u64;
        state.passed += granted as u64;
        granted
    }
}

impl State {
    fn add(&mut self, client: &TcpStream) -> u64 {
        self.next += 1;
        let client = client.try_clone().unwrap();
        self.connections.insert(self.next, client);
        self.next
    }

    /// Whether the connection has not been cut.
    fn has(&self, connection: u64) -> bool {
        self.connections.contains_key(&connection)
    }
}

/// Passes on what both sides say, in threads that end with the connection.
fn relay(gate: &Arc<Shared>, client: TcpStream, server: SocketAddr) {
    let server = TcpStream::connect(server).unwrap();
    let connection = gate.lock().add(&client);
    let (mut asks, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut asks, &mut asked);
        let _ = asked.shutdown(Shutdown::Both);
    });
    let gate = gate.clone();
    thread::spawn(move || {
        // What ends on one side ends on the other.
        let _ = answer(&gate, server, &client, connection);
        let _ = client.shutdown(Shutdown::Both);
        gate.lock().connections.remove(&connection);
    });
}

fn answer(
    gate: &Shared,
    mut server: TcpStream,
    mut client: &TcpStream,
    connection: u64,
) -> std::io::Result<()> {
    let mut part = [0; 4096];
    loop {
        let length = server.read(&mut part)?;
        let mut rest = &part[..length];
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            let (now, later) = rest.split_at(gate.ask(rest.len(), connection));
            if now.is_empty() {
                return Ok(());
            }
            client.write_all(now)?;
            rest = later;
        }
    }
}
