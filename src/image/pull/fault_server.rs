//! A registry for tests that goes wrong on demand: one image, HTTP/1.1 over plain sockets.

use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use serde_json::json;

use crate::image::manifest::Platform;
use crate::units::Digest;

/// What the server does with one request.
#[derive(Clone, Debug)]
pub(in crate::image) enum Fault {
    /// The answer breaks off after so many bytes of its body, although more was promised.
    Cut(usize),
    /// The body is shorter than the blob, and `Content-Length` agrees with it.
    Short(usize),
    /// More bytes follow than the blob has, and `Content-Length` agrees.
    Long(usize),
    /// The byte at this offset is another.
    Tamper(usize),
    /// The first of these, and then it breaks off there.
    TamperAndCut(usize, usize),
    /// `Range` is ignored.
    NoRange,
    /// A partial answer says that it begins here.
    SaysRange(u64),
    /// A bare answer of this status, with these header lines.
    Status(u16, &'static str),
    /// The answer begins, then nothing more comes until the server is dropped.
    Stall(usize),
}

#[derive(Default)]
struct State {
    /// Path to media type and content.
    content: Mutex<HashMap<String, (String, Vec<u8>)>>,
    /// Part of a path to what happens to its requests, one after the other.
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    requests: Mutex<Vec<String>>,
    /// What `Authorization` each request had.
    logins: Mutex<Vec<Option<String>>>,
    arrived: Condvar,
    /// The token that every request needs, if any, and the only login that gets it.
    token: Mutex<Option<(String, Option<String>)>>,
    over: AtomicBool,
}

pub(in crate::image) struct FaultServer {
    pub(in crate::image) address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

/// A layer to serve.
#[derive(Clone)]
pub(in crate::image) struct ServedLayer {
    pub(in crate::image) media_type: String,
    pub(in crate::image) sent: Vec<u8>,
    pub(in crate::image) diff_id: Digest,
}

impl ServedLayer {
    pub(in crate::image) fn digest(&self) -> Digest {
        Digest::of(&self.sent)
    }
}

impl FaultServer {
    pub(in crate::image) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let served = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.over.load(Ordering::SeqCst) {
                    break;
                }
                let served = served.clone();
                let stream = stream.unwrap();
                std::thread::spawn(move || serve(&served, &stream));
            }
        });
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    /// Serves an image of these layers as `<name>:latest`; gives the digest of its manifest.
    pub(in crate::image) fn put_image(&self, name: &str, layers: &[&ServedLayer]) -> Digest {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        self.put_image_with_config(
            name,
            layers,
            &json!({"architecture": Platform::host().architecture, "os": "linux",
                "created": "2026-01-02T03:04:05Z",
                "rootfs": {"type": "layers", "diff_ids": diff_ids}}),
        )
    }

    pub(in crate::image) fn put_image_with_config(
        &self,
        name: &str,
        layers: &[&ServedLayer],
        config: &serde_json::Value,
    ) -> Digest {
        let config = config.to_string().into_bytes();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({"mediaType": layer.media_type, "digest": layer.digest(), "size": layer.sent.len()})
            })
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "layers": descriptors,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config), "size": config.len()}})
        .to_string()
        .into_bytes();
        let digest = Digest::of(&manifest);
        self.put(
            &format!("/v2/{name}/blobs/{}", Digest::of(&config)),
            "",
            config,
        );
        for layer in layers {
            let path = format!("/v2/{name}/blobs/{}", layer.digest());
            self.put(&path, "application/octet-stream", layer.sent.clone());
        }
        self.put(
            &format!("/v2/{name}/manifests/{digest}"),
            media_type,
            manifest.clone(),
        );
        self.put(
            &format!("/v2/{name}/manifests/latest"),
            media_type,
            manifest,
        );
        digest
    }

    pub(in crate::image) fn put(&self, path: &str, media_type: &str, content: Vec<u8>) {
        let mut all = self.state.content.lock().unwrap();
        all.insert(path.to_owned(), (media_type.to_owned(), content));
    }

    /// Bytes of what is served at this path.
    pub(in crate::image) fn size(&self, path: &str) -> usize {
        self.state.content.lock().unwrap()[path].1.len()
    }

    /// The next requests whose paths contain `part` go wrong like this, one after the other.
    pub(in crate::image) fn fail(&self, part: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut all = self.state.faults.lock().unwrap();
        all.entry(part.to_owned()).or_default().extend(faults);
    }

    /// Every request needs this bearer token, which the token server gives to this `Authorization`,
    /// or to anyone.
    pub(in crate::image) fn require_token(&self, token: &str, login: Option<&str>) {
        *self.state.token.lock().unwrap() = Some((token.to_owned(), login.map(str::to_owned)));
    }

    /// Path, query and range of the requests whose paths contain `part`.
    pub(in crate::image) fn requests(&self, part: &str) -> Vec<String> {
        let all = self.state.requests.lock().unwrap();
        all.iter()
            .filter(|line| line.contains(part))
            .cloned()
            .collect()
    }

    /// Each `Authorization` that came.
    pub(in crate::image) fn logins(&self) -> Vec<String> {
        let all = self.state.logins.lock().unwrap();
        all.iter().flatten().cloned().collect()
    }

    /// Waits until a request whose path contains `part` has come.
    pub(in crate::image) fn wait_for_request(&self, part: &str) {
        let mut requests = self.state.requests.lock().unwrap();
        while !requests.iter().any(|line| line.contains(part)) {
            requests = self.state.arrived.wait(requests).unwrap();
        }
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect_timeout(&self.address, std::time::Duration::from_secs(5));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is of interest in a request's head.
struct Head {
    path: String,
    offset: Option<u64>,
    authorization: Option<String>,
}

fn read_head(reader: &mut impl std::io::BufRead) -> Option<Head> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut head = Head {
        path,
        offset: None,
        authorization: None,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(head);
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let range = value
                    .strip_prefix("bytes=")
                    .and_then(|v| v.strip_suffix('-'));
                head.offset = range.map(|offset| offset.parse().unwrap());
            }
            "authorization" => head.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
}

/// Serves a connection until it ends or a fault ends it.
fn serve(state: &State, stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some(head) = read_head(&mut reader) {
        {
            let mut requests = state.requests.lock().unwrap();
            state
                .logins
                .lock()
                .unwrap()
                .push(head.authorization.clone());
            let offset = head.offset.map(|offset| format!(" from {offset}"));
            requests.push(format!("{}{}", head.path, offset.unwrap_or_default()));
            state.arrived.notify_all();
        }
        if answer(state, stream, &head).is_none() {
            break;
        }
    }
    // A clean end, so that the client has read all that was sent.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(5)));
    let _ = reader.take(1 << 16).read_to_end(&mut Vec::new());
}

/// Answers one request; none if the connection must end.
fn answer(state: &State, stream: &TcpStream, head: &Head) -> Option<()> {
    let send = |head: &str, body: &[u8]| {
        let mut stream = stream;
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()
    };
    let bare = |status: u16, headers: &str| {
        format!("HTTP/1.1 {status} x\r\n{headers}Content-Length: 0\r\n\r\n")
    };
    if let Some((token, login)) = state.token.lock().unwrap().clone() {
        if head.path.starts_with("/token") {
            if login.is_some() && login != head.authorization {
                return send(&bare(401, ""), b"");
            }
            let body = json!({"token": token}).to_string();
            let head = format!("HTTP/1.1 200 x\r\nContent-Length: {}\r\n\r\n", body.len());
            return send(&head, body.as_bytes());
        }
        if head.authorization != Some(format!("Bearer {token}")) {
            let realm = format!("http://{}/token", stream.local_addr().ok()?);
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"test\"\r\n");
            return send(&bare(401, &challenge), b"");
        }
    }
    let path = head.path.split('?').next().unwrap_or_default();
    let Some((media_type, content)) = state.content.lock().unwrap().get(path).cloned() else {
        return send(&bare(404, ""), b"");
    };
    let fault = {
        let mut faults = state.faults.lock().unwrap();
        let queue = faults
            .iter_mut()
            .find(|(part, _)| head.path.contains(*part));
        queue.and_then(|(_, queue)| queue.pop_front())
    };
    let mut offset = usize::try_from(head.offset.unwrap_or(0)).unwrap();
    let mut said = offset as u64;
    let mut body = content;
    let size = body.len();
    let mut cut = None;
    let mut stall = false;
    match fault {
        None => {}
        Some(Fault::Cut(n)) => cut = Some(n),
        Some(Fault::Short(n)) => body.truncate(n.max(offset)),
        Some(Fault::Long(n)) => body.resize(size + n, 0),
        Some(Fault::Tamper(at)) => body[at] ^= 1,
        Some(Fault::TamperAndCut(at, n)) => {
            body[at] ^= 1;
            cut = Some(n);
        }
        Some(Fault::NoRange) => offset = 0,
        Some(Fault::SaysRange(start)) => said = start,
        Some(Fault::Status(status, headers)) => return send(&bare(status, headers), b""),
        Some(Fault::Stall(n)) => (cut, stall) = (Some(n), true),
    }
    if offset >= size && offset > 0 {
        return send(&bare(416, ""), b"");
    }
    let rest = &body[offset..];
    let status = if offset > 0 {
        format!("206 x\r\nContent-Range: bytes {said}-{}/{size}", size - 1)
    } else {
        "200 x".to_owned()
    };
    let promise = rest.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {promise}\r\n\r\n"
    );
    let sent = &rest[..cut.unwrap_or(rest.len()).min(rest.len())];
    send(&head, sent)?;
    if stall {
        // Ends when the client gives up.
        let mut stream = stream;
        let _ = stream.read(&mut [0]);
    }
    cut.is_none().then_some(())
}
