//! A file server for tests that goes wrong on demand: HTTP/1.1 over plain sockets, ranges and validators by
//! RFC 9110.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the server does with one request.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The answer breaks off after so many bytes of its body, although more was promised.
    Cut(usize),
    /// A bare answer of this status, with these header lines.
    Status(u16, String),
    /// A partial answer says that it is this part.
    SaysRange(&'static str),
    /// Of a part, only so many bytes are sent and promised.
    Less(usize),
    /// The file changes before this request is answered.
    Change(Vec<u8>),
    /// Headers as if the file had not changed, and another body.
    Lie(Vec<u8>),
    /// The answer begins, then nothing more comes until the client has gone.
    Stall(usize),
}

/// A file.
#[derive(Clone, Default)]
struct Served {
    content: Vec<u8>,
    media_type: &'static str,
    etag: Option<String>,
    last_modified: Option<&'static str>,
    knows_ranges: bool,
    /// Without `Content-Length`: the end of the connection is the end of the file.
    has_no_length: bool,
    changes: u32,
}

impl Served {
    fn replace(&mut self, content: Vec<u8>) {
        self.changes += 1;
        self.content = content;
        if let Some(etag) = &mut self.etag {
            *etag = format!("\"{}\"", self.changes);
        }
    }
}

/// A request, in lower case but for the path and the values.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

#[derive(Default)]
struct State {
    files: Mutex<HashMap<String, Served>>,
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    asked: Mutex<Vec<Asked>>,
    arrived: Condvar,
    /// At which bytes of bodies, counted over all connections, the server dies; and how many it has sent.
    deaths: Mutex<(VecDeque<u64>, u64)>,
    streams: Mutex<Vec<TcpStream>>,
    died: AtomicBool,
    over: AtomicBool,
    /// How many requests at once are served, and whose; the others are told to come back.
    most: Mutex<Option<usize>>,
    serving: Mutex<HashSet<SocketAddr>>,
}

impl State {
    /// Whether this request is one too many.
    fn is_too_many(&self, stream: &TcpStream) -> bool {
        let most = self.most.lock().unwrap().unwrap_or(usize::MAX);
        let mut serving = self.serving.lock().unwrap();
        let is_too_many = serving.len() >= most;
        if !is_too_many {
            serving.extend(stream.peer_addr().ok());
        }
        is_too_many
    }

    /// Before the last of an answer is sent: whoever has got it may ask at once.
    fn end_serving(&self, stream: &TcpStream, is_last: bool) {
        if let Some(peer) = stream.peer_addr().ok().filter(|_| is_last) {
            self.serving.lock().unwrap().remove(&peer);
        }
    }
}

pub(super) struct FileServer {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl FileServer {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let served = Arc::clone(&state);
        let thread = std::thread::spawn(move || listen(&served, listener, address));
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Serves a file with ranges and an `ETag`.
    pub(super) fn put(&self, path: &str, content: &[u8]) {
        let file = Served {
            content: content.to_vec(),
            media_type: "application/octet-stream",
            etag: Some("\"0\"".to_owned()),
            last_modified: Some("Wed, 21 Oct 2015 07:28:00 GMT"),
            knows_ranges: true,
            ..Served::default()
        };
        self.state
            .files
            .lock()
            .unwrap()
            .insert(path.to_owned(), file);
    }

    /// Serves a file as the plainest servers do: whole, or up to the end of the connection.
    pub(super) fn put_plain(&self, path: &str, content: &[u8], has_length: bool) {
        let file = Served {
            content: content.to_vec(),
            media_type: "text/html",
            has_no_length: !has_length,
            ..Served::default()
        };
        self.state
            .files
            .lock()
            .unwrap()
            .insert(path.to_owned(), file);
    }

    /// Changes by what a file is known.
    pub(super) fn mark(&self, path: &str, etag: Option<&str>, date: Option<&'static str>) {
        let mut files = self.state.files.lock().unwrap();
        let file = files.get_mut(path).unwrap();
        file.etag = etag.map(str::to_owned);
        file.last_modified = date;
    }

    pub(super) fn change(&self, path: &str, content: &[u8]) {
        let mut files = self.state.files.lock().unwrap();
        files.get_mut(path).unwrap().replace(content.to_vec());
    }

    /// The next requests for this path go wrong like this, one after the other.
    pub(super) fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut all = self.state.faults.lock().unwrap();
        all.entry(path.to_owned()).or_default().extend(faults);
    }

    /// Dies when it has sent so many bytes, all connections with it, and comes back; at each of these.
    pub(super) fn die_at(&self, deaths: impl IntoIterator<Item = u64>) {
        self.state.deaths.lock().unwrap().0.extend(deaths);
    }

    /// How many deaths are still to come.
    pub(super) fn deaths_left(&self) -> usize {
        self.state.deaths.lock().unwrap().0.len()
    }

    /// Serves so many connections at once, and tells others 503.
    pub(super) fn serve_at_most(&self, most: usize) {
        *self.state.most.lock().unwrap() = Some(most);
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// The `Range` of each request for this path.
    pub(super) fn ranges(&self, path: &str) -> Vec<String> {
        let asked = self.asked().into_iter().filter(|asked| asked.path == path);
        asked
            .map(|asked| asked.header("range").unwrap_or("all").to_owned())
            .collect()
    }

    pub(super) fn wait_for_request(&self) {
        let mut asked = self.state.asked.lock().unwrap();
        while asked.is_empty() {
            asked = self.state.arrived.wait(asked).unwrap();
        }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        wake(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes whoever accepts look up.
fn wake(address: SocketAddr) {
    let _ = TcpStream::connect_timeout(&address, Duration::from_secs(5));
}

fn listen(state: &Arc<State>, mut listener: TcpListener, address: SocketAddr) {
    loop {
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        if state.over.load(Ordering::SeqCst) {
            return;
        }
        if state.died.swap(false, Ordering::SeqCst) {
            drop((stream, listener));
            // Another process may have the port for a moment.
            listener = loop {
                if let Ok(again) = TcpListener::bind(address) {
                    break again;
                }
            };
            continue;
        }
        state
            .streams
            .lock()
            .unwrap()
            .push(stream.try_clone().unwrap());
        let state = Arc::clone(state);
        std::thread::spawn(move || serve(&state, &stream, address));
    }
}

fn read_head(reader: &mut BufReader<&TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut asked = Asked {
        path: line.split(' ').nth(1)?.to_owned(),
        ..Asked::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(asked);
        };
        let name = name.to_ascii_lowercase();
        asked.headers.insert(name, value.to_owned());
    }
}

fn serve(state: &State, stream: &TcpStream, address: SocketAddr) {
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read_head(&mut reader) {
        state.asked.lock().unwrap().push(asked.clone());
        state.arrived.notify_all();
        let done = match state.is_too_many(stream) {
            true => send(state, stream, address, "503 x\r\nContent-Length: 0", b""),
            false => answer(state, stream, address, &asked),
        };
        if done.is_none() {
            break;
        }
    }
    state.end_serving(stream, true);
    // A clean end, so that the client has read all that was sent.
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = reader.take(1 << 16).read_to_end(&mut Vec::new());
}

/// Sends an answer, as far as the server lives.
fn send(
    state: &State,
    mut stream: &TcpStream,
    address: SocketAddr,
    head: &str,
    body: &[u8],
) -> Option<()> {
    // Of now, so that what was changed in 2015 is settled.
    let head = format!("HTTP/1.1 {head}\r\nDate: Sun, 29 Nov 2026 10:00:00 GMT\r\n\r\n");
    let mut left = body.len();
    state.end_serving(stream, left == 0);
    stream.write_all(head.as_bytes()).ok()?;
    for part in body.chunks(4 << 10) {
        left -= part.len();
        state.end_serving(stream, left == 0);
        let end = {
            let mut deaths = state.deaths.lock().unwrap();
            let left = deaths.0.front().map(|death| death.saturating_sub(deaths.1));
            let sent = left.map_or(part.len(), |left| {
                part.len().min(usize::try_from(left).unwrap())
            });
            deaths.1 += sent as u64;
            let dies = left.is_some_and(|left| left <= part.len() as u64);
            if dies {
                deaths.0.pop_front();
                state.died.store(true, Ordering::SeqCst);
            }
            (sent, dies)
        };
        let sent = stream.write_all(&part[..end.0]).ok();
        if end.1 {
            for other in state.streams.lock().unwrap().drain(..) {
                let _ = other.shutdown(Shutdown::Both);
            }
            wake(address);
            return None;
        }
        sent?;
    }
    Some(())
}

/// Answers one request; none if the connection must end.
fn answer(state: &State, stream: &TcpStream, address: SocketAddr, asked: &Asked) -> Option<()> {
    let bare = |status: u16, headers: &str| {
        let head = format!("{status} x\r\n{headers}Content-Length: 0");
        send(state, stream, address, &head, b"")
    };
    let fault = state
        .faults
        .lock()
        .unwrap()
        .get_mut(&asked.path)
        .and_then(VecDeque::pop_front);
    let mut files = state.files.lock().unwrap();
    if let Some(Fault::Status(status, headers)) = &fault {
        drop(files);
        return bare(*status, headers);
    }
    let Some(file) = files.get_mut(&asked.path) else {
        drop(files);
        return bare(404, "");
    };
    if let Some(Fault::Change(content)) = &fault {
        file.replace(content.clone());
    }
    let file = file.clone();
    drop(files);
    let has = |name: &str, value: Option<&str>| {
        asked.header(name).is_some() && asked.header(name) == value
    };
    let (etag, date) = (file.etag.as_deref(), file.last_modified);
    let is_known = match asked.header("if-none-match") {
        Some(_) => has("if-none-match", etag),
        None => has("if-modified-since", date),
    };
    if is_known {
        return bare(304, "");
    }
    let size = file.content.len();
    let wanted = asked.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let joins =
        asked.header("if-range").is_none() || has("if-range", etag) || has("if-range", date);
    let wanted = wanted.filter(|_| file.knows_ranges && joins);
    if wanted.is_some_and(|(first, _)| first >= size) {
        return bare(416, "");
    }
    let (mut status, mut body) = ("200 x".to_owned(), file.content.as_slice());
    if let Some((first, last)) = wanted {
        let mut last = last.min(size - 1);
        if let Some(Fault::Less(count)) = &fault {
            last = last.min(first + count - 1);
        }
        body = &body[first..=last];
        status = format!("206 x\r\nContent-Range: bytes {first}-{last}/{size}");
    }
    if let Some(Fault::SaysRange(said)) = &fault {
        status = format!("206 x\r\nContent-Range: {said}");
    }
    if let Some(Fault::Lie(other)) = &fault {
        body = other;
    }
    let mut head = format!("{status}\r\nContent-Type: {}", file.media_type);
    for (name, value) in [("ETag", etag), ("Last-Modified", date)] {
        if let Some(value) = value {
            head.push_str(&format!("\r\n{name}: {value}"));
        }
    }
    match file.has_no_length {
        true => head.push_str("\r\nConnection: close"),
        false => head.push_str(&format!("\r\nContent-Length: {}", body.len())),
    }
    let sent = match &fault {
        Some(Fault::Cut(count) | Fault::Stall(count)) => &body[..body.len().min(*count)],
        _ => body,
    };
    send(state, stream, address, &head, sent)?;
    if let Some(Fault::Stall(_)) = fault {
        // Ends when the client gives up.
        let mut stream = stream;
        let _ = stream.read(&mut [0]);
        return None;
    }
    (!matches!(fault, Some(Fault::Cut(_))) && !file.has_no_length).then_some(())
}
