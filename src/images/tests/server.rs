//! A registry in the test's own process that can misbehave: one thread a connection, one answer a connection.

use super::fixture::Content;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// The request.
#[derive(Debug, Clone)]
pub(in crate::images) struct Ask {
    pub(in crate::images) method: String,
    /// Path and query.
    pub(in crate::images) path: String,
    headers: Vec<(String, String)>,
    pub(in crate::images) body: String,
}

impl Ask {
    pub(in crate::images) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// The answer.
pub(in crate::images) struct Reply {
    pub(in crate::images) status: u16,
    pub(in crate::images) headers: Vec<(String, String)>,
    pub(in crate::images) body: Vec<u8>,
    /// Bytes that are sent of the body before the connection breaks or stops.
    pub(in crate::images) end: End,
}

#[derive(Clone, Copy, PartialEq)]
pub(in crate::images) enum End {
    Whole,
    BreakAt(usize),
    /// The rest follows when `release` is called, or never.
    StallAt(usize),
    /// From here on a byte now and then.
    DripFrom(usize),
}

impl Reply {
    pub(in crate::images) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), end: End::Whole }
    }

    pub(in crate::images) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(in crate::images) fn ends(mut self, end: End) -> Self {
        self.end = end;
        self
    }
}

#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

/// A running server.
pub(in crate::images) struct Server {
    pub(in crate::images) port: u16,
    asks: Arc<Mutex<Vec<Ask>>>,
    gate: Arc<Gate>,
    over: Arc<AtomicBool>,
}

impl Server {
    /// Serves with `answer`; it runs on the connection's thread.
    pub(in crate::images) fn start(answer: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server =
            Self { port, asks: Arc::default(), gate: Arc::default(), over: Arc::new(AtomicBool::new(false)) };
        let (asks, gate, over) =
            (Arc::clone(&server.asks), Arc::clone(&server.gate), Arc::clone(&server.over));
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let (asks, gate, answer) = (Arc::clone(&asks), Arc::clone(&gate), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let Some(ask) = read(&stream) else { return };
                    asks.lock().unwrap().push(ask.clone());
                    let reply = answer(&ask);
                    // A client that disconnects early is no error.
                    let _ = write(&stream, &reply, ask.method == "HEAD", &gate);
                });
            }
        });
        server
    }

    /// A well-behaved registry.
    pub(in crate::images) fn serving(content: Content) -> Self {
        Self::start(move |ask| serve(&content, ask))
    }

    pub(in crate::images) fn asks(&self) -> Vec<Ask> {
        self.asks.lock().unwrap().clone()
    }

    /// Lets stalled bodies go on.
    pub(in crate::images) fn release(&self) {
        *self.gate.open.lock().unwrap() = true;
        self.gate.opened.notify_all();
    }

    pub(in crate::images) fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.release();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// An honest registry's answer.
pub(in crate::images) fn serve(content: &Content, ask: &Ask) -> Reply {
    let path = ask.path.split('?').next().unwrap();
    let (kind, name) =
        path.rsplit_once('/').map(|(rest, name)| (rest.rsplit('/').next().unwrap(), name)).unwrap();
    match kind {
        "manifests" => match content.manifests.get(name) {
            Some((media_type, body)) => Reply::new(200, body.clone())
                .with("Content-Type", *media_type)
                .with("Docker-Content-Digest", crate::images::digest::Digest::sha256(body).to_string()),
            None => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#),
        },
        "blobs" => match content.blobs.get(name) {
            Some(body) => Reply::new(200, body.clone()),
            None => Reply::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}"#),
        },
        _ => Reply::new(404, ""),
    }
}

fn read(stream: &TcpStream) -> Option<Ask> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut ask = Ask { method, path, headers, body: String::new() };
    let length = ask.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    std::io::Read::read_exact(&mut reader, &mut body).ok()?;
    ask.body = String::from_utf8(body).ok()?;
    Some(ask)
}

fn write(mut stream: &TcpStream, reply: &Reply, head: bool, gate: &Gate) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(n, _)| n == "Content-Length") {
        text += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{text}\r\n").as_bytes())?;
    if head {
        return Ok(());
    }
    match reply.end {
        End::Whole => stream.write_all(&reply.body),
        End::BreakAt(at) => stream.write_all(&reply.body[..at]),
        End::StallAt(at) => {
            stream.write_all(&reply.body[..at])?;
            let open = gate.open.lock().unwrap();
            drop(gate.opened.wait_while(open, |open| !*open).unwrap());
            stream.write_all(&reply.body[at..])
        }
        End::DripFrom(at) => {
            stream.write_all(&reply.body[..at])?;
            let mut open = gate.open.lock().unwrap();
            for byte in &reply.body[at..] {
                stream.write_all(&[*byte])?;
                let pause = std::time::Duration::from_millis(50);
                open = gate.opened.wait_timeout_while(open, pause, |open| !*open).unwrap().0;
            }
            Ok(())
        }
    }
}
