use super::support::*;
use crate::streaming::Stdio;
use crate::streaming::context::Settings;
use futures_util::SinkExt as _;
use std::time::Duration;
use tokio_tungstenite::tungstenite::Message;

const V4: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn output_comes_whole_and_before_the_status() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["both"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    let result = finish(&mut client).await;
    assert_eq!((&result.stdout[..], &result.stderr[..]), (&b"out"[..], &b"err"[..]));
    assert_eq!(json(&result.status)["status"], "Success");
    drop(client);
    node.quiet().await;
}

#[tokio::test]
async fn every_old_protocol_tells_the_exit_code_in_its_way() {
    let node = node().await;
    for (protocol, status) in [
        ("v4.channel.k8s.io", true),
        ("v3.channel.k8s.io", false),
        ("v2.channel.k8s.io", false),
        ("channel.k8s.io", false),
    ] {
        let mut client = node.spdy(&node.exec(&["exit", "3"], PLAIN), &[protocol]).await;
        open(&mut client, PLAIN, false).await;
        let result = finish(&mut client).await;
        if status {
            assert_eq!(json(&result.status)["details"]["causes"][0]["message"], "3");
        } else {
            assert_eq!(result.status, "command terminated with non-zero exit code: 3");
        }
        let mut client = node.spdy(&node.exec(&["exit", "0"], PLAIN), &[protocol]).await;
        open(&mut client, PLAIN, false).await;
        assert_eq!(finish(&mut client).await.status.is_empty(), !status);
    }
}

#[tokio::test]
async fn input_is_carried_and_its_end_is_the_processs() {
    let node = node().await;
    let input: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    for attach in [false, true] {
        let path = if attach { node.attach(PLAIN) } else { node.exec(&["cat"], PLAIN) };
        let mut client = node.spdy(&path, V4).await;
        open(&mut client, PLAIN, false).await;
        let (reading, mut writing) = client.socket.into_split();
        let send = input.clone();
        let sending = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            for piece in send.chunks(100_000) {
                let [.., a, b, c] = piece.len().to_be_bytes();
                writing.write_all(&[0, 0, 0, 3, 0, a, b, c]).await.unwrap();
                writing.write_all(piece).await.unwrap();
            }
            writing.write_all(&[0, 0, 0, 3, 1, 0, 0, 0]).await.unwrap();
            writing
        });
        let mut client = Client::over(tokio::io::join(reading, tokio::io::sink()));
        let result = finish(&mut client).await;
        assert!(result.stdout == input, "{} of {}", result.stdout.len(), input.len());
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn a_large_output_comes_whole() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["zeroes", "50000000"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    let result = finish(&mut client).await;
    assert_eq!(result.stdout.len(), 50_000_000);
}

#[tokio::test]
async fn the_first_size_is_there_at_the_start_and_later_ones_follow() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["size", "1"], TTY), V4).await;
    open(&mut client, TTY, true).await;
    client.data(RESIZE, 0, b"{\"Width\":80,\"Height\":24}\n").await;
    assert_eq!(client.next().await, Got::Data(STDOUT, b"80x24\n".to_vec()));
    client.data(RESIZE, 0, b"{\"Width\":100,\"Height\":50}\n").await;
    assert_eq!(finish(&mut client).await.stdout, b"100x50\n");
    // A client without a terminal sends none, and the server does not wait for it.
    let mut client = node.spdy(&node.exec(&["size", "0"], TTY), V4).await;
    open(&mut client, TTY, true).await;
    assert_eq!(finish(&mut client).await.stdout, b"none\n");
}

#[tokio::test]
async fn what_cannot_start_is_told() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["missing"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    let status = json(&finish(&mut client).await.status);
    assert_eq!(status["reason"], "InternalError");
    assert!(status["message"].as_str().unwrap().contains("start command"), "{status}");
}

#[tokio::test]
async fn a_silent_child_that_holds_the_output_is_not_waited_for() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["daemonize"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    let result = tokio::time::timeout(PATIENCE, finish(&mut client)).await.unwrap();
    assert_eq!(result.stdout, b"started");
    assert_eq!(json(&result.status)["status"], "Success");
}

#[tokio::test]
async fn the_end_of_the_daemon_is_told() {
    let node = node().await;
    let mut client = node.spdy(&node.exec(&["deaf"], PLAIN), V4).await;
    open(&mut client, PLAIN, false).await;
    let mut socket = node.websocket(&node.exec(&["deaf"], PLAIN), "v5.channel.k8s.io").await;
    assert_eq!(next(&mut socket).await, Message::binary(&[1][..]));
    let ended = tokio::spawn(node.server.end(PATIENCE));
    let status = finish(&mut client).await.status;
    assert!(json(&status)["message"].as_str().unwrap().contains("restarted"), "{status}");
    drop(client);
    let (messages, code) = messages(&mut socket).await;
    assert!(messages[0].to_text().unwrap().contains("restarted") && code == 1000);
    drop(socket);
    ended.await.unwrap();
}

async fn next(socket: &mut tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>) -> Message {
    use futures_util::StreamExt as _;
    socket.next().await.unwrap().unwrap()
}

#[tokio::test]
async fn websockets_speak_channels() {
    let node = node().await;
    let mut socket = node.websocket(&node.exec(&["cat"], PLAIN), "v5.channel.k8s.io").await;
    assert_eq!(next(&mut socket).await, Message::binary(&[1][..]), "the sign that it is up");
    socket.send(Message::binary(&b"\0hello"[..])).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::binary(&b"\x01hello"[..]));
    socket.send(Message::Ping(b"x".to_vec().into())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong(b"x".to_vec().into()));
    socket.send(Message::binary(&[0xff, 0][..])).await.unwrap();
    let (messages, code) = messages(&mut socket).await;
    let [Message::Binary(status)] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(status[0], 3);
    assert_eq!(json(std::str::from_utf8(&status[1..]).unwrap())["status"], "Success");
    assert_eq!(code, 1000);
    node.quiet().await;
}

#[tokio::test]
async fn websockets_of_every_protocol_tell_the_exit_code() {
    let node = node().await;
    for protocol in [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "channel.k8s.io",
        "base64.channel.k8s.io",
        "",
    ] {
        let mut socket = node.websocket(&node.exec(&["exit", "7"], PLAIN), protocol).await;
        let (messages, code) = messages(&mut socket).await;
        assert_eq!((messages.len(), code), (2, 1000), "{protocol}: {messages:?}");
        let text = match &messages[1] {
            Message::Binary(data) => {
                assert_eq!(data[0], 3);
                String::from_utf8(data[1..].to_vec()).unwrap()
            }
            Message::Text(text) => {
                use base64::Engine as _;
                assert!(protocol.contains("base64") && text.starts_with('3'));
                let data = base64::engine::general_purpose::STANDARD.decode(&text.as_str()[1..]).unwrap();
                String::from_utf8(data).unwrap()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(text.starts_with('{'), protocol.starts_with('v'), "{protocol}: {text}");
        assert!(text.contains('7'));
    }
}

#[tokio::test]
async fn a_base64_websocket_carries_input() {
    let node = node().await;
    let path = node.exec(&["cat"], Stdio { stderr: false, ..PLAIN });
    let mut socket = node.websocket(&path, "base64.channel.k8s.io").await;
    assert_eq!(next(&mut socket).await, Message::text("1"));
    socket.send(Message::text("0aGVsbG8=")).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::text("1aGVsbG8="));
    drop(socket);
    node.quiet().await;
}

#[tokio::test]
async fn a_terminal_in_a_websocket_gets_its_sizes() {
    let node = node().await;
    let mut socket = node.websocket(&node.exec(&["size", "0"], TTY), "v5.channel.k8s.io").await;
    socket.send(Message::binary(&b"\x04{\"Width\":80,\"Height\":24}\n"[..])).await.unwrap();
    let (messages, _) = messages(&mut socket).await;
    assert_eq!(messages[1], Message::binary(&b"\x0180x24\n"[..]));
}

#[tokio::test]
async fn tls_carries_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let write = || {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let pem = |kind: &str, der: &[u8]| {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
        };
        std::fs::write(&cert, pem("CERTIFICATE", made.cert.der())).unwrap();
        std::fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
        made.cert.der().to_vec()
    };
    let first = write();
    let config = crate::config::Streaming {
        tls: true,
        cert_file: cert.clone(),
        key_file: key.clone(),
        ..Default::default()
    };
    let node = node_with(config, Settings { look: Duration::ZERO, ..durations() }).await;
    let url =
        node.server.urls().attach(crate::streaming::AttachRequest { container: "c".into(), stdio: PLAIN });
    let url = url.unwrap();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let token = url.split_once("/attach/").unwrap().1;
    let seen = tls(&node, &first).await;
    let mut client = seen.unwrap();
    use tokio::io::AsyncWriteExt as _;
    client.write_all(upgrade(&format!("/attach/{token}"), V4).as_bytes()).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
    let mut client = Client::over(client);
    open(&mut client, PLAIN, false).await;
    client.data(STDIN, 1, b"hello").await;
    assert_eq!(finish(&mut client).await.stdout, b"hello");
    // A new certificate is served without a restart, an incomplete one is not.
    std::fs::write(&cert, "half").unwrap();
    assert!(tls(&node, &first).await.is_some());
    let second = write();
    assert!(tls(&node, &second).await.is_some());
}

/// Connects trusting only this certificate; None if another one is served.
async fn tls(node: &Node, cert: &[u8]) -> Option<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    use std::sync::Arc;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.to_vec().into()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), node.connect().await).await.ok()
}
