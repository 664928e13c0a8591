//! Where the fuzz target enters: a function that takes any bytes.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::protocol::{self, Report, Request, Response};
use super::server;

/// Bytes of a connection: so few that all answers find room in its socket.
const MAX: usize = 2048;

/// What comes through a VM process's control socket, and what may come out of one.
pub fn control(data: &[u8]) {
    let data = &data[..data.len().min(MAX)];
    let (mut command, process) = UnixStream::pair().expect("two sockets");
    command.write_all(data).expect("room");
    command.shutdown(Shutdown::Write).expect("an end");
    let served = server::serve(process, &|request: Request, _: &server::Peer<'_>| {
        let mut bytes = Vec::new();
        protocol::send(&mut bytes, &request).expect("what was received can be sent");
        let again = protocol::receive(&mut &bytes[..]).expect("what was sent can be received");
        assert_eq!(again, Some(request));
        Response::Done(serde_json::Value::Null)
    });
    let mut answers = Vec::new();
    // An end that leaves requests unread is an error, after the answers.
    let _ = command.read_to_end(&mut answers);
    let mut rest = &answers[..];
    while let Some(Response::Done(_)) = protocol::receive(&mut rest).expect("whole answers") {}
    drop(served);

    let mut rest = data;
    while let Ok(Some(_)) = protocol::receive::<Response>(&mut rest) {}
    let _ = serde_json::from_slice::<Report>(data);
}

/// So that the entry stays alive where nobody fuzzes.
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // A look, not a search.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_harm_a_control_socket(count in 0..90_usize, data in any::<Vec<u8>>()) {
            control(&data);
            let mut requests = Vec::new();
            for _ in 0..count {
                protocol::send(&mut requests, &Request::Info).unwrap();
            }
            control(&[requests, data].concat());
        }
    }
}
