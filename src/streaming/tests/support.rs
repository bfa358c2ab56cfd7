//! A server with a stand-in for the pods, and raw clients.

use super::stand_in::StandIn;
use crate::config;
use crate::streaming::context::Settings;
pub(super) use crate::streaming::spdy::client::{Client, Got};
use crate::streaming::{AttachRequest, ExecRequest, PortForwardRequest, Server, Stdio, StreamingMetrics};
use futures_util::{SinkExt as _, StreamExt as _};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

pub(super) const PLAIN: Stdio = Stdio { tty: false, stdin: true, stdout: true, stderr: true };
pub(super) const TTY: Stdio = Stdio { tty: true, stdin: true, stdout: true, stderr: false };
/// Limit on waiting for an expected event on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Node {
    pub(super) server: Server,
    pub(super) pods: StandIn,
    registry: prometheus::Registry,
}

/// Time to show that something does not happen at once.
pub(super) const SOON: Duration = Duration::from_millis(100);

/// The daemon's values, except for output that is held open.
pub(super) fn durations() -> Settings {
    Settings::of(&config::Streaming::default(), Duration::from_millis(50))
}

pub(super) async fn node() -> Node {
    node_with(config::Streaming::default(), durations()).await
}

pub(super) async fn node_with(config: config::Streaming, durations: Settings) -> Node {
    let pods = StandIn::default();
    let registry = prometheus::Registry::new();
    let metrics = StreamingMetrics::register(&registry).unwrap();
    let server = Server::start_with(&config, durations, pods.clone(), metrics).await.unwrap();
    Node { server, pods, registry }
}

impl Node {
    /// Path and query of a URL for this command.
    pub(super) fn exec(&self, command: &[&str], stdio: Stdio) -> String {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        self.path(&self.server.urls().exec(ExecRequest { container: "c".into(), command, stdio }).unwrap())
    }

    pub(super) fn attach(&self, stdio: Stdio) -> String {
        self.path(&self.server.urls().attach(AttachRequest { container: "c".into(), stdio }).unwrap())
    }

    pub(super) fn forward(&self, ports: &[u16]) -> String {
        let request = PortForwardRequest { sandbox: "pod".into(), ports: ports.to_vec() };
        self.path(&self.server.urls().port_forward(request).unwrap())
    }

    fn path(&self, url: &str) -> String {
        let base = format!("http://{}", self.server.address());
        url.strip_prefix(&base).unwrap().to_owned()
    }

    pub(super) async fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.server.address()).await.unwrap();
        // As Go's clients have it.
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// Sends a request verbatim and reads the head of the answer.
    pub(super) async fn ask(&self, head: &str) -> (String, TcpStream) {
        let mut socket = self.connect().await;
        socket.write_all(head.as_bytes()).await.unwrap();
        (read_head(&mut socket).await, socket)
    }

    pub(super) async fn spdy(&self, path: &str, protocols: &[&str]) -> Client<TcpStream> {
        let (head, socket) = self.ask(&upgrade(path, protocols)).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Client::over(socket)
    }

    pub(super) async fn websocket(&self, path: &str, protocol: &str) -> WebSocketStream<TcpStream> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
        let mut request = format!("ws://{}{path}", self.server.address()).into_client_request().unwrap();
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let (socket, response) =
            tokio_tungstenite::client_async(request, self.connect().await).await.unwrap();
        let chosen = response.headers().get("sec-websocket-protocol").map(|v| v.to_str().unwrap());
        assert_eq!(chosen.unwrap_or_default(), protocol);
        socket
    }

    /// Value of a counter or gauge in all, or with this label.
    pub(super) fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let samples = families.iter().filter(|family| family.name() == name).flat_map(|f| f.get_metric());
        let labelled =
            samples.filter(|m| label.is_empty() || m.get_label().iter().any(|l| l.value() == label));
        labelled.map(|m| m.get_counter().get_value() + m.get_gauge().get_value()).sum()
    }

    /// Waits until no process is left.
    pub(super) async fn quiet(&self) {
        let gone = async {
            while self.pods.alive.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("processes are left");
    }
}

pub(super) fn upgrade(path: &str, protocols: &[&str]) -> String {
    let lines: String =
        protocols.iter().map(|name| format!("X-Stream-Protocol-Version: {name}\r\n")).collect();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n{lines}\r\n"
    )
}

/// Empty when the server closed instead.
pub(super) async fn read_head(socket: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Result of a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Result {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) status: String,
}

pub(super) const ERROR: u32 = 1;
pub(super) const STDIN: u32 = 3;
pub(super) const STDOUT: u32 = 5;
pub(super) const STDERR: u32 = 7;
pub(super) const RESIZE: u32 = 9;

/// Opens streams one after the other, each after the last one's answer, as Go's client does.
pub(super) async fn open<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &mut Client<S>,
    stdio: Stdio,
    resize: bool,
) {
    let streams = [
        (ERROR, "error", true),
        (STDIN, "stdin", stdio.stdin),
        (STDOUT, "stdout", stdio.stdout),
        (STDERR, "stderr", stdio.stderr),
        (RESIZE, "resize", resize),
    ];
    for (id, kind, there) in streams {
        if there {
            client.syn(id, &[("streamtype", kind)]).await;
            assert_eq!(client.next().await, Got::Reply(id));
        }
    }
}

/// Reads a session to its end.
pub(super) async fn finish<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &mut Client<S>,
) -> Result {
    let mut result = Result::default();
    let mut status = Vec::new();
    loop {
        match client.next().await {
            Got::Data(STDOUT, data) => result.stdout.extend(data),
            Got::Data(STDERR, data) => result.stderr.extend(data),
            Got::Data(ERROR, data) => status.extend(data),
            Got::GoAway(..) => break,
            Got::Fin(_) | Got::Rst(..) => {}
            other => panic!("{other:?} after {result:?}"),
        }
    }
    result.status = String::from_utf8(status).unwrap();
    result
}

/// Messages until the server's close frame, and its code.
pub(super) async fn messages(socket: &mut WebSocketStream<TcpStream>) -> (Vec<Message>, u16) {
    let mut all = Vec::new();
    loop {
        match socket.next().await {
            Some(Ok(Message::Close(frame))) => {
                let _ = socket.flush().await;
                return (all, frame.unwrap().code.into());
            }
            Some(Ok(message)) => all.push(message),
            other => panic!("{other:?} after {all:?}"),
        }
    }
}
