use super::support::*;
use crate::streaming::context::Settings;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n")
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[tokio::test]
async fn a_request_that_fits_nothing_is_refused_with_its_code() {
    let node = node().await;
    let v4 = ["v4.channel.k8s.io"];
    let exec = || node.exec(&["cat"], PLAIN);
    let used = exec();
    drop(node.spdy(&used, &v4).await);
    let misplaced = exec().replace("/exec/", "/attach/");
    for (request, code) in [
        (upgrade("/exec/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &v4), "404"),
        (upgrade(&used, &v4), "404"),
        (upgrade(&misplaced, &v4), "404"),
        (upgrade(&misplaced.replace("/attach/", "/exec/"), &v4), "404"),
        (upgrade("/", &v4), "404"),
        (upgrade("/exec", &v4), "404"),
        (upgrade(&format!("{}/more", exec()), &v4), "404"),
        (upgrade(&exec(), &v4).replace("POST", "PUT"), "405"),
        (upgrade(&exec(), &[]), "400"),
        (upgrade(&exec(), &["v9"]), "403"),
        (upgrade(&exec(), &v4).replace("Upgrade: SPDY/3.1\r\n", ""), "400"),
        (upgrade(&node.forward(&[]), &v4), "403"),
        (get(&exec(), &format!("{WEBSOCKET}Sec-WebSocket-Protocol: v3.channel.k8s.io\r\n")), "403"),
        (get(&exec(), "Connection: Upgrade\r\nUpgrade: websocket\r\n"), "400"),
        (
            format!("{}{}\r\n", get("/exec/x", "").trim_end(), "\r\nX: ".to_owned() + &"x".repeat(1 << 20)),
            "431",
        ),
        (get("/exec/x", &"A: b\r\n".repeat(100)), "431"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ] {
        let mut socket = node.connect().await;
        // The server may answer, and close, before it has read all of it.
        let _ = socket.write_all(request.as_bytes()).await;
        let head = read_head(&mut socket).await;
        assert!(
            head.is_empty() && code == "431" || head.starts_with(&format!("HTTP/1.1 {code} ")),
            "{code}: {head}"
        );
    }
    let (head, _) = node.ask(&upgrade(&exec(), &["v9"])).await;
    assert!(head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"), "{head}");
}

#[tokio::test]
async fn the_answer_names_the_protocol() {
    let node = node().await;
    let (head, _) =
        node.ask(&upgrade(&node.exec(&["cat"], PLAIN), &["v5.channel.k8s.io, v3.channel.k8s.io"])).await;
    for line in ["connection: Upgrade", "upgrade: SPDY/3.1", "x-stream-protocol-version: v3.channel.k8s.io"] {
        assert!(head.contains(line), "{line:?} is not in {head}");
    }
    // The example of RFC 6455, section 1.3.
    let (head, _) = node.ask(&get(&node.exec(&["cat"], PLAIN), WEBSOCKET)).await;
    assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
}

#[tokio::test]
async fn a_slow_handshake_is_cut_off() {
    let node = node_with(Default::default(), Settings { handshake: SOON, ..durations() }).await;
    let mut silent = node.connect().await;
    let mut half = node.connect().await;
    half.write_all(b"POST /exec/x HTTP/1.1\r\nHost:").await.unwrap();
    let mut buffer = Vec::new();
    tokio::time::timeout(PATIENCE, async {
        let _ = silent.read_to_end(&mut buffer).await;
        let _ = half.read_to_end(&mut buffer).await;
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_handshakes_do_not_delay_a_client_with_a_token() {
    for tls in [false, true] {
        let config = crate::config::Streaming { tls, ..Default::default() };
        // Longer than the test: no deadline expires.
        let node = node_with(config, Settings { handshake: 10 * PATIENCE, ..durations() }).await;
        let mut stalled = Vec::new();
        for _ in 0..600 {
            let mut socket = node.connect().await;
            socket.write_all(b"GET /").await.unwrap();
            stalled.push(socket);
        }
        let served = async {
            if tls {
                // Its hello is invalid; any answer will do.
                let mut socket = node.connect().await;
                socket.write_all(b"POST / HTTP/1.1\r\n\r\n").await.unwrap();
                let _ = socket.read_to_end(&mut Vec::new()).await;
            } else {
                let mut client = node.spdy(&node.exec(&["cat"], PLAIN), &["v4.channel.k8s.io"]).await;
                open(&mut client, PLAIN, false).await;
                // Other connections fill the listener again; this one is past its handshake.
                for _ in 0..300 {
                    stalled.push(node.connect().await);
                }
                client.data(STDIN, 1, b"hello").await;
                assert_eq!(finish(&mut client).await.stdout, b"hello");
            }
        };
        tokio::time::timeout(PATIENCE, served).await.expect("others' handshakes are waited for");
    }
}

#[tokio::test]
async fn a_slow_tls_handshake_is_cut_off() {
    let config = crate::config::Streaming { tls: true, ..Default::default() };
    let node = node_with(config, Settings { handshake: SOON, ..durations() }).await;
    let mut silent = node.connect().await;
    let mut half = node.connect().await;
    // The beginning of a client's hello.
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    let mut buffer = Vec::new();
    tokio::time::timeout(PATIENCE, async {
        let _ = silent.read_to_end(&mut buffer).await;
        let _ = half.read_to_end(&mut buffer).await;
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn guesses_find_nothing_and_leave_the_true_token_alone() {
    let node = node().await;
    let path = node.exec(&["cat"], PLAIN);
    let (base, token) = path.rsplit_once('/').unwrap();
    let v4 = ["v4.channel.k8s.io"];
    for n in 0..300u32 {
        // One character of the valid token is wrong, or all of them.
        let at = usize::try_from(n).unwrap() % token.len();
        let wrong = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
        let near = format!("{}{wrong}{}", &token[..at], &token[at + 1..]);
        let guess = if n % 2 == 0 { near } else { format!("{n:032}") };
        let (head, _) = node.ask(&upgrade(&format!("{base}/{guess}"), &v4)).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    }
    assert!((node.metric("podwright_streaming_refused_total", "token") - 300.0).abs() < 0.5);
    drop(node.spdy(&path, &v4).await);
}

#[tokio::test]
async fn a_token_that_nobody_came_for_in_time_is_unknown() {
    let node = node_with(Default::default(), Settings { lifetime: Duration::ZERO, ..durations() }).await;
    let (head, _) = node.ask(&upgrade(&node.exec(&["cat"], PLAIN), &["v4.channel.k8s.io"])).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
}

#[tokio::test]
async fn frames_that_come_with_the_handshake_count() {
    let node = node().await;
    let mut socket = node.connect().await;
    let mut client = Client::over(Vec::new().into_writer());
    client.syn(ERROR, &[("streamtype", "error")]).await;
    let mut bytes = upgrade(&node.exec(&["cat"], PLAIN), &["v4.channel.k8s.io"]).into_bytes();
    bytes.extend(client.socket.0);
    socket.write_all(&bytes).await.unwrap();
    assert!(read_head(&mut socket).await.starts_with("HTTP/1.1 101 "));
    assert_eq!(Client::over(socket).next().await, Got::Reply(ERROR));
}

#[tokio::test]
async fn more_sessions_than_allowed_are_told_to_come_later() {
    let node =
        node_with(crate::config::Streaming { max_sessions: 2, ..Default::default() }, durations()).await;
    let mut open_ones = Vec::new();
    for _ in 0..2 {
        let mut client = node.spdy(&node.exec(&["deaf"], PLAIN), &["v4.channel.k8s.io"]).await;
        open(&mut client, PLAIN, false).await;
        open_ones.push(client);
    }
    let path = node.exec(&["deaf"], PLAIN);
    let (head, _) = node.ask(&upgrade(&path, &["v4.channel.k8s.io"])).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    open_ones.pop();
    // The token was not used up by that.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (head, _) = node.ask(&upgrade(&path, &["v4.channel.k8s.io"])).await;
        if head.starts_with("HTTP/1.1 101 ") {
            break;
        }
        assert!(head.starts_with("HTTP/1.1 503 ") && tokio::time::Instant::now() < deadline, "{head}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

trait IntoWriter {
    fn into_writer(self) -> Collected;
}

impl IntoWriter for Vec<u8> {
    fn into_writer(self) -> Collected {
        Collected(self)
    }
}

/// Collects what is written; yields nothing.
struct Collected(Vec<u8>);

impl tokio::io::AsyncRead for Collected {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Collected {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        data: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.get_mut().0.extend_from_slice(data);
        std::task::Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}
